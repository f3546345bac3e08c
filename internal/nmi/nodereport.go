package nmi

import (
	"context"
	"strings"
	"time"

	v1 "github.com/aad-pod-identity/aad-pod-identity/api/v1"
	"github.com/aad-pod-identity/aad-pod-identity/internal/nmi/caller/link"
	"github.com/aad-pod-identity/aad-pod-identity/internal/nmi/leave"
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

// prepareReport makes what writes the node's report, where there is a namespace
// for that.
func (r *runner) prepareReport() (err error) {
	if r.options.ReportNamespace == "" {
		return nil
	}
	s := &self{runner: r}
	r.report, err = nodereport.New(nodereport.Options{
		Config: r.rest, Namespace: r.options.ReportNamespace, Node: r.config.Node, Facts: s.facts, Look: lookInterval, Wrote: nodereport.Log(r.log),
	})
	return err
}

// reportNode logs what changes once the rules are in place, and writes it to the
// node's report if there is one.
func (r *runner) reportNode(ctx context.Context) {
	select {
	case <-r.kept:
	case <-ctx.Done():
	}
	if r.report != nil {
		r.report.Run(ctx)
		return
	}
	s := &self{runner: r}
	for ctx.Err() == nil {
		s.facts(ctx)
		select {
		case <-ctx.Done():
		case <-time.After(lookInterval):
		}
	}
}

// leave ends the agent for good, if no other will come.
func (r *runner) leave(ctx context.Context) {
	o := leave.Options{Config: r.rest, Pod: r.config.Pod, Log: r.log, Remove: func(ctx context.Context) ([]any, error) {
		removed, err := r.redirect.Delete(ctx)
		return []any{"tables", removed.Tables, "links", removed.Links, "flows", removed.Flows, "ownLink", removed.OwnLink}, err
	}}
	if r.report != nil {
		o.Report = func(ctx context.Context, reason v1.Reason, message string) error {
			return r.report.End(ctx, nodereport.End{Reason: reason, Message: message})
		}
	}
	leave.Run(ctx, o)
}

// failed says in the report what an agent leaves that never came to put all of its
// rules in place. They stay, and so do those of an agent before it.
func (r *runner) failed(ctx context.Context, why error) {
	if r.report == nil || r.health.Kept.Load() {
		return
	}
	tables, err := r.redirect.Tables()
	ctx, cancel := context.WithTimeout(ctx, leave.Timeout)
	defer cancel()
	nodereport.Log(r.log)(r.report.End(ctx, nodereport.Failed(why, err == nil && len(tables) == 0)))
}

// facts finds out how the agent is.
func (s *self) facts(ctx context.Context) nodereport.Facts {
	r := s.runner
	out := nodereport.Facts{Version: obs.Version(), Mode: "standard", Pod: r.config.Pod.Name, Placed: r.health.Kept.Load(), Target: r.config.Listener.String()}
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
