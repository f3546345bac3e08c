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
	// Unsynced names what has not been read from the API server yet.
	Unsynced func() []string
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

func (h *Health) checks(ctx context.Context) []check {
	ctx, cancel := context.WithTimeout(ctx, probeTimeout)
	defer cancel()
	out := []check{{name: "rules", err: h.rulesState(ctx)}, {name: "caches"}, {name: "listener"}}
	if missing := h.Unsynced(); len(missing) > 0 {
		slices.Sort(missing)
		out[1].err = fmt.Errorf("waiting for the API server to send %s", strings.Join(missing, ", "))
	}
	switch {
	case h.Stopping.Load():
		out[2].err = fmt.Errorf("the agent is ending")
	case !h.Listening.Load():
		out[2].err = fmt.Errorf("not open yet")
	}
	for _, more := range h.More {
		out = append(out, check{more.Name, more.Err()})
	}
	return out
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
		return fmt.Errorf("not in place yet")
	}
	return h.Rules(ctx)
}

// Handler serves /healthz and /readyz.
//
// /readyz is 200 if pods are served and cannot get past the agent, else 503, and
// says so of each subsystem. /healthz asks for a restart, with 503, only where
// one might help: the rules were in place and are not. Waiting for the API server
// is no reason. Its body says Active or Not Active, as it always has.
func (h *Health) Handler() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /readyz", func(w http.ResponseWriter, r *http.Request) {
		checks := h.checks(r.Context())
		var body strings.Builder
		for _, c := range checks {
			state := "ok"
			if c.err != nil {
				state = c.err.Error()
			}
			fmt.Fprintf(&body, "%s: %s\n", c.name, state)
		}
		reply(w, status(!failing(checks)), body.String())
	})
	mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, r *http.Request) {
		checks := h.checks(r.Context())
		switch {
		case !failing(checks):
			reply(w, http.StatusOK, "Active")
		case h.Kept.Load() && checks[0].err != nil:
			reply(w, http.StatusServiceUnavailable, "Not Active: rules: "+checks[0].err.Error())
		default:
			reply(w, http.StatusOK, "Not Active")
		}
	})
	return mux
}

func failing(checks []check) bool {
	return slices.ContainsFunc(checks, func(c check) bool { return c.err != nil })
}

func status(well bool) int {
	if well {
		return http.StatusOK
	}
	return http.StatusServiceUnavailable
}

func reply(w http.ResponseWriter, status int, body string) {
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	w.WriteHeader(status)
	_, _ = w.Write([]byte(body)) // a prober that left asks again
}
