// Package keeper has a redirect put in place and put right again, until it is told
// to end.
//
// It knows when to look, and nothing of what is looked at: it must not learn what
// the rules are.
package keeper

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/aad-pod-identity/aad-pod-identity/internal/nmi/redirect"
)

// Watcher reports changes that may have damaged what a datapath installed.
type Watcher interface {
	// Watch calls changed once it listens, since whatever was before went
	// unseen, and then for every change that may matter. It returns when ctx
	// ends, or with the error for which it can listen no longer. It does not
	// call changed from several goroutines at once.
	Watch(ctx context.Context, changed func()) error
}

// Options of [Run].
type Options struct {
	Datapath redirect.Datapath

	// Watcher reports what to look at without delay. Nil: the interval alone.
	Watcher Watcher

	// Interval is how often everything is looked at though nothing was
	// reported. Zero: 60 s.
	Interval time.Duration

	// Retry is how long to wait after a failure, of Ensure or of the watch.
	// Zero: 1 s.
	Retry time.Duration

	// Ready is called once, when the datapath is in place. Nil: not called.
	Ready func()

	// Changed is called for what later passes had to change: repairs, links
	// that are new, connections that were forgotten. Nil: not called.
	Changed func(redirect.Change)

	// Failed is called for every failure after Ready, which Run survives. It
	// may be called by two goroutines at once. Nil: not called.
	Failed func(error)
}

func (o Options) withDefaults() (Options, error) {
	if o.Datapath == nil {
		return Options{}, errors.New("keeping the redirect: no datapath is given")
	}
	if o.Interval < 0 || o.Retry < 0 {
		return Options{}, fmt.Errorf("keeping the redirect: interval %s and retry %s must not be negative", o.Interval, o.Retry)
	}
	if o.Interval == 0 {
		o.Interval = time.Minute
	}
	if o.Retry == 0 {
		o.Retry = time.Second
	}
	if o.Ready == nil {
		o.Ready = func() {}
	}
	if o.Changed == nil {
		o.Changed = func(redirect.Change) {}
	}
	if o.Failed == nil {
		o.Failed = func(error) {}
	}
	return o, nil
}

// Run puts the datapath in place and keeps it there until ctx ends. It then
// returns nil and leaves everything as it is: a pod must not reach the node's
// identity because NMI has ended. If the datapath cannot be put in place at
// first, that is returned.
func Run(ctx context.Context, options Options) error {
	o, err := options.withDefaults()
	if err != nil {
		return err
	}
	if _, err := o.Datapath.Ensure(ctx); err != nil {
		return err
	}
	o.Ready()

	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	changed := make(chan struct{}, 1) // one that waits stands for any number
	watching := make(chan struct{})
	go func() {
		defer close(watching)
		o.watch(ctx, changed)
	}()
	o.keep(ctx, changed)
	<-watching
	return nil
}

// keep runs one pass after every report, interval and failure.
func (o Options) keep(ctx context.Context, changed <-chan struct{}) {
	timer := time.NewTimer(o.Interval)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-changed:
		case <-timer.C:
		}
		change, err := o.Datapath.Ensure(ctx)
		if ctx.Err() != nil {
			return
		}
		if !change.IsZero() {
			o.Changed(change)
		}
		if err != nil {
			o.Failed(err)
			timer.Reset(o.Retry)
			continue
		}
		timer.Reset(o.Interval)
	}
}

// watch keeps the watcher going.
func (o Options) watch(ctx context.Context, changed chan<- struct{}) {
	if o.Watcher == nil {
		return
	}
	report := func() {
		select {
		case changed <- struct{}{}:
		default:
		}
	}
	for {
		err := o.Watcher.Watch(ctx, report)
		if ctx.Err() != nil {
			return
		}
		o.Failed(fmt.Errorf("watching for changes, will begin again: %w", err))
		select {
		case <-ctx.Done():
			return
		case <-time.After(o.Retry):
		}
	}
}
