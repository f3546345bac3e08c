package azuresim_test

import (
	"io"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/aad-pod-identity/aad-pod-identity/internal/azuresim"
	"github.com/aad-pod-identity/aad-pod-identity/internal/azuresim/journal"
	"github.com/aad-pod-identity/aad-pod-identity/internal/azuresim/model"
	"github.com/aad-pod-identity/aad-pod-identity/internal/azuresim/settings"
	"github.com/aad-pod-identity/aad-pod-identity/internal/azuresim/timing"
)

// limited is an Azure with ARM's documented limits, on a clock of the test's.
func limited(t *testing.T, as settings.Settings) *azure {
	t.Helper()
	clock := newClock()
	as.ARM.Throttling = &settings.Throttling{}
	a := start(t, azuresim.Config{State: document(), Settings: as, Clock: clock.Now})
	a.clock = clock
	return a
}

// ask sends one request to ARM by hand, so that no SDK waits or tries again.
func (a *azure) ask(t *testing.T, method, path, body string) *http.Response {
	t.Helper()
	req := newRequest(t, method, "https://management.azure.com"+path+"?api-version=2025-04-01", body)
	req.Header.Set("Authorization", "Bearer "+mint(t, a, tenant, "https://management.azure.com/"))
	resp, err := a.Client().Do(req)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { resp.Body.Close() })
	return resp
}

const attachDemo = `{"identity":{"type":"UserAssigned","userAssignedIdentities":{"` + demoID + `":{}}}}`

func TestARMSaysHowMuchIsLeft(t *testing.T) {
	a := limited(t, settings.Settings{})
	for _, test := range []struct {
		method, path, body string
		resource           string
		reads, writes      string
	}{
		{"GET", scaleSetID, "", "Microsoft.Compute/GetVMScaleSetSubscriptionMaximum;2399,Microsoft.Compute/GetVMScaleSetResource;35", "249", ""},
		{"GET", vmID, "", "Microsoft.Compute/LowCostGetSubscriptionMaximum;23999,Microsoft.Compute/LowCostGetResource;35", "248", ""},
		{"PATCH", scaleSetID, attachDemo, "Microsoft.Compute/UpdateVMScaleSetSubscriptionMaximum;1499,Microsoft.Compute/UpdateVMScaleSetResource;11", "", "199"},
		{"PATCH", vmID, attachDemo, "Microsoft.Compute/UpdateVMSubscriptionMaximum;1499,Microsoft.Compute/UpdateVMResource;11", "", "198"},
		{"GET", scaleSetID + "-gone", "", "Microsoft.Compute/GetVMScaleSetSubscriptionMaximum;2399,Microsoft.Compute/GetVMScaleSetResource;35", "247", ""},
	} {
		resp := a.ask(t, test.method, test.path, test.body)
		got := []string{resp.Header.Get("x-ms-ratelimit-remaining-resource"), resp.Header.Get("x-ms-ratelimit-remaining-subscription-reads"), resp.Header.Get("x-ms-ratelimit-remaining-subscription-writes")}
		if diff := cmp.Diff([]string{test.resource, test.reads, test.writes}, got); diff != "" {
			t.Errorf("%s %s: %d, headers (-want +got):\n%s", test.method, test.path, resp.StatusCode, diff)
		}
	}
}

func TestPollsAreCountedToo(t *testing.T) {
	a := limited(t, settings.Settings{ARM: settings.ARM{Latency: settings.DocumentedLatency()}})
	operation := strings.TrimPrefix(a.ask(t, "PATCH", scaleSetID, attachDemo).Header.Get("Azure-AsyncOperation"), "https://management.azure.com")
	path, _, _ := strings.Cut(operation, "?")
	for range 45 {
		if resp := a.ask(t, "GET", path, ""); resp.StatusCode != http.StatusOK {
			t.Fatalf("got %d", resp.StatusCode)
		}
	}
	resp := a.ask(t, "GET", path, "")
	if resp.StatusCode != http.StatusTooManyRequests || resp.Header.Get("x-ms-ratelimit-remaining-resource") !=
		"Microsoft.Compute/GetOperationSubscriptionMaximum;14955,Microsoft.Compute/GetOperationResource;0" {
		t.Errorf("the 46th poll: %d %v", resp.StatusCode, resp.Header)
	}
}

func TestARMRefusesWhoAsksTooMuch(t *testing.T) {
	a := limited(t, settings.Settings{})
	for range 12 {
		a.ask(t, "PATCH", scaleSetID, attachDemo)
	}
	a.clock.Advance(40 * time.Second)
	resp := a.ask(t, "PATCH", scaleSetID, attachDemo)
	body, err := io.ReadAll(resp.Body)
	check(t, err)
	if resp.StatusCode != http.StatusTooManyRequests || resp.Header.Get("Retry-After") != "20" {
		t.Errorf("got %d, Retry-After %q, want the rest of the minute", resp.StatusCode, resp.Header.Get("Retry-After"))
	}
	for _, words := range []string{`"code":"OperationNotAllowed"`, "too many requests", `"code":"TooManyRequests","target":"UpdateVMScaleSetResource"`} {
		if !strings.Contains(string(body), words) {
			t.Errorf("%s does not say %q", body, words)
		}
	}
	refused := a.refusals()
	if len(refused) == 0 || refused[0].Throttle.Bucket != "UpdateVMScaleSetResource" || !refused[0].IsOwnFault() || refused[0].Principal != micObjectID {
		t.Errorf("the journal says %v", refused)
	}
	a.clock.Advance(20 * time.Second)
	if resp := a.ask(t, "PATCH", scaleSetID, attachDemo); resp.StatusCode != http.StatusOK {
		t.Errorf("after the wait: %d", resp.StatusCode)
	}
	if resp := a.ask(t, "PATCH", vmID, attachDemo); resp.StatusCode != http.StatusOK {
		t.Errorf("another resource: %d", resp.StatusCode)
	}
}

func (a *azure) refusals() []journal.Entry {
	var refused []journal.Entry
	for _, e := range a.Journal.Since(0) {
		if e.Throttle != nil {
			refused = append(refused, e)
		}
	}
	return refused
}

func TestFrontDoorCountsEachPrincipal(t *testing.T) {
	a := limited(t, settings.Settings{})
	check(t, a.State.Behave(settings.Settings{ARM: settings.ARM{Throttling: &settings.Throttling{Reads: &settings.Limit{PerMinute: 60, Burst: 2}}}}))
	a.ask(t, "GET", scaleSetID, "")
	a.ask(t, "GET", vmID, "")
	resp := a.ask(t, "GET", scaleSetID, "")
	if resp.StatusCode != http.StatusTooManyRequests || resp.Header.Get("Retry-After") != "1" || resp.Header.Get("x-ms-ratelimit-remaining-subscription-reads") != "0" {
		t.Errorf("got %d %v", resp.StatusCode, resp.Header)
	}
	if e := a.refusals()[0]; e.Code != "SubscriptionRequestsThrottled" || !e.IsOwnFault() {
		t.Errorf("the journal says %s", e)
	}
}

func TestForeignBurstIsNotOurFaultUnlessWeDoNotWait(t *testing.T) {
	a := limited(t, settings.Settings{})
	c, ctx := a.ControlClient(), t.Context()
	result, err := c.Burst(ctx, model.Burst{ScaleSet: strings.ToUpper(scaleSetID), Verb: "update", Requests: 100})
	check(t, err)
	if diff := cmp.Diff(map[string]int{"UpdateVMScaleSetResource": 0, "UpdateVMScaleSetSubscriptionMaximum": 1400}, result.Left); diff != "" {
		t.Errorf("left (-want +got):\n%s", diff)
	}
	for i, own := range []bool{false, true} {
		if resp := a.ask(t, "PATCH", scaleSetID, attachDemo); resp.StatusCode != http.StatusTooManyRequests || resp.Header.Get("Retry-After") != "60" {
			t.Errorf("got %d %v", resp.StatusCode, resp.Header)
		}
		a.clock.Advance(900 * time.Millisecond)
		if e := a.refusals()[i]; e.IsOwnFault() != own {
			t.Errorf("refusal %d: own fault %v, want %v: %s", i, e.IsOwnFault(), own, e)
		}
	}
	a.clock.Advance(time.Minute)
	if resp := a.ask(t, "PATCH", scaleSetID, attachDemo); resp.StatusCode != http.StatusOK {
		t.Errorf("after the wait: %d", resp.StatusCode)
	}
	result, err = c.Burst(ctx, model.Burst{VM: vmID, Verb: "get", Requests: 1_000_000, OnlySubscription: true})
	check(t, err)
	if diff := cmp.Diff(map[string]int{"LowCostGetSubscriptionMaximum": 0}, result.Left); diff != "" {
		t.Errorf("left (-want +got):\n%s", diff)
	}
	if resp := a.ask(t, "GET", vmID, ""); resp.StatusCode != http.StatusTooManyRequests || !strings.HasSuffix(resp.Header.Get("x-ms-ratelimit-remaining-resource"), "LowCostGetResource;36") {
		t.Errorf("got %d %v", resp.StatusCode, resp.Header)
	}
}

func TestClockFactorCompressesTheSimulatorsOwnTime(t *testing.T) {
	a := limited(t, settings.Settings{ClockFactor: 30, Seed: 7, ARM: settings.ARM{Latency: settings.DocumentedLatency()}})
	resp := a.ask(t, "PATCH", scaleSetID, attachDemo)
	if got := resp.Header.Get("Retry-After"); got != "1" {
		t.Errorf("polls every %q s, want 1", got)
	}
	a.clock.Advance(40*time.Second/30 - time.Millisecond)
	if got := a.State.Snapshot().ScaleSets[0].ProvisioningState; got != "Updating" {
		t.Errorf("before 40 s of its own it is %s", got)
	}
	a.clock.Advance(20*time.Second/30 + 2*time.Millisecond)
	if got := a.State.Snapshot().ScaleSets[0].ProvisioningState; got != "Succeeded" {
		t.Errorf("after 60 s of its own it is %s", got)
	}
	for range 12 {
		a.ask(t, "PATCH", scaleSetID, attachDemo)
	}
	if got := a.ask(t, "PATCH", scaleSetID, attachDemo).Header.Get("Retry-After"); got != "2" {
		t.Errorf("Retry-After is %q, want a minute in 2 s", got)
	}
	a.clock.Advance(2 * time.Second)
	if resp := a.ask(t, "GET", scaleSetID, ""); resp.StatusCode != http.StatusOK {
		t.Errorf("got %d", resp.StatusCode)
	}
}

func TestSettingsThroughTheControlAPI(t *testing.T) {
	a := start(t, azuresim.Config{State: document()})
	c, ctx := a.ControlClient(), t.Context()
	want := settings.Settings{ClockFactor: 2, Seed: 3, ARM: settings.ARM{
		Latency: settings.Latency{ScaleSet: timing.Range{Min: time.Second, Max: 2 * time.Second}}, Throttling: &settings.Throttling{Reads: &settings.Limit{}},
	}}
	check(t, c.Behave(ctx, want))
	got, err := c.Settings(ctx)
	check(t, err)
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("settings (-want +got):\n%s", diff)
	}
	doc, err := c.State(ctx)
	check(t, err)
	if diff := cmp.Diff(&want, doc.Settings); diff != "" {
		t.Errorf("the document's settings (-want +got):\n%s", diff)
	}
	_, err = c.Add(ctx, model.Document{Settings: &settings.Settings{ClockFactor: 5}})
	check(t, err)
	if got := a.State.Settings(); got.ClockFactor != 5 || got.ARM.Throttling != nil {
		t.Errorf("a document's settings do not replace the others: %+v", got)
	}
	check(t, c.Replace(ctx, document()))
	if got := a.State.Settings(); got.ClockFactor != 5 {
		t.Errorf("a document without settings changed them: %+v", got)
	}
}
