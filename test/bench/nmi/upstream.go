package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/aad-pod-identity/aad-pod-identity/internal/azuresim"
	"github.com/aad-pod-identity/aad-pod-identity/internal/azuresim/model"
	"github.com/aad-pod-identity/aad-pod-identity/internal/obs"
	"github.com/aad-pod-identity/aad-pod-identity/test/bench/report"
)

// The documented limits of the metadata service, and about how long it thinks.
const (
	limitPerSecond, limitAtOnce = 20, 5
	thinks                      = 20 * time.Millisecond
)

const (
	// imdsCommand makes this program the metadata service, a process of its own: it
	// counts a request when it comes to it, which must not wait for the pods' side.
	imdsCommand = "imds"
	imdsAddress = "127.0.0.1:2581"
	// countsPath is where it tells what it has counted since it was asked last.
	countsPath = "/counts"
)

// upstream is the simulated metadata service of the node. What is above its
// limits gets 429, and counts.
type upstream struct {
	mu      sync.Mutex // protects all following fields
	times   []time.Time
	running int
	counts  counts
}

// counts are how many requests were refused, and the most there were.
type counts struct {
	Refused   int `json:"refused"`
	PerSecond int `json:"perSecond"`
	AtOnce    int `json:"atOnce"`
}

// stateOf is an Azure whose one node has all identities.
func stateOf(node string, c cluster) model.Document {
	set := model.ScaleSet{ID: "/subscriptions/11111111-2222-4333-8444-555555555555/resourceGroups/nodes/providers/Microsoft.Compute/virtualMachineScaleSets/bench"}
	var identities []model.Identity
	for id := range c.options.identities {
		identities = append(identities, model.Identity{ID: c.armID(id), ClientID: c.clientID(id), PrincipalID: fmt.Sprintf("cccccccc-0000-4000-8000-%012d", id)})
		set.UserAssigned = append(set.UserAssigned, c.armID(id))
	}
	return model.Document{
		Identities: identities, ScaleSets: []model.ScaleSet{set},
		Nodes: []model.Node{{Name: node, ScaleSet: set.ID, Prefixes: []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8")}}},
	}
}

// startIMDS starts the metadata service of the stage's node.
func (s *stage) startIMDS(ctx context.Context) error {
	text, err := json.Marshal(stateOf(s.node.Name, s.cluster))
	if err != nil {
		return fmt.Errorf("writing the state of Azure: %w", err)
	}
	file := filepath.Join(s.dir, "azure.json")
	if err := os.WriteFile(file, text, 0o600); err != nil {
		return fmt.Errorf("writing the state of Azure: %w", err)
	}
	_, s.stopIMDS, err = s.start(ctx, imdsAddress, imdsCommand, imdsAddress, file)
	return err
}

// serveIMDS is the process of the metadata service, with the state in a file.
func serveIMDS(ctx context.Context, address, file string) error {
	text, err := os.ReadFile(file) //nolint:gosec // this program's own file
	if err != nil {
		return fmt.Errorf("reading the state of Azure: %w", err)
	}
	var state model.Document
	if err := json.Unmarshal(text, &state); err != nil {
		return fmt.Errorf("reading the state of Azure: %w", err)
	}
	sim, err := azuresim.New(azuresim.Config{State: state})
	if err != nil {
		return fmt.Errorf("making the metadata service: %w", err)
	}
	listener, err := obs.Listen(ctx, address, imdsCommand)
	if err != nil {
		return err
	}
	u := &upstream{}
	mux := http.NewServeMux()
	mux.Handle("/", u.limited(sim.IMDS()))
	mux.HandleFunc(countsPath, u.tell)
	return obs.Serve(ctx, listener, mux, time.Second)
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
		u.counts.Refused++
		return false
	}
	u.times = append(u.times, now)
	u.running++
	u.counts.PerSecond, u.counts.AtOnce = max(u.counts.PerSecond, len(u.times)), max(u.counts.AtOnce, u.running)
	return true
}

func (u *upstream) leave() {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.running--
}

// tell writes what was counted, and begins anew.
func (u *upstream) tell(w http.ResponseWriter, _ *http.Request) {
	u.mu.Lock()
	defer u.mu.Unlock()
	_, _ = fmt.Fprintf(w, `{"refused":%d,"perSecond":%d,"atOnce":%d}`, u.counts.Refused, u.counts.PerSecond, u.counts.AtOnce)
	u.counts = counts{}
}

// seen tells what the metadata service saw since the last time.
func (s *stage) seen(ctx context.Context, scenario string) ([]report.Row, error) {
	client := &http.Client{Transport: &http.Transport{DialContext: s.node.NS.DialContext, DisableKeepAlives: true}, Timeout: 10 * time.Second}
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+imdsAddress+countsPath, nil)
	if err != nil {
		return nil, fmt.Errorf("asking what the metadata service saw: %w", err)
	}
	response, err := client.Do(request)
	if err != nil {
		return nil, fmt.Errorf("asking what the metadata service saw: %w", err)
	}
	var c counts
	err = json.NewDecoder(response.Body).Decode(&c)
	if err := errors.Join(err, response.Body.Close()); err != nil {
		return nil, fmt.Errorf("asking what the metadata service saw: %w", err)
	}
	return []report.Row{
		none(scenario+": refused by the metadata service", c.Refused),
		bounded(scenario+": most requests to it in a second", float64(c.PerSecond), limitPerSecond, ""),
		bounded(scenario+": most requests to it at once", float64(c.AtOnce), limitAtOnce, ""),
	}, nil
}
