package nmi

import (
	"context"
	"fmt"

	"github.com/aad-pod-identity/aad-pod-identity/internal/nmi/report"
	"github.com/aad-pod-identity/aad-pod-identity/internal/nmi/selfprobe"
)

// prepareProbes has the redirect be tried, and the agent unready while it fails.
// A redirect that is not the real one leads nowhere, and is not tried.
func (r *runner) prepareProbes() {
	open := r.options.newProber
	if open == nil && r.options.newRedirect == nil {
		open = func() (selfprobe.Trier, error) {
			return selfprobe.Open(selfprobe.Options{Metadata: r.config.Metadata})
		}
	}
	if open == nil || r.options.Proof.ProbeInterval == 0 {
		return
	}
	r.probes = selfprobe.NewKeeper(selfprobe.KeeperOptions{
		Open: open, Interval: r.options.Proof.ProbeInterval, Tried: r.tried(r.metrics.Probed()),
	})
	r.health.More = append(r.health.More, report.Subsystem{Name: "probe", Err: r.probesState})
}

// tried counts tries, and logs when it begins to fail and when it no longer does.
func (r *runner) tried(count func(string)) func(error) {
	failing := false
	return func(err error) {
		if err == nil {
			count("answered")
			if failing {
				r.log.Info("redirect works, by a packet of the agent's own")
			}
			failing = false
			return
		}
		count("failed")
		if !failing {
			r.log.Warn("redirect does not work, by a packet of the agent's own", "error", err)
		}
		failing = true
	}
}

func (r *runner) probesState() error {
	if _, err := r.probes.State(); err != nil {
		return fmt.Errorf("a packet to %s as a pod sends it: %w", r.config.Metadata, err)
	}
	return nil
}

// runProbes begins when the rules are in place for the first time.
func (r *runner) runProbes(ctx context.Context) error {
	if r.probes == nil {
		return nil
	}
	select {
	case <-ctx.Done():
		return nil
	case <-r.kept:
	}
	if err := r.probes.Run(ctx); err != nil {
		// It is removed at the next start.
		r.log.Warn("the link for tries of the redirect stays behind", "error", err)
	}
	return nil
}
