package server

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"
)

func TestPatienceEnds(t *testing.T) {
	for name, test := range map[string]struct {
		do   func(p *patience, leave func())
		want error
		took time.Duration
	}{
		"when its time is up":                {func(*patience, func()) {}, context.DeadlineExceeded, time.Minute},
		"when the caller leaves":             {func(_ *patience, leave func()) { time.AfterFunc(time.Second, leave) }, context.Canceled, time.Second},
		"when the request is over":           {func(p *patience, _ func()) { time.AfterFunc(time.Second, p.end) }, context.Canceled, time.Second},
		"when it was over before one waited": {func(p *patience, _ func()) { p.end() }, context.Canceled, 0},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				parent, leave := context.WithCancel(t.Context())
				defer leave()
				start := time.Now()
				p := &patience{Context: parent, until: start.Add(time.Minute)}
				defer p.end()
				test.do(p, leave)
				if until, ok := p.Deadline(); !ok || until != start.Add(time.Minute) {
					t.Errorf("deadline %s", until)
				}
				child, cancel := context.WithCancel(p)
				defer cancel()
				<-child.Done()
				if err := p.Err(); !errors.Is(err, test.want) || time.Since(start) != test.took {
					t.Errorf("ended after %s with %v", time.Since(start), err)
				}
			})
		})
	}
}

func TestPatienceKeepsAnEarlierDeadline(t *testing.T) {
	earlier := time.Now().Add(time.Second)
	parent, cancel := context.WithDeadline(t.Context(), earlier)
	defer cancel()
	p := &patience{Context: parent, until: earlier.Add(time.Hour)}
	if got, ok := p.Deadline(); !ok || !got.Equal(earlier) {
		t.Errorf("got %s, want %s", got, earlier)
	}
}
