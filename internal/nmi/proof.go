package nmi

import (
	"fmt"
	"net/netip"

	"github.com/aad-pod-identity/aad-pod-identity/internal/nmi/caller"
	"github.com/aad-pod-identity/aad-pod-identity/internal/nmi/caller/link"
	"github.com/aad-pod-identity/aad-pod-identity/internal/nmi/report"
)

// proofs are all that there are, from the strongest.
func proofs() []link.Proof { return []link.Proof{link.PerLink, link.PerPort, link.IPOnly} }

// prove opens the node's tables of links and has callers be judged by them.
func (r *runner) prove() error {
	kubenet, err := r.options.Proof.Kubenet()
	if err != nil {
		r.log.Warn("pods are taken to share a network segment", "error", err)
	}
	if r.links, err = link.Open(link.Options{Observe: r.callers.Observe}); err != nil {
		return fmt.Errorf("preparing to tell callers apart: %w", err)
	}
	count := r.metrics.Lost()
	r.callers.Prove(caller.Proofs{
		Paths: r.links, Shared: r.options.Proof.Shared, Kubenet: kubenet,
		Lost: func(address netip.Addr, cause caller.Cause) { r.lost(address, cause, count) },
	})
	for _, proof := range proofs() {
		r.metrics.Callers(string(proof), func() int { return r.proven(proof) })
	}
	r.health.More = append(r.health.More, report.Subsystem{Name: "callers", Err: r.callersState})
	return nil
}

// unprove lets go of the tables. Whoever still asks is refused.
func (r *runner) unprove() {
	if err := r.links.Close(); err != nil {
		r.log.Warn("closing the node's tables of links", "error", err)
	}
}

// lost ends the connections of an address whose link no longer proves it.
func (r *runner) lost(address netip.Addr, cause caller.Cause, count func(string)) {
	count(string(cause))
	dropped := r.connections.Drop(address)
	if cause == caller.LinkGone {
		r.log.Debug("a pod's link is gone", "address", address.String(), "connections", dropped)
		return
	}
	r.log.Warn("a pod's address may be in use by another", "address", address.String(), "cause", string(cause), "connections", dropped)
}

func (r *runner) proven(proof link.Proof) int {
	survey, err := r.callers.Survey()
	if err != nil {
		return 0 // the agent is ending
	}
	return survey.Pods[proof]
}

// callersState says what keeps pods from being told apart. The agent stays and
// refuses them, since where it ends nobody keeps its rules.
func (r *runner) callersState() error {
	survey, err := r.callers.Survey()
	switch {
	case err != nil:
		return err
	case survey.Refused > 0:
		return fmt.Errorf("%d addresses of pods cannot be told apart, and are refused: %s (--allow-network-plugin-kubenet serves them all the same)", survey.Refused, survey.Why)
	}
	return nil
}
