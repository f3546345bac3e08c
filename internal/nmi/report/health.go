package report

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"sync/atomic"
	"time"
)

// probeTimeout bounds one look at the subsystems.
const probeTimeout = 3 * time.Second

// Health tells the truth about the agent's subsystems when it is asked.
type Health struct {
	// Rules reads the redirect's rules back.
	Rules func(context.Context) error
	// Unsynced names what has not been read from the API server yet, Stale what
	// it has said nothing of for longer than is allowed.
	Unsynced, Stale func() []string
	// More are asked after these, and no reason for a restart.
	More []Subsystem

	Kept      atomic.Bool // the rules have been in place once
	Listening atomic.Bool // pods' requests are answered
	Stopping  atomic.Bool // the agent was told to end
}

// Subsystem is something that must be well for pods to be served.
type Subsystem struct {
	Name string
	Err  func() error
}

// check is the state of one subsystem; a nil err is well.
type check struct {
	name string
	err  error
}

// The subsystems.
const (
	checkRules    = "rules"
	checkCaches   = "caches"
	checkListener = "listener"
	checkShutdown = "shutdown"
)

func (h *Health) checks(ctx context.Context) []check {
	ctx, cancel := context.WithTimeout(ctx, probeTimeout)
	defer cancel()
	out := []check{{checkRules, h.rulesState(ctx)}, {checkCaches, h.cachesState()}, {name: checkListener}, {name: checkShutdown}}
	if !h.Listening.Load() {
		out[2].err = errors.New("not open yet")
	}
	if h.Stopping.Load() {
		out[3].err = errors.New("the agent is ending")
	}
	for _, more := range h.More {
		out = append(out, check{more.Name, more.Err()})
	}
	return out
}

// Ready returns nil if pods are served and cannot get past the agent.
func (h *Health) Ready(ctx context.Context) error {
	_, err := h.State(ctx)
	return err
}

// State returns what is wrong with the rules, and with any subsystem; nil is
// nothing.
func (h *Health) State(ctx context.Context) (rules, all error) {
	var errs []error
	checks := h.checks(ctx)
	for _, c := range checks {
		if c.err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", c.name, c.err))
		}
	}
	return checks[0].err, errors.Join(errs...)
}

func (h *Health) rulesState(ctx context.Context) error {
	if !h.Kept.Load() {
		return errors.New("not in place yet")
	}
	return h.Rules(ctx)
}

func (h *Health) cachesState() error {
	if missing := h.Unsynced(); len(missing) > 0 {
		slices.Sort(missing)
		return fmt.Errorf("waiting for the API server to send %s", strings.Join(missing, ", "))
	}
	if stale := h.Stale(); len(stale) > 0 {
		return fmt.Errorf("the API server has said nothing for longer than --max-cache-staleness of %s", strings.Join(stale, ", "))
	}
	return nil
}

// Handler serves /healthz and /readyz.
//
// /readyz is 200 if pods are served and cannot get past the agent, else 503 with
// a line for each subsystem. /healthz asks for a restart, with 503, only where
// one might help: the rules were in place and are not. Waiting for the API server
// is no reason. Its body says Active or Not Active, as it always has. Both say
// all lines with the parameter verbose, as Kubernetes' own probes do.
func (h *Health) Handler() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /readyz", func(w http.ResponseWriter, r *http.Request) {
		checks := h.checks(r.Context())
		well := !failing(checks)
		if well && !r.URL.Query().Has("verbose") {
			reply(w, true, "ok")
			return
		}
		reply(w, well, lines("readyz", checks, well))
	})
	mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, r *http.Request) {
		checks := h.checks(r.Context())
		lost := h.Kept.Load() && checks[0].err != nil
		switch {
		case r.URL.Query().Has("verbose"):
			reply(w, !lost, lines("healthz", checks, !lost))
		case lost:
			reply(w, false, "Not Active: rules: "+checks[0].err.Error())
		case failing(checks):
			reply(w, true, "Not Active")
		default:
			reply(w, true, "Active")
		}
	})
	return mux
}

// lines say how each subsystem is, and what that makes of the probe. A subsystem
// that is not well need not fail /healthz.
func lines(probe string, checks []check, well bool) string {
	var out strings.Builder
	for _, c := range checks {
		if c.err == nil {
			fmt.Fprintf(&out, "[+]%s ok\n", c.name)
			continue
		}
		fmt.Fprintf(&out, "[-]%s failed: %s\n", c.name, strings.ReplaceAll(c.err.Error(), "\n", "; "))
	}
	verdict := "passed"
	if !well {
		verdict = "failed"
	}
	fmt.Fprintf(&out, "%s check %s\n", probe, verdict)
	return out.String()
}

func failing(checks []check) bool {
	return slices.ContainsFunc(checks, func(c check) bool { return c.err != nil })
}

func reply(w http.ResponseWriter, well bool, body string) {
	status := http.StatusOK
	if !well {
		status = http.StatusServiceUnavailable
	}
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	w.WriteHeader(status)
	_, _ = w.Write([]byte(body)) // a prober that left asks again
}
