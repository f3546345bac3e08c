package nmi

import (
	"context"
	"strings"
	"time"

	v1 "github.com/aad-pod-identity/aad-pod-identity/api/v1"
	"github.com/aad-pod-identity/aad-pod-identity/internal/nmi/caller/link"
	"github.com/aad-pod-identity/aad-pod-identity/internal/nmi/report/nodereport"
	"github.com/aad-pod-identity/aad-pod-identity/internal/obs"
)

// lookInterval is how often the agent looks at itself.
const lookInterval = 10 * time.Second

// self is what the agent has said of itself to its log, so that it says nothing
// twice. One goroutine uses it.
type self struct {
	runner   *runner
	proof    link.Proof
	bypasses string
}

// reportNode logs what changes, and writes it to the node's report where there is
// a namespace for that.
func (r *runner) reportNode(ctx context.Context) error {
	s := &self{runner: r}
	if r.options.ReportNamespace == "" {
		for ctx.Err() == nil {
			s.facts(ctx)
			select {
			case <-ctx.Done():
			case <-time.After(lookInterval):
			}
		}
		return nil
	}
	writer, err := nodereport.New(nodereport.Options{
		Config: r.rest, Namespace: r.options.ReportNamespace, Node: r.config.Node, Facts: s.facts, Look: lookInterval, Wrote: r.wroteReport(),
	})
	if err != nil {
		return err
	}
	writer.Run(ctx)
	return nil
}

// wroteReport logs when writing begins to fail.
func (r *runner) wroteReport() func(error) {
	failing := false
	return func(err error) {
		if err != nil && !failing {
			r.log.Warn("node report is not written", "error", err)
		}
		failing = err != nil
	}
}

// facts finds out how the agent is.
func (s *self) facts(ctx context.Context) nodereport.Facts {
	r := s.runner
	out := nodereport.Facts{Version: obs.Version(), Mode: "standard", Target: r.config.Listener.String()}
	if r.config.Managed {
		out.Mode = "managed"
	}
	out.Rules, out.Unready = r.health.State(ctx)
	if r.probes != nil {
		out.Probed, _ = r.probes.State()
	}
	survey, err := r.callers.Survey()
	if err != nil {
		return out // the agent is ending
	}
	out.Proof, out.Why, out.Refused = v1.CallerProof(survey.Weakest()), survey.Why, survey.Refused
	s.sayProof(survey.Weakest(), survey.Why)
	if out.Bypasses, err = r.links.Bypasses(); err == nil {
		s.sayBypasses(out.Bypasses)
	}
	return out
}

func (s *self) sayProof(proof link.Proof, why string) {
	if proof == s.proof || proof == "" {
		return
	}
	s.proof = proof
	if proof == link.IPOnly {
		s.runner.log.Warn("pods are known by their address alone: one that can take another's gets its tokens", "why", why)
		return
	}
	s.runner.log.Info("pods are known by their links", "proof", string(proof))
}

func (s *self) sayBypasses(bypasses []string) {
	said := strings.Join(bypasses, "; ")
	if said != s.bypasses && said != "" {
		s.runner.log.Warn("pods' packets may go past the redirect, straight to the node's metadata service", "why", said)
	}
	s.bypasses = said
}
