package selfprobe_test

import (
	"context"
	"errors"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/aad-pod-identity/aad-pod-identity/internal/nmi/selfprobe"
)

// tries is a Trier whose tries go as they are written down.
type tries struct {
	results []error
	at      []time.Duration
	opened  int
	closed  int
	began   time.Time
}

func (s *tries) Try(ctx context.Context) error {
	s.at = append(s.at, time.Since(s.began))
	if len(s.results) == 0 {
		<-ctx.Done()
		return selfprobe.ErrSilent
	}
	err := s.results[0]
	s.results = s.results[1:]
	return err
}

func (s *tries) Close() error { s.closed++; return nil }

func (s *tries) open() (selfprobe.Trier, error) { s.opened++; return s, nil }

func TestKeeper(t *testing.T) {
	broken := errors.New("network is down")
	const interval = 10 * time.Second
	for name, test := range map[string]struct {
		results []error
		at      []time.Duration
		opened  int
		want    error
	}{
		"well at once":       {[]error{nil, nil, nil}, []time.Duration{0, interval, 2 * interval}, 1, nil},
		"well at last":       {[]error{selfprobe.ErrSilent, selfprobe.ErrSilent, nil}, []time.Duration{0, time.Second, 2 * time.Second}, 1, nil},
		"well, then not":     {[]error{nil, selfprobe.ErrRefused}, []time.Duration{0, interval}, 1, selfprobe.ErrRefused},
		"the link is broken": {[]error{nil, broken, nil}, []time.Duration{0, interval, interval + time.Second}, 2, nil},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s := &tries{results: test.results, began: time.Now()}
				ctx, cancel := context.WithCancel(t.Context())
				done := make(chan error, 1)
				told := make(chan error)
				k := selfprobe.NewKeeper(selfprobe.KeeperOptions{Open: s.open, Interval: interval, Tried: func(err error) { told <- err }})
				if _, err := k.State(); err == nil {
					t.Error("well before the first try")
				}
				go func() { done <- k.Run(ctx) }()
				var said error
				for range test.results {
					said = <-told
				}
				if !errors.Is(said, test.want) {
					t.Errorf("told %v", said)
				}
				if last, err := k.State(); !errors.Is(err, test.want) || last.IsZero() {
					t.Errorf("state %v, last %s", err, last)
				}
				cancel()
				if err := <-done; err != nil {
					t.Error(err)
				}
				if !slices.Equal(s.at, test.at) || s.opened != test.opened || s.closed != test.opened {
					t.Errorf("tried at %v, opened %d times, closed %d times", s.at, s.opened, s.closed)
				}
			})
		})
	}
}

func TestALinkThatCannotBeMadeIsTriedAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &tries{results: []error{nil}}
		attempts := 0
		told := make(chan error)
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		k := selfprobe.NewKeeper(selfprobe.KeeperOptions{Interval: time.Hour, Tried: func(err error) { told <- err }, Open: func() (selfprobe.Trier, error) {
			if attempts++; attempts < 3 {
				return nil, errors.New("no veth")
			}
			return s.open()
		}})
		go func() { done <- k.Run(ctx) }()
		for i := range 3 {
			if err := <-told; (err == nil) != (i == 2) {
				t.Errorf("attempt %d: %v", i, err)
			}
		}
		cancel()
		if err := <-done; err != nil || s.closed != 1 {
			t.Errorf("%v, closed %d times", err, s.closed)
		}
	})
}

// A try is bounded, and an end is not awaited for longer than it takes.
func TestATryThatHangs(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &tries{began: time.Now()}
		told := make(chan error)
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		k := selfprobe.NewKeeper(selfprobe.KeeperOptions{Open: s.open, Interval: time.Hour, Tried: func(err error) { told <- err }})
		go func() { done <- k.Run(ctx) }()
		if err := <-told; !errors.Is(err, selfprobe.ErrSilent) || time.Since(s.began) != time.Second {
			t.Errorf("%v after %s", err, time.Since(s.began))
		}
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
}
