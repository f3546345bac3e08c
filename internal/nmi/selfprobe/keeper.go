package selfprobe

import (
	"context"
	"errors"
	"sync"
	"time"
)

// Trier makes one try; see [Prober].
type Trier interface {
	Try(ctx context.Context) error
	Close() error
}

// KeeperOptions configure a [Keeper].
type KeeperOptions struct {
	// Open makes what tries. It is called again after a failure of its own.
	Open func() (Trier, error)
	// Interval is the time between tries; while none succeeds it is Retry, which
	// is a second if it is zero.
	Interval, Retry time.Duration
	// Timeout bounds a try; zero is a second.
	Timeout time.Duration
	// Tried is told how a try went. Nil tells nobody.
	Tried func(err error)
}

// errNotYet is the state before the first try.
var errNotYet = errors.New("not tried yet")

// Keeper tries again and again, and knows how the last try went. Use [NewKeeper].
type Keeper struct {
	options KeeperOptions

	mu   sync.Mutex // protects all following fields
	err  error
	last time.Time
}

// NewKeeper returns a keeper that has not tried yet.
func NewKeeper(options KeeperOptions) *Keeper {
	if options.Retry == 0 {
		options.Retry = time.Second
	}
	if options.Timeout == 0 {
		options.Timeout = time.Second
	}
	if options.Tried == nil {
		options.Tried = func(error) {}
	}
	return &Keeper{options: options, err: errNotYet}
}

// State returns nil if the last try succeeded, else what went wrong, and when the
// last one was that succeeded.
func (k *Keeper) State() (last time.Time, err error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.last, k.err
}

// Run tries until ctx ends, then leaves nothing behind.
func (k *Keeper) Run(ctx context.Context) error {
	var tries Trier
	for {
		var err error
		tries, err = k.step(ctx, tries)
		if ctx.Err() != nil {
			return closed(tries)
		}
		k.note(err)
		wait := k.options.Interval
		if err != nil {
			wait = k.options.Retry
		}
		select {
		case <-ctx.Done():
			return closed(tries)
		case <-time.After(wait):
		}
	}
}

// step tries once, and opens what tries if there is none. After a failure that is
// not the redirect's it is closed, to be opened anew.
func (k *Keeper) step(ctx context.Context, tries Trier) (Trier, error) {
	var err error
	if tries == nil {
		if tries, err = k.options.Open(); err != nil {
			return nil, err
		}
	}
	err = k.try(ctx, tries)
	if err == nil || errors.Is(err, ErrSilent) || errors.Is(err, ErrRefused) {
		return tries, err
	}
	return nil, errors.Join(err, tries.Close())
}

func closed(tries Trier) error {
	if tries == nil {
		return nil
	}
	return tries.Close()
}

func (k *Keeper) try(ctx context.Context, tries Trier) error {
	ctx, cancel := context.WithTimeout(ctx, k.options.Timeout)
	defer cancel()
	return tries.Try(ctx)
}

func (k *Keeper) note(err error) {
	k.mu.Lock()
	k.err = err
	if err == nil {
		k.last = time.Now()
	}
	k.mu.Unlock()
	k.options.Tried(err)
}
