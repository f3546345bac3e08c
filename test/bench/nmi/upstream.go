package main

import (
	"context"
	"fmt"
	"net/http"
	"net/netip"
	"sync"
	"time"

	"github.com/aad-pod-identity/aad-pod-identity/internal/azuresim"
	"github.com/aad-pod-identity/aad-pod-identity/internal/azuresim/model"
	"github.com/aad-pod-identity/aad-pod-identity/test/bench/report"
	"github.com/aad-pod-identity/aad-pod-identity/test/netns"
)

// The documented limits of the metadata service, and about how long it thinks.
const (
	limitPerSecond, limitAtOnce = 20, 5
	thinks                      = 20 * time.Millisecond
)

// upstream is the simulated metadata service of the node. What is above its
// limits gets 429, and counts.
type upstream struct {
	address string
	server  *http.Server
	serving sync.WaitGroup

	mu      sync.Mutex // protects all following fields
	times   []time.Time
	running int
	// refused counts answers 429 since the last reset, perSecond and atOnce the
	// most there were.
	refused, perSecond, atOnce int
}

func serveIMDS(ctx context.Context, ns *netns.NS, node string, c cluster) (*upstream, error) {
	set := model.ScaleSet{ID: "/subscriptions/11111111-2222-4333-8444-555555555555/resourceGroups/nodes/providers/Microsoft.Compute/virtualMachineScaleSets/bench"}
	var identities []model.Identity
	for id := range c.options.identities {
		identities = append(identities, model.Identity{ID: c.armID(id), ClientID: c.clientID(id), PrincipalID: fmt.Sprintf("cccccccc-0000-4000-8000-%012d", id)})
		set.UserAssigned = append(set.UserAssigned, c.armID(id))
	}
	sim, err := azuresim.New(azuresim.Config{State: model.Document{
		Identities: identities, ScaleSets: []model.ScaleSet{set},
		Nodes: []model.Node{{Name: node, ScaleSet: set.ID, Prefixes: []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8")}}},
	}})
	if err != nil {
		return nil, fmt.Errorf("making the metadata service: %w", err)
	}
	listener, err := ns.Listen(ctx, "tcp", "127.0.0.1:0")
	if err != nil {
		return nil, fmt.Errorf("listening for the metadata service: %w", err)
	}
	u := &upstream{address: listener.Addr().String()}
	u.server = &http.Server{Handler: u.limited(sim.IMDS()), ReadHeaderTimeout: time.Minute}
	u.serving.Go(func() { _ = u.server.Serve(listener) }) // until it is closed
	return u, nil
}

func (u *upstream) close() error {
	err := u.server.Close()
	u.serving.Wait()
	return err
}

func (u *upstream) limited(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if !u.enter(time.Now()) {
			http.Error(w, `{"error":"too_many_requests","error_description":"throttled"}`, http.StatusTooManyRequests)
			return
		}
		defer u.leave()
		timer := time.NewTimer(thinks)
		defer timer.Stop()
		<-timer.C
		next.ServeHTTP(w, r)
	})
}

func (u *upstream) enter(now time.Time) bool {
	u.mu.Lock()
	defer u.mu.Unlock()
	for len(u.times) > 0 && now.Sub(u.times[0]) >= time.Second {
		u.times = u.times[1:]
	}
	if len(u.times) >= limitPerSecond || u.running >= limitAtOnce {
		u.refused++
		return false
	}
	u.times = append(u.times, now)
	u.running++
	u.perSecond, u.atOnce = max(u.perSecond, len(u.times)), max(u.atOnce, u.running)
	return true
}

func (u *upstream) leave() {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.running--
}

// rows tells what the service saw since the last time.
func (u *upstream) rows(scenario string) []report.Row {
	u.mu.Lock()
	defer u.mu.Unlock()
	out := []report.Row{
		none(scenario+": refused by the metadata service", u.refused),
		bounded(scenario+": most requests to it in a second", float64(u.perSecond), limitPerSecond, ""),
		bounded(scenario+": most requests to it at once", float64(u.atOnce), limitAtOnce, ""),
	}
	u.refused, u.perSecond, u.atOnce = 0, 0, 0
	return out
}
