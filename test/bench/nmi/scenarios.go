package main

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/aad-pod-identity/aad-pod-identity/test/bench/nmi/load"
	"github.com/aad-pod-identity/aad-pod-identity/test/bench/report"
)

// The goals, of which the rest stand beside their figures.
const (
	coldWithin     = 27 * time.Second
	leastOfBare    = 0.6
	mostLatency    = 2.0
	mostNeighbour  = 1.5
	mostAnonymous  = 40.0 // MiB
	mostResident   = 64.0 // MiB
	partOfCapacity = 0.3
	floodPerSecond = 2000
)

// cold asks an agent that has just started, twice.
func (s *stage) cold(ctx context.Context) ([]report.Row, error) {
	var few []key
	for pod := range manyPods {
		few = append(few, key{pod, tokenTarget(s.cluster.clientID(pod%fewIdentities), vault)})
	}
	var rows []report.Row
	for _, load := range []struct {
		name string
		keys []key
		// told says that callers may be told to come back.
		told bool
	}{{"64 pods on 8 identities", few, false}, {"512 keys", s.cluster.keys(512), true}} {
		found, err := s.askAll(ctx, load.name, load.keys, load.told)
		rows = append(rows, found...)
		if err != nil {
			return rows, err
		}
	}
	return rows, nil
}

func (s *stage) askAll(ctx context.Context, name string, keys []key, told bool) (rows []report.Row, err error) {
	agent, stop, err := s.agent(ctx)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, stop()) }()
	var (
		mu     sync.Mutex
		took   load.Series
		failed []error
		group  sync.WaitGroup
	)
	lines, err := open(ctx, agent, keys)
	if err != nil {
		return nil, err
	}
	defer closeAll(lines)
	start := time.Now()
	for i, l := range lines {
		group.Go(func() {
			err := s.persist(ctx, l, keys[i].pod, told)
			mu.Lock()
			defer mu.Unlock()
			if err != nil {
				failed = append(failed, err)
				return
			}
			took = append(took, time.Since(start).Seconds())
		})
	}
	group.Wait()
	name = "cold, " + name
	rows = append(rows, none(name+": failures", len(failed)), bounded(name+": the last answer after", took.Quantile(1), coldWithin.Seconds(), "s"))
	if len(failed) > 0 {
		s.progress(fmt.Sprintf("%s: the first failure: %v", name, failed[0]))
	}
	seen, err := s.seen(ctx, name)
	return append(rows, seen...), err
}

// open connects each pod. Hundreds of connections that are made at once keep the
// machine from the metadata service, which is a part of this program, and counts
// a request when it comes to it.
func open(ctx context.Context, p *load.Peer, keys []key) ([]*load.Line, error) {
	var out []*load.Line
	for _, k := range keys {
		asking := *p
		asking.From, asking.Target = p.From[k.pod:k.pod+1], func(int) string { return k.target }
		l, err := asking.Open(ctx, 0)
		if err != nil {
			closeAll(out)
			return nil, err
		}
		out = append(out, l)
	}
	return out, nil
}

func closeAll(lines []*load.Line) {
	for _, l := range lines {
		l.Close()
	}
}

// persist asks as an SDK does: again when it is told to come back, as often as the
// time allows.
func (s *stage) persist(ctx context.Context, l *load.Line, pod int, told bool) error {
	for start := time.Now(); ; {
		got, err := l.Ask()
		switch {
		case err != nil:
			return err
		case got.Status == 200:
			return nil
		case !told || !isRetry(got) || time.Since(start) > time.Minute:
			return fmt.Errorf("pod %d was answered %d, to come back after %s", pod, got.Status, got.After)
		}
		select {
		case <-time.After(got.After):
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// pair is NMI, warm, and the bare handler beside it.
type pair struct {
	ours, bare *load.Peer
	stop       func() error
}

// pair starts both. The agent's own limits do not matter unless asked for.
func (s *stage) pair(ctx context.Context, flags ...string) (pair, error) {
	ours, stop, err := s.agent(ctx, flags...)
	if err != nil {
		return pair{}, err
	}
	var keys []key
	for pod := range s.options.pods {
		keys = append(keys, key{pod, s.cluster.warmTarget(pod)})
	}
	lines, err := open(ctx, ours, keys)
	if err != nil {
		return pair{}, errors.Join(err, stop())
	}
	defer closeAll(lines)
	var group sync.WaitGroup
	errs := make([]error, len(keys))
	for i, l := range lines {
		group.Go(func() { errs[i] = s.persist(ctx, l, keys[i].pod, true) })
	}
	group.Wait()
	body, err := ours.Fetch(ctx, 0)
	if err = errors.Join(errors.Join(errs...), err); err != nil {
		return pair{}, errors.Join(fmt.Errorf("warming the cache: %w", err), stop())
	}
	bare, stopBare, err := s.bare(ctx, body)
	if err != nil {
		return pair{}, errors.Join(err, stop())
	}
	return pair{ours: ours, bare: bare, stop: func() error { return errors.Join(stop(), stopBare()) }}, nil
}

// warm measures throughput, CPU, latency and memory.
func (s *stage) warm(ctx context.Context) (rows []report.Row, err error) {
	both, err := s.pair(ctx, "--pod-request-rate=1000000", "--pod-concurrency=1000000")
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, both.stop()) }()
	var capacity float64
	for _, connections := range []int{1, 8, 64, 256} {
		s.progress(fmt.Sprintf("throughput, %d connections", connections))
		bare, ours, err := s.throughput(ctx, both, connections)
		if err != nil {
			return rows, err
		}
		name := fmt.Sprintf("warm, %d connections", connections)
		rows = append(rows,
			atLeast(name+": answers a second", bare.rate, ours.rate, thousands),
			report.Row{What: name + ": CPU for an answer", Elsewhere: bare.cpu.Spread(micros), Here: ours.cpu.Spread(micros) + ", × " + ours.cpu.Over(bare.cpu).Spread(ratio)},
			none(name+": failures", ours.failures))
		if connections == 64 {
			capacity = ours.rate.Median()
		}
	}
	rate := partOfCapacity * capacity
	s.progress(fmt.Sprintf("latency at %.0f a second", rate))
	latency, err := s.latency(ctx, both, rate)
	rows = append(rows, latency...)
	if err != nil {
		return rows, err
	}
	resident, anonymous, err := both.ours.Process.Memory()
	return append(rows,
		bounded("memory: anonymous", anonymous, mostAnonymous, "MiB"),
		bounded("memory: resident", resident, mostResident, "MiB")), err
}

// figures are those of all rounds.
type figures struct {
	rate, cpu, p99 load.Series
	failures       int
}

func (s *stage) throughput(ctx context.Context, both pair, connections int) (bare, ours figures, err error) {
	for range s.options.rounds {
		for _, side := range []struct {
			peer *load.Peer
			into *figures
		}{{both.bare, &bare}, {both.ours, &ours}} {
			got, err := side.peer.Closed(ctx, connections, s.options.round)
			if err != nil {
				return bare, ours, err
			}
			side.into.rate, side.into.cpu = append(side.into.rate, got.PerSecond), append(side.into.cpu, got.CPU)
			side.into.failures += got.Failures
		}
	}
	return bare, ours, nil
}

func (s *stage) latency(ctx context.Context, both pair, rate float64) ([]report.Row, error) {
	var bare, ours figures
	for range s.options.rounds {
		for _, side := range []struct {
			peer *load.Peer
			into *figures
		}{{both.bare, &bare}, {both.ours, &ours}} {
			got, err := side.peer.OpenLoop(ctx, load.Flow{PerSecond: rate, Connections: 64, Length: 2 * s.options.round})
			if err != nil {
				return nil, err
			}
			side.into.p99, side.into.failures = append(side.into.p99, got.Latencies.Quantile(0.99)), side.into.failures+got.Failures
		}
	}
	name := fmt.Sprintf("warm, %.0f a second", rate)
	return []report.Row{atMost(name+": p99", bare.p99, ours.p99, mostLatency, micros), none(name+": failures", ours.failures)}, nil
}

// neighbour measures one pod's latency while another floods, in turns with while
// it does not.
func (s *stage) neighbour(ctx context.Context) (rows []report.Row, err error) {
	both, err := s.pair(ctx)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, both.stop()) }()
	for _, flood := range []struct {
		name    string
		another func() string
	}{
		{"warm requests", nil},
		{"resources that nobody knows", s.unknown()},
	} {
		s.progress("a flood of " + flood.name)
		var quiet, loud load.Series
		failures := 0
		for range s.options.rounds {
			before, err := s.victim(ctx, both.ours)
			if err != nil {
				return rows, err
			}
			during, err := s.beside(ctx, both.ours, flood.another)
			if err != nil {
				return rows, err
			}
			quiet, loud = append(quiet, before.Latencies.Quantile(0.99)), append(loud, during.Latencies.Quantile(0.99))
			failures += before.Failures + during.Failures
		}
		got := loud.Over(quiet)
		name := fmt.Sprintf("neighbour of %d a second, %s", floodPerSecond, flood.name)
		rows = append(rows,
			report.Row{What: name + ": p99", Elsewhere: quiet.Spread(micros) + " alone", Here: loud.Spread(micros) + ", × " + got.Spread(ratio),
				Goal: "≤ " + ratio(mostNeighbour) + " ×", Met: got.Median() <= mostNeighbour},
			none(name+": failures", failures))
	}
	seen, err := s.seen(ctx, "neighbour")
	return append(rows, seen...), err
}

// unknown asks for another resource each time, of the flooding pod's identity.
func (s *stage) unknown() func() string {
	id := s.cluster.clientID(s.cluster.identitiesOf(0)[0])
	var n atomic.Int64
	return func() string { return tokenTarget(id, fmt.Sprintf("unknown-%d", n.Add(1))) }
}

// victim asks 200 times a second, as several of the pods do together.
func (s *stage) victim(ctx context.Context, p *load.Peer) (load.Round, error) {
	victims := *p
	victims.From = p.From[manyPods:]
	victims.Target = func(i int) string { return p.Target(manyPods + i) }
	return victims.OpenLoop(ctx, load.Flow{PerSecond: 200, Connections: 8, Length: 2 * s.options.round})
}

// beside does the same while the first pod floods.
func (s *stage) beside(ctx context.Context, p *load.Peer, another func() string) (load.Round, error) {
	flooding := *p
	flooding.From, flooding.Another = p.From[:1], another
	var flood error
	var group sync.WaitGroup
	group.Go(func() {
		_, flood = flooding.OpenLoop(ctx, load.Flow{PerSecond: floodPerSecond, Connections: 32, Length: 2 * s.options.round, Refusals: true})
	})
	out, err := s.victim(ctx, p)
	group.Wait()
	return out, errors.Join(err, flood)
}
