package settings_test

import (
	"encoding/json"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/aad-pod-identity/aad-pod-identity/internal/azuresim/settings"
	"github.com/aad-pod-identity/aad-pod-identity/internal/azuresim/timing"
)

func TestDocumentedLimits(t *testing.T) {
	got := settings.Throttling{}.Full()
	limit := func(perMinute float64, burst int) *settings.Limit {
		return &settings.Limit{PerMinute: perMinute, Burst: burst}
	}
	every := timing.Duration(time.Minute)
	want := settings.Throttling{
		RefillEvery:    &every,
		ScaleSetGet:    settings.Policy{Resource: limit(12, 36), Subscription: limit(800, 2400)},
		ScaleSetUpdate: settings.Policy{Resource: limit(4, 12), Subscription: limit(500, 1500)},
		VMGet:          settings.Policy{Resource: limit(12, 36), Subscription: limit(8000, 24000)},
		VMUpdate:       settings.Policy{Resource: limit(4, 12), Subscription: limit(500, 1500)},
		Operation:      settings.Policy{Resource: limit(15, 45), Subscription: limit(5000, 15000)},
		Reads:          limit(25*60, 250),
		Writes:         limit(10*60, 200),
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("limits (-want +got):\n%s", diff)
	}
}

func TestEveryLimitCanBeSet(t *testing.T) {
	odd := &settings.Limit{PerMinute: 7, Burst: 7}
	policy, every := settings.Policy{Resource: odd, Subscription: odd}, timing.Duration(time.Second)
	want := settings.Throttling{
		RefillEvery: &every, ScaleSetGet: policy, ScaleSetUpdate: policy, VMGet: policy, VMUpdate: policy, Operation: policy, Reads: odd, Writes: odd,
	}
	if diff := cmp.Diff(want, want.Full()); diff != "" {
		t.Errorf("limits (-want +got):\n%s", diff)
	}
}

func TestSettingsReadAsTheyAreWritten(t *testing.T) {
	const text = `{"clockFactor":30,"seed":7,"arm":{"latency":{"scaleSet":"40s-1m0s","vm":"10s"},` +
		`"throttling":{"refillEvery":"0s","scaleSetUpdate":{"resource":{"perMinute":2,"burst":3}},"reads":{"perMinute":0,"burst":0}}}}`
	var s settings.Settings
	if err := json.Unmarshal([]byte(text), &s); err != nil {
		t.Fatal(err)
	}
	if err := s.Validate(); err != nil {
		t.Error(err)
	}
	back, err := json.Marshal(s)
	if err != nil || string(back) != text {
		t.Errorf("got %s, %v", back, err)
	}
	if full := s.ARM.Throttling.Full(); !full.Reads.IsOff() || full.ScaleSetUpdate.Subscription.Burst != 1500 {
		t.Errorf("got %+v", full)
	}
	if empty, err := json.Marshal(settings.Settings{}); err != nil || string(empty) != "{}" {
		t.Errorf("no settings are %s, %v", empty, err)
	}
}

func TestValidateRefuses(t *testing.T) {
	negative := timing.Duration(-time.Second)
	for name, test := range map[string]struct {
		settings settings.Settings
		words    string
	}{
		"a clock that runs back":  {settings.Settings{ClockFactor: -2}, "clockFactor is -2"},
		"a clock beyond measure":  {settings.Settings{ClockFactor: 1e6}, "up to 1000"},
		"a negative latency":      {settings.Settings{ARM: settings.ARM{Latency: settings.Latency{VM: timing.Fixed(-1)}}}, "arm.latency.vm is -1ns"},
		"a latency upside down":   {settings.Settings{ARM: settings.ARM{Latency: settings.Latency{ScaleSet: timing.Range{Min: 2, Max: 1}}}}, "arm.latency.scaleSet"},
		"a bucket without tokens": {throttled(settings.Throttling{Writes: &settings.Limit{PerMinute: 1}}), "arm.throttling.writes is 1 a minute with a burst of 0"},
		"a bucket never filled":   {throttled(settings.Throttling{VMGet: settings.Policy{Resource: &settings.Limit{Burst: 3}}}), "vmGet.resource"},
		"a slow IMDS backwards":   {settings.Settings{IMDS: settings.IMDS{Latency: timing.Fixed(-1)}}, "imds.latency is -1ns"},
		"a negative limit":        {settings.Settings{IMDS: settings.IMDS{Limits: &settings.IMDSLimits{OtherPerSecond: new(-1)}}}, "imds.limits.otherPerSecond is -1"},
		"a negative interval":     {throttled(settings.Throttling{RefillEvery: &negative}), "refillEvery is -1s"},
	} {
		t.Run(name, func(t *testing.T) {
			if err := test.settings.Validate(); err == nil || !strings.Contains(err.Error(), test.words) {
				t.Errorf("got %v, want an error that says %q", err, test.words)
			}
		})
	}
}

func throttled(t settings.Throttling) settings.Settings {
	return settings.Settings{ARM: settings.ARM{Throttling: &t}}
}

func TestDocumentedLimitsOfIMDS(t *testing.T) {
	if diff := cmp.Diff(settings.IMDSLimits{IdentityPerSecond: new(20), IdentityConcurrent: new(5), OtherPerSecond: new(5)}, settings.IMDSLimits{}.Full()); diff != "" {
		t.Errorf("limits (-want +got):\n%s", diff)
	}
	want := settings.IMDSLimits{IdentityPerSecond: new(1), IdentityConcurrent: new(0), OtherPerSecond: new(3)}
	if diff := cmp.Diff(want, want.Full()); diff != "" {
		t.Errorf("limits (-want +got):\n%s", diff)
	}
}

func TestCompress(t *testing.T) {
	for factor, want := range map[float64]time.Duration{0: time.Minute, 1: time.Minute, 30: 2 * time.Second, 0.5: 2 * time.Minute} {
		if got := (settings.Settings{ClockFactor: factor}).Compress(time.Minute); got != want {
			t.Errorf("by %g a minute takes %s, want %s", factor, got, want)
		}
	}
}
