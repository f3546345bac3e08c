package nmi

import (
	"context"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"sync/atomic"
	"time"
)

// probeTimeout bounds one look at the subsystems.
const probeTimeout = 3 * time.Second

// health tells the truth about the agent's subsystems when it is asked.
type health struct {
	// rules reads the redirect's rules back.
	rules func(context.Context) error
	// unsynced names what has not been read from the API server yet.
	unsynced func() []string

	kept      atomic.Bool // the redirect's rules have been in place once
	listening atomic.Bool // pods' requests are answered
	stopping  atomic.Bool // the agent was told to end
}

// check is the state of one subsystem; a nil err is well.
type check struct {
	name string
	err  error
}

func (h *health) checks(ctx context.Context) []check {
	ctx, cancel := context.WithTimeout(ctx, probeTimeout)
	defer cancel()
	out := []check{{name: "rules", err: h.rulesState(ctx)}, {name: "caches"}, {name: "listener"}}
	if missing := h.unsynced(); len(missing) > 0 {
		slices.Sort(missing)
		out[1].err = fmt.Errorf("waiting for the API server to send %s", strings.Join(missing, ", "))
	}
	switch {
	case h.stopping.Load():
		out[2].err = fmt.Errorf("the agent is ending")
	case !h.listening.Load():
		out[2].err = fmt.Errorf("not open yet")
	}
	return out
}

func (h *health) rulesState(ctx context.Context) error {
	if !h.kept.Load() {
		return fmt.Errorf("not in place yet")
	}
	return h.rules(ctx)
}

// handler serves /healthz and /readyz.
//
// /readyz is 200 if pods are served and cannot get past the agent, else 503, and
// says so of each subsystem. /healthz asks for a restart, with 503, only where
// one might help: the rules were in place and are not. Waiting for the API server
// is no reason. Its body says Active or Not Active, as it always has.
func (h *health) handler() http.Handler {
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
		case h.kept.Load() && checks[0].err != nil:
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
