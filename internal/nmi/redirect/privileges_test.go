package redirect_test

import (
	"context"
	"errors"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/aad-pod-identity/aad-pod-identity/internal/nmi/redirect"
	"github.com/aad-pod-identity/aad-pod-identity/internal/nmi/redirect/keeper"
	"github.com/aad-pod-identity/aad-pod-identity/test/netns"
)

// with runs f on a thread in the namespace that has some of its capabilities.
func with(n *netns.NS, keeps func(capability uint32) bool, f func() error) error {
	return n.Do(func() error {
		header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
		var before, after [2]unix.CapUserData
		if err := unix.Capget(&header, &before[0]); err != nil {
			return err
		}
		after = before
		for capability := range uint32(64) {
			if !keeps(capability) {
				after[capability/32].Effective &^= 1 << (capability % 32)
			}
		}
		if err := unix.Capset(&header, &after[0]); err != nil {
			return err
		}
		return errors.Join(f(), unix.Capset(&header, &before[0]))
	})
}

// TestWithTheCapabilityAlone: nothing else is needed, with either target.
func TestWithTheCapabilityAlone(t *testing.T) {
	eachTarget(t, func(w *world) {
		d := must2(redirect.New(redirect.Config{Link: w.link}))(w)
		w.must(with(w.node, func(c uint32) bool { return c == unix.CAP_NET_ADMIN }, func() error {
			if _, err := d.Prepare(w.Context()); err != nil {
				return err
			}
			if _, err := d.Ensure(w.Context()); err != nil {
				return err
			}
			return d.Verify(w.Context())
		}))
		w.serve(w.node, w.target, "nmi")
		w.hears(w.pod, metadata, "nmi hears "+podIP)
	})
}

func TestWithoutTheCapability(t *testing.T) {
	w := newNode(t)
	// The thread is in the namespace, so that its own is meant.
	d := must2(redirect.New(redirect.Config{}))(w)
	linked := must2(redirect.New(redirect.Config{Link: true}))(w)
	for name, call := range map[string]func(context.Context) error{
		"Ensure":  func(ctx context.Context) error { _, err := d.Ensure(ctx); return err },
		"Verify":  d.Verify,
		"Prepare": func(ctx context.Context) error { _, err := linked.Prepare(ctx); return err },
		"Delete":  func(ctx context.Context) error { _, err := d.Delete(ctx); return err },
		"Watch":   func(ctx context.Context) error { return d.Watch(ctx, func() {}) },
		"Run":     func(ctx context.Context) error { return keeper.Run(ctx, keeper.Options{Datapath: d}) },
	} {
		t.Run(name, func(t *testing.T) {
			err := with(w.node, func(c uint32) bool { return c != unix.CAP_NET_ADMIN }, func() error { return call(t.Context()) })
			if !errors.Is(err, redirect.ErrCapability) || !strings.Contains(err.Error(), "CAP_NET_ADMIN") {
				t.Errorf("got %v, want an error that names CAP_NET_ADMIN", err)
			} else if strings.Contains(err.Error(), "\n") {
				t.Errorf("got %q, want one line", err)
			}
		})
	}
}

func TestAContextThatHasEnded(t *testing.T) {
	w := newNode(t)
	d := w.datapath()
	before := generation(w)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	_, ensureErr := d.Ensure(ctx)
	_, deleteErr := d.Delete(ctx)
	for _, err := range []error{ensureErr, deleteErr, d.Verify(ctx), d.Watch(ctx, func() {})} {
		if !errors.Is(err, context.Canceled) {
			t.Errorf("got %v, want %v", err, context.Canceled)
		}
	}
	if after := generation(w); after != before {
		t.Error("the ruleset was changed")
	}
}
