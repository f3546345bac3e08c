// Package settings is how the simulated Azure behaves, as opposed to what is in
// it: latencies, limits, and by how much its time is compressed.
//
// It is pure: plain data, its documented defaults and its validation. It must not
// hold a counter or read a clock.
//
// The limits are Azure's documented ones: Compute's per resource and per
// subscription and region (learn.microsoft.com, "Compute throttling limits"),
// Azure Resource Manager's own per subscription and principal ("Understand how
// Azure Resource Manager throttles requests"), and those of the instance metadata
// service per virtual machine.
package settings

import (
	"fmt"
	"math"
	"time"

	"github.com/aad-pod-identity/aad-pod-identity/internal/azuresim/timing"
)

// Settings are all of it. The zero value is an Azure without limits whose
// operations end at once.
type Settings struct {
	// ClockFactor compresses the simulator's own time: with 30 an operation of 60 s
	// takes 2 s, a bucket of 4 a minute fills by 120 a minute, and a Retry-After
	// is shorter by as much (in whole seconds, 1 at least). 0 is 1.
	ClockFactor float64 `json:"clockFactor,omitempty"`
	// Seed makes the latencies that are drawn repeatable.
	Seed uint64 `json:"seed,omitempty"`
	ARM  ARM    `json:"arm,omitzero"`
	IMDS IMDS   `json:"imds,omitzero"`
}

// ARM are the settings of Azure Resource Manager.
type ARM struct {
	Latency Latency `json:"latency,omitzero"`
	// Throttling is nil where nothing is limited. In the zero value every limit
	// is the documented one.
	Throttling *Throttling `json:"throttling,omitempty"`
}

// Latency is how long an operation runs.
type Latency struct {
	ScaleSet timing.Range `json:"scaleSet,omitzero"`
	VM       timing.Range `json:"vm,omitzero"`
}

// DocumentedLatency is what an operation takes in Azure on most days.
func DocumentedLatency() Latency {
	return Latency{
		ScaleSet: timing.Range{Min: 40 * time.Second, Max: 60 * time.Second},
		VM:       timing.Range{Min: 10 * time.Second, Max: 20 * time.Second},
	}
}

// Limit is the size of a token bucket. One that is all zero does not limit.
type Limit struct {
	PerMinute float64 `json:"perMinute"`
	Burst     int     `json:"burst"`
}

// Policy is the limit of one kind of request, on one resource and on all of a
// subscription and region. A nil one is the documented one.
type Policy struct {
	Resource     *Limit `json:"resource,omitempty"`
	Subscription *Limit `json:"subscription,omitempty"`
}

// Throttling are ARM's limits. Whatever is nil is the documented one.
type Throttling struct {
	// RefillEvery is the interval at which Compute's buckets get their tokens;
	// nil is a minute, as documented; 0 is a steady drip.
	RefillEvery *timing.Duration `json:"refillEvery,omitempty"`

	ScaleSetGet    Policy `json:"scaleSetGet,omitzero"`    // 12/36 and 800/2400
	ScaleSetUpdate Policy `json:"scaleSetUpdate,omitzero"` // 4/12 and 500/1500
	VMGet          Policy `json:"vmGet,omitzero"`          // 12/36 and 8000/24000
	VMUpdate       Policy `json:"vmUpdate,omitzero"`       // 4/12 and 500/1500
	Operation      Policy `json:"operation,omitzero"`      // of polls: 15/45 and 5000/15000

	// The front door's, per subscription and principal, refilled every second.
	Reads  *Limit `json:"reads,omitempty"`  // 1500/250
	Writes *Limit `json:"writes,omitempty"` // 600/200
}

// DocumentedThrottling is what Azure publishes.
func DocumentedThrottling() Throttling {
	every := timing.Duration(time.Minute)
	update := Policy{Resource: &Limit{4, 12}, Subscription: &Limit{500, 1500}}
	return Throttling{
		RefillEvery:    &every,
		ScaleSetGet:    Policy{Resource: &Limit{12, 36}, Subscription: &Limit{800, 2400}},
		ScaleSetUpdate: update,
		VMGet:          Policy{Resource: &Limit{12, 36}, Subscription: &Limit{8000, 24000}},
		VMUpdate:       update,
		Operation:      Policy{Resource: &Limit{15, 45}, Subscription: &Limit{5000, 15000}},
		Reads:          &Limit{1500, 250},
		Writes:         &Limit{600, 200},
	}
}

// Full returns t with the documented limit for every nil one.
func (t Throttling) Full() Throttling {
	full := DocumentedThrottling()
	override(&full.RefillEvery, t.RefillEvery)
	override(&full.Reads, t.Reads)
	override(&full.Writes, t.Writes)
	for _, p := range []struct{ to, from *Policy }{
		{&full.ScaleSetGet, &t.ScaleSetGet}, {&full.ScaleSetUpdate, &t.ScaleSetUpdate},
		{&full.VMGet, &t.VMGet}, {&full.VMUpdate, &t.VMUpdate}, {&full.Operation, &t.Operation},
	} {
		override(&p.to.Resource, p.from.Resource)
		override(&p.to.Subscription, p.from.Subscription)
	}
	return full
}

func override[T any](to **T, from *T) {
	if from != nil {
		*to = from
	}
}

// IsOff reports whether the limit limits nothing.
func (l Limit) IsOff() bool { return l == Limit{} }

// Factor is ClockFactor, or 1.
func (s Settings) Factor() float64 {
	if s.ClockFactor == 0 {
		return 1
	}
	return s.ClockFactor
}

// Compress is how long d of the simulator's own time takes.
func (s Settings) Compress(d time.Duration) time.Duration {
	return time.Duration(float64(d) / s.Factor())
}

// Validate says what cannot be right.
func (s Settings) Validate() error {
	if f := s.ClockFactor; f < 0 || math.IsNaN(f) || f > 1000 {
		return fmt.Errorf("clockFactor is %g: want 1 for real time, or up to 1000 for a faster one", f)
	}
	for name, r := range map[string]timing.Range{
		"arm.latency.scaleSet": s.ARM.Latency.ScaleSet, "arm.latency.vm": s.ARM.Latency.VM, "imds.latency": s.IMDS.Latency,
	} {
		if r.Min < 0 || r.Max < r.Min {
			return fmt.Errorf("%s is %s: it must not be negative", name, r)
		}
	}
	if s.ARM.Throttling != nil {
		if err := s.ARM.Throttling.Full().validate(); err != nil {
			return err
		}
	}
	return s.IMDS.validate()
}

func (t Throttling) validate() error {
	if *t.RefillEvery < 0 {
		return fmt.Errorf("arm.throttling.refillEvery is %s: it must not be negative", time.Duration(*t.RefillEvery))
	}
	for name, l := range map[string]*Limit{
		"scaleSetGet.resource": t.ScaleSetGet.Resource, "scaleSetGet.subscription": t.ScaleSetGet.Subscription,
		"scaleSetUpdate.resource": t.ScaleSetUpdate.Resource, "scaleSetUpdate.subscription": t.ScaleSetUpdate.Subscription,
		"vmGet.resource": t.VMGet.Resource, "vmGet.subscription": t.VMGet.Subscription,
		"vmUpdate.resource": t.VMUpdate.Resource, "vmUpdate.subscription": t.VMUpdate.Subscription,
		"operation.resource": t.Operation.Resource, "operation.subscription": t.Operation.Subscription,
		"reads": t.Reads, "writes": t.Writes,
	} {
		if !l.IsOff() && (l.PerMinute <= 0 || l.Burst < 1) {
			return fmt.Errorf("arm.throttling.%s is %g a minute with a burst of %d: want both above zero, or both zero for no limit",
				name, l.PerMinute, l.Burst)
		}
	}
	return nil
}
