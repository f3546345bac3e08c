package azuresim_test

import (
	"context"
	"encoding/json"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/aad-pod-identity/aad-pod-identity/internal/azuresim"
	"github.com/aad-pod-identity/aad-pod-identity/internal/azuresim/fault"
	"github.com/aad-pod-identity/aad-pod-identity/internal/azuresim/journal"
	"github.com/aad-pod-identity/aad-pod-identity/internal/azuresim/model"
	"github.com/aad-pod-identity/aad-pod-identity/internal/azuresim/settings"
	"github.com/aad-pod-identity/aad-pod-identity/internal/azuresim/timing"
)

// onNodes is an Azure with Demo on both nodes, on a clock of the test's.
func onNodes(t *testing.T, as settings.Settings) *azure {
	t.Helper()
	doc, clock := document(), newClock()
	doc.ScaleSets[0].UserAssigned, doc.VirtualMachines[0].UserAssigned = []string{demoID}, []string{demoID}
	a := start(t, azuresim.Config{State: doc, Settings: as, Clock: clock.Now})
	a.clock = clock
	return a
}

// get asks the node's IMDS for a path.
func (a *azure) get(t *testing.T, path string) (int, string) {
	t.Helper()
	req := newRequest(t, http.MethodGet, imdsURL+path, "")
	req.Header.Set("Metadata", "true")
	return request(t, a.Client(), req)
}

const (
	demoToken    = "/metadata/identity/oauth2/token?api-version=2018-02-01&resource=https%3A%2F%2Fvault.azure.net&client_id=" + demoClientID
	instancePath = "/metadata/instance?api-version=2021-02-01"
)

func TestIMDSKeepsItsLimitsPerNode(t *testing.T) {
	a := onNodes(t, settings.Settings{IMDS: settings.IMDS{Limits: &settings.IMDSLimits{}}})
	count := func(path string, n int) (ok int) {
		t.Helper()
		for range n {
			switch status, body := a.get(t, path); status {
			case http.StatusOK:
				ok++
			case http.StatusTooManyRequests:
				if strings.Contains(path, "identity") && strings.TrimSpace(body) != `{"error":"invalid_request","error_description":"Temporarily throttled, too many requests"}` {
					t.Errorf("429 with %s", body)
				}
			default:
				t.Errorf("got %d %s", status, body)
			}
		}
		return ok
	}
	if got := count(demoToken, 25); got != 20 {
		t.Errorf("%d of 25 token requests within a second were answered, want 20", got)
	}
	if got := count(instancePath, 7); got != 5 {
		t.Errorf("%d of 7 other requests were answered, want 5", got)
	}
	if status, _ := imdsFrom(t, a, vmAddr, demoClientID); status != http.StatusOK {
		t.Errorf("another node's: %d", status)
	}
	a.clock.Advance(time.Second)
	if got := count(demoToken, 1); got != 1 {
		t.Error("a second later it is still throttled")
	}
	want := []journal.Count{
		{Surface: "imds", Node: "node-0", Method: "GET", Status: 200, N: 26},
		{Surface: "imds", Node: "node-0", Method: "GET", Status: 429, Throttle: "imds/identity/rate", N: 5},
		{Surface: "imds", Node: "node-0", Method: "GET", Status: 429, Throttle: "imds/other/rate", N: 2},
		{Surface: "imds", Node: "node-vm", Method: "GET", Status: 200, N: 1},
	}
	got, err := a.ControlClient().Counts(t.Context())
	check(t, err)
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("counts (-want +got):\n%s", diff)
	}
}

func TestIMDSServesSoManyAtOnce(t *testing.T) {
	a := onNodes(t, settings.Settings{IMDS: settings.IMDS{Limits: &settings.IMDSLimits{}, Latency: timing.Fixed(time.Hour)}})
	ctx, leave := context.WithCancel(t.Context())
	statuses := make(chan int, 6)
	for range 6 {
		req := newRequest(t, http.MethodGet, imdsURL+demoToken, "").WithContext(ctx)
		req.Header.Set("Metadata", "true")
		go func() {
			resp, err := a.Client().Do(req)
			if err != nil {
				statuses <- 0
				return
			}
			_ = resp.Body.Close()
			statuses <- resp.StatusCode
		}()
	}
	if got := <-statuses; got != http.StatusTooManyRequests {
		t.Errorf("the sixth got %d", got)
	}
	leave()
	for range 5 {
		if got := <-statuses; got != 0 {
			t.Errorf("one of the five got %d before its time", got)
		}
	}
	most := 0
	_, err := a.Journal.WaitAfter(t.Context(), 5, func(journal.Entry) bool { return true }) // the last of them
	check(t, err)
	for _, e := range a.Journal.Since(0) {
		most = max(most, e.InFlight)
		if e.Throttle != nil && (e.Throttle.Bucket != "imds/identity/concurrent" || !e.IsOwnFault()) {
			t.Errorf("the journal says %s", e)
		}
	}
	if most != 5 {
		t.Errorf("there were %d at once, want 5", most)
	}
}

func TestIMDSLimitsCanBeSetAndFollowTheClock(t *testing.T) {
	limits := &settings.IMDSLimits{IdentityPerSecond: new(2), IdentityConcurrent: new(0)}
	a := onNodes(t, settings.Settings{ClockFactor: 10, IMDS: settings.IMDS{Limits: limits}})
	for range 3 { // a second of its own takes a tenth
		for i, want := range []int{200, 200, 429} {
			if status, body := a.get(t, demoToken); status != want {
				t.Errorf("request %d: got %d %s, want %d", i+1, status, body, want)
			}
		}
		a.clock.Advance(100 * time.Millisecond)
	}
}

func TestIMDSBeingUpdated(t *testing.T) {
	a := onNodes(t, settings.Settings{ClockFactor: 10})
	for _, status := range []int{http.StatusNotFound, http.StatusGone} {
		a.play(t, fault.Updating("node-0", status, 70*time.Second))
		a.clock.Advance(7*time.Second - time.Millisecond)
		if got, body := a.get(t, demoToken); got != status || !strings.Contains(body, "being updated") {
			t.Errorf("got %d %s, want %d", got, body, status)
		}
		if got, _ := imdsFrom(t, a, vmAddr, demoClientID); got != http.StatusOK {
			t.Errorf("another node's: got %d", got)
		}
		a.clock.Advance(time.Millisecond)
		if got, body := a.get(t, demoToken); got != http.StatusOK {
			t.Errorf("after the update: got %d %s", got, body)
		}
	}
}

func TestPlatformKeepsTokens(t *testing.T) {
	a := onNodes(t, settings.Settings{IMDS: settings.IMDS{TokenCache: true}})
	type answer struct {
		Token     string `json:"access_token"`
		ExpiresIn string `json:"expires_in"`
		ExpiresOn string `json:"expires_on"`
	}
	ask := func(path string) answer {
		t.Helper()
		var got answer
		status, body := a.get(t, path)
		if err := json.Unmarshal([]byte(body), &got); err != nil || status != http.StatusOK {
			t.Fatalf("got %d %s", status, body)
		}
		return got
	}
	first := ask(demoToken)
	a.clock.Advance(21 * time.Hour)
	if got := ask(demoToken); got.Token != first.Token || got.ExpiresOn != first.ExpiresOn || got.ExpiresIn != "10800" && got.ExpiresIn != "10799" {
		t.Errorf("21 hours later it expires in %s s, the same token: %v", got.ExpiresIn, got.Token == first.Token)
	}
	if got := ask(strings.Replace(demoToken, "vault", "other", 1)); got.Token == first.Token {
		t.Error("another resource got the same token")
	}
	bypassed := ask(demoToken + "&bypass_cache=true")
	if bypassed.Token == first.Token {
		t.Error("bypass_cache got the kept token")
	}
	if got := ask(demoToken); got.Token != bypassed.Token {
		t.Error("what was made to bypass the cache is not kept in it")
	}
	a.clock.Advance(22 * time.Hour)
	if got := ask(demoToken); got.Token == bypassed.Token {
		t.Error("a token near its end is given again")
	}
	_, err := a.ControlClient().Recreate(t.Context(), model.Identity{ID: demoID, ClientID: demoClientID})
	check(t, err)
	if status, body := a.get(t, demoToken); status != http.StatusBadRequest {
		t.Errorf("for an identity that is gone: %d %s", status, body)
	}
}
