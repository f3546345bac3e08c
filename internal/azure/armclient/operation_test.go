package armclient_test

import (
	"context"
	"errors"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/aad-pod-identity/aad-pod-identity/internal/azure/armclient"
	"github.com/aad-pod-identity/aad-pod-identity/internal/azure/armid"
	"github.com/aad-pod-identity/aad-pod-identity/internal/azure/compute"
	"github.com/aad-pod-identity/aad-pod-identity/internal/azure/pace"
	"github.com/aad-pod-identity/aad-pod-identity/internal/azure/throttle"
	"github.com/aad-pod-identity/aad-pod-identity/internal/azuresim"
	"github.com/aad-pod-identity/aad-pod-identity/internal/azuresim/fault"
	"github.com/aad-pod-identity/aad-pod-identity/internal/azuresim/journal"
)

// operationPath is of the operations, as faults match it.
const operationPath = "*/operations/*"

func addDemo(t *testing.T) *compute.Patch {
	t.Helper()
	return &compute.Patch{Add: []armid.ID{user(t, "demo")}, Type: compute.TypeBoth}
}

func principal() armclient.Config {
	return armclient.Config{Cloud: "azurepubliccloud", TenantID: tenant, ClientID: appClientID, ClientSecret: secret}
}

// begun is a simulator with a slow operation under way.
func begun(t *testing.T, id string) (*azure, armclient.Running) {
	t.Helper()
	a := start(t, azuresim.Config{State: document(), ARMLatency: 50 * time.Second})
	operation, err := a.arm(t).Begin(t.Context(), ref(t, id), `"1"`, addDemo(t))
	if err != nil || operation.ResumeToken == "" || operation.After <= 0 || operation.Shown != nil {
		t.Fatalf("got %+v, %v, want one that runs", operation, err)
	}
	return a, armclient.Running{ResumeToken: operation.ResumeToken, Started: time.Now(), Add: addDemo(t).Add}
}

func (a *azure) play(t *testing.T, match fault.Match, times int, response fault.Response) {
	t.Helper()
	match.Surface = journal.ARM
	if _, err := a.Faults.Add(fault.Fault{Match: match, Times: times, Response: response}); err != nil {
		t.Fatal(err)
	}
}

// TestAnotherProcessGoesOn: the token is all that is needed.
func TestAnotherProcessGoesOn(t *testing.T) {
	eachKind(t, func(t *testing.T, id string) {
		a, running := begun(t, id)
		next := a.arm(t)
		operation, err := next.Poll(t.Context(), ref(t, id), running)
		if err != nil || operation.ResumeToken == "" || operation.After <= 0 {
			t.Fatalf("got %+v, %v, want one that runs", operation, err)
		}
		a.ahead.Add(int64(time.Minute))
		running.ResumeToken = operation.ResumeToken
		operation, err = a.arm(t).Poll(t.Context(), ref(t, id), running)
		if err != nil || operation.ResumeToken != "" || operation.Shown == nil || !operation.Shown.Has(user(t, "demo")) || operation.Shown.Updating {
			t.Errorf("got %+v, %v, want its end", operation, err)
		}
		if got := a.sent(http.MethodPatch); got != 1 {
			t.Errorf("sent %d patches", got)
		}
	})
}

func TestTheEndIsKnownWithoutALook(t *testing.T) {
	a, running := begun(t, setID)
	a.ahead.Add(int64(time.Minute))
	a.play(t, fault.Match{Method: http.MethodGet, Path: setID}, 0, fault.Response{Status: http.StatusForbidden, Code: "AuthorizationFailed", Message: "no"})
	if operation, err := a.arm(t).Poll(t.Context(), ref(t, setID), running); err != nil || operation.ResumeToken != "" || operation.Shown != nil || operation.Lost {
		t.Errorf("got %+v, %v, want an end that shows nothing", operation, err)
	}
}

func TestLostOperations(t *testing.T) {
	eachKind(t, func(t *testing.T, id string) {
		a, running := begun(t, id)
		token := running.ResumeToken
		for name, test := range map[string]struct {
			token string
			fault *fault.Response
			asked bool
		}{
			"ARM has forgotten it":                                {token: token, fault: &fault.Response{Status: http.StatusNotFound, Code: "NotFound", Message: "gone"}, asked: true},
			"ARM knows that it is gone":                           {token: token, fault: &fault.Response{Status: http.StatusGone, Code: "Gone", Message: "gone"}, asked: true},
			"the token is no token":                               {token: "what"},
			"the token is empty JSON":                             {token: "{}"},
			"the token is of something else":                      {token: strings.NewReplacer("ScaleSetsClient", "MachinesClient", "MachinesClient", "MachineScaleSetsClient").Replace(token)},
			"the token leads elsewhere":                           {token: strings.ReplaceAll(token, "management.azure.com", "evil.example")},
			"the token leads to another host that looks like ARM": {token: strings.ReplaceAll(token, "management.azure.com", "management.azure.com.evil.example")},
			"the token leads to plain HTTP":                       {token: strings.ReplaceAll(token, "https:", "http:")},
		} {
			t.Run(name, func(t *testing.T) {
				a.Faults.Clear()
				if test.fault != nil {
					a.play(t, fault.Match{Path: operationPath}, 1, *test.fault)
				}
				a.before = func(r *http.Request) error {
					if r.URL.Scheme != "https" || strings.Contains(r.URL.Host, "evil") {
						t.Errorf("sent %s", r.URL)
					}
					return nil
				}
				running.ResumeToken = test.token
				if operation, err := a.arm(t).Poll(t.Context(), ref(t, id), running); err != nil || !operation.Lost || operation.ResumeToken != "" {
					t.Errorf("got %+v, %v, want a lost one", operation, err)
				}
				if played := len(a.Faults.List()) == 1 && a.Faults.List()[0].Played == 1; played != test.asked {
					t.Errorf("ARM was asked: %v", played)
				}
			})
		}
	})
}

// TestPollFails: the operation goes on, whatever keeps us from looking.
func TestPollFails(t *testing.T) {
	for name, test := range map[string]struct {
		response fault.Response
		want     string
		after    time.Duration
	}{
		"throttled":             {fault.Response{Status: 429, Code: "TooManyRequests", Message: "slow", Headers: map[string]string{"Retry-After": "17"}}, "throttled", 17 * time.Second},
		"ARM is overloaded":     {fault.Response{Status: 503, Code: "ServerBusy", Message: "later", Headers: map[string]string{"Retry-After": "9"}}, "unavailable", 9 * time.Second},
		"ARM breaks":            {fault.Response{Status: 500, Code: "x", Message: "y"}, "unavailable", 0},
		"the connection breaks": {fault.Response{Drop: true}, "unavailable", 0},
		"no right":              {fault.Response{Status: 403, Code: "AuthorizationFailed", Message: "no"}, "denied", 0},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			a, running := begun(t, setID)
			a.play(t, fault.Match{Path: operationPath}, 0, test.response)
			client := a.arm(t)
			operation, err := client.Poll(t.Context(), ref(t, setID), running)
			if kind(err) != test.want || operation.ResumeToken != running.ResumeToken || operation.After != test.after {
				t.Errorf("got %+v, %v", operation, err)
			}
			// Over a connection that breaks, HTTP itself repeats what is safe to.
			if got := a.Faults.List()[0].Played; got != 1 && !test.response.Drop {
				t.Errorf("asked %d times", got)
			}
			a.Faults.Clear()
			a.ahead.Add(int64(time.Minute))
			operation, err = client.Poll(t.Context(), ref(t, setID), running)
			if held := test.after > 0; held && (!errors.As(err, new(*armclient.ThrottledError)) || operation.ResumeToken == "") {
				t.Errorf("got %+v, %v, want a wait as ARM asked", operation, err)
			} else if !held && (err != nil || operation.Shown == nil) {
				t.Errorf("got %+v, %v, want the end", operation, err)
			}
		})
	}
}

// hang is a transport that, once it is armed, never answers requests to ARM.
type hang struct {
	*azure
	method string
	armed  atomic.Bool
	count  atomic.Int64
	seen   chan struct{} // is told of each; with room for all
}

func (h *hang) Do(r *http.Request) (*http.Response, error) {
	if !h.armed.Load() || r.URL.Host != "management.azure.com" || r.Method != h.method {
		return h.azure.Do(r)
	}
	h.count.Add(1)
	h.seen <- struct{}{}
	<-r.Context().Done()
	return nil, r.Context().Err()
}

func TestRequestsThatHangAreCutOff(t *testing.T) {
	a, running := begun(t, setID)
	for name, test := range map[string]struct {
		method string
		ask    func(*armclient.Client) error
		tries  int64
	}{
		"a patch, once": {http.MethodPatch, func(c *armclient.Client) error {
			_, err := c.Begin(t.Context(), ref(t, setID), `"1"`, addDemo(t))
			return err
		}, 1},
		"a poll, once": {http.MethodGet, func(c *armclient.Client) error {
			operation, err := c.Poll(t.Context(), ref(t, setID), running)
			if operation.ResumeToken == "" {
				t.Error("the operation is given up")
			}
			return err
		}, 1},
		"a read, three times": {http.MethodGet, func(c *armclient.Client) error { _, err := c.Get(t.Context(), ref(t, setID)); return err }, 3},
	} {
		t.Run(name, func(t *testing.T) {
			through := &hang{azure: a, method: test.method, seen: make(chan struct{}, 9)}
			client := newClient(t, principal(), armclient.Options{RequestTimeout: 100 * time.Millisecond, Transport: through})
			for range 100 { // its own token is not what hangs here, and can take longer on a busy machine
				if _, err := client.Get(t.Context(), ref(t, setID)); err == nil {
					break
				}
			}
			through.armed.Store(true)
			if err := test.ask(client); kind(err) != "unavailable" {
				t.Errorf("got %v", err)
			}
			if got := through.count.Load(); got != test.tries {
				t.Errorf("tried %d times, want %d", got, test.tries)
			}
		})
	}
}

// TestNoRequestAfterLeadershipIsLost: the context ends at once what is in flight,
// and keeps everything else from being sent.
func TestNoRequestAfterLeadershipIsLost(t *testing.T) {
	a, running := begun(t, setID)
	ctx, lose := context.WithCancel(t.Context())
	stuck := &hang{azure: a, method: http.MethodPatch, seen: make(chan struct{}, 1)}
	stuck.armed.Store(true)
	client := newClient(t, principal(), armclient.Options{Transport: stuck})
	ended := make(chan error)
	go func() {
		_, err := client.Begin(ctx, ref(t, setID), `"1"`, addDemo(t))
		ended <- err
	}()
	<-stuck.seen
	lose()
	if err := <-ended; err == nil || errors.As(err, new(*armclient.NotStartedError)) {
		t.Errorf("got %v, want a failure that may have been carried out", err)
	}
	var after atomic.Int32
	a.before = func(*http.Request) error { after.Add(1); return nil }
	_, errGet := client.Get(ctx, ref(t, setID))
	_, errBegin := client.Begin(ctx, ref(t, setID), `"1"`, addDemo(t))
	operation, errPoll := client.Poll(ctx, ref(t, setID), running)
	if errGet == nil || errBegin == nil || errPoll == nil || operation.ResumeToken == "" || after.Load() != 0 {
		t.Errorf("sent %d requests: %v, %v, %v", after.Load(), errGet, errBegin, errPoll)
	}
}

// TestALatePatchIsFencedOff: a patch that the last leader sent, and that reaches
// ARM only after the next leader's, changes nothing, and neither the other way.
func TestALatePatchIsFencedOff(t *testing.T) {
	eachKind(t, func(t *testing.T, id string) {
		for name, nextFirst := range map[string]bool{"the next leader's comes first": true, "the last leader's comes first": false} {
			t.Run(name, func(t *testing.T) {
				a := start(t, azuresim.Config{State: document()})
				last, next := a.arm(t), a.arm(t)
				seen, err := last.Get(t.Context(), ref(t, id))
				if err != nil {
					t.Fatal(err)
				}
				late := &compute.Patch{Add: []armid.ID{user(t, "demo-2")}, Type: compute.TypeBoth}
				first, second, want := next, last, "demo"
				patches := []*compute.Patch{addDemo(t), late}
				if !nextFirst {
					first, second, want = last, next, "demo-2"
					patches = []*compute.Patch{late, addDemo(t)}
				}
				if _, err := a.update(t, first, ref(t, id), seen.ETag, patches[0]); err != nil {
					t.Fatal(err)
				}
				if _, err := second.Begin(t.Context(), ref(t, id), seen.ETag, patches[1]); kind(err) != "!precondition" {
					t.Errorf("got %v, want 412", err)
				}
				after, err := next.Get(t.Context(), ref(t, id))
				if err != nil || !after.Has(user(t, want)) || !after.Has(user(t, "mic")) || len(after.Present) != 2 {
					t.Errorf("there is %v, %v", after.Present, err)
				}
			})
		}
	})
}

// TestEveryRequestTakesAToken: the SDK's own repetitions too, and the
// controller's own tokens not.
func TestEveryRequestTakesAToken(t *testing.T) {
	a := start(t, azuresim.Config{State: document()})
	var sent []pace.Sent
	limits := unlimited()
	limits.ResourceReads = throttle.Limit{PerMinute: 12, Burst: 36} // 3 at the start
	client := newClient(t, principal(), armclient.Options{Transport: a, Limits: limits, Traffic: func(s pace.Sent) { sent = append(sent, s) }})
	a.play(t, fault.Match{Method: http.MethodGet, Path: setID}, 2, fault.Response{Status: 503, Code: "x", Message: "y"})
	if _, err := client.Get(t.Context(), ref(t, setID)); err != nil {
		t.Fatal(err)
	}
	_, err := client.Get(t.Context(), ref(t, setID))
	throttled, ok := errors.AsType[*armclient.ThrottledError](err)
	if !ok || !throttled.Own || throttled.Scope != throttle.Resource || throttled.After <= 0 || throttled.After > 5*time.Second {
		t.Errorf("got %v, want to be told to wait for the next token", err)
	}
	if _, err := client.Get(t.Context(), ref(t, vmID)); err != nil {
		t.Errorf("another resource had to wait: %v", err)
	}
	if _, err := client.Begin(t.Context(), ref(t, setID), `"1"`, addDemo(t)); err != nil {
		t.Errorf("a patch had to wait for reads: %v", err)
	}
	var got []string
	for _, s := range sent {
		word := string(s.Kind) + " " + string(s.Class) + " " + http.StatusText(s.Status)
		if s.Wait != nil {
			word += "waits"
		}
		got = append(got, word)
	}
	// The patch ends at once, and the look at its end has to wait.
	want := []string{
		"ScaleSet get Service Unavailable", "ScaleSet get Service Unavailable", "ScaleSet get OK", "ScaleSet get waits",
		"VirtualMachine get OK", "ScaleSet update OK",
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("requests (-want +got):\n%s", diff)
	}
}

// TestAReadThatFailedIsNoWait: though its repetition has to wait.
func TestAReadThatFailedIsNoWait(t *testing.T) {
	for name, test := range map[string]struct {
		response fault.Response
		want     string
	}{
		"no connection": {fault.Response{Drop: true}, "unavailable"},
		"an answer":     {fault.Response{Status: 503, Code: "x", Message: "y"}, "unavailable"},
	} {
		t.Run(name, func(t *testing.T) {
			a := start(t, azuresim.Config{State: document()})
			limits := unlimited()
			limits.ResourceReads = throttle.Limit{PerMinute: 6, Burst: 18} // 1 at the start
			client := newClient(t, principal(), armclient.Options{Transport: a, Limits: limits})
			a.play(t, fault.Match{Method: http.MethodGet, Path: setID}, 9, test.response)
			_, err := client.Get(t.Context(), ref(t, setID))
			if sent := a.sent(http.MethodGet); kind(err) != test.want || sent != 1 {
				t.Errorf("after %d reads: %s: %v", sent, kind(err), err)
			}
			if _, err := client.Get(t.Context(), ref(t, setID)); kind(err) != "throttled" {
				t.Errorf("the next read: %s: %v", kind(err), err)
			}
		})
	}
}

// TestAPatchThatMustWaitIsNotStarted: and Ready says so before.
func TestAPatchThatMustWaitIsNotStarted(t *testing.T) {
	a := start(t, azuresim.Config{State: document()})
	client := newClient(t, principal(), armclient.Options{Transport: a, Limits: throttle.Documented()})
	if err := client.Ready(ref(t, vmID), time.Time{}); err != nil {
		t.Errorf("one that was never changed: %v", err)
	}
	ready := client.Ready(ref(t, setID), time.Now())
	_, begin := client.Begin(t.Context(), ref(t, setID), `"1"`, addDemo(t))
	for name, err := range map[string]error{"throttled": ready, "!throttled": begin} {
		if wait, ok := errors.AsType[*armclient.ThrottledError](err); kind(err) != name || !ok || !wait.Own || wait.After > 15*time.Second {
			t.Errorf("got %v, want %s", err, name)
		}
	}
	if a.sent(http.MethodPatch) != 0 {
		t.Error("a patch was sent")
	}
}

// TestRefusalsKeepOthersAway: a refusal of ARM's holds what is throttled, and
// nothing more.
func TestRefusalsKeepOthersAway(t *testing.T) {
	for name, test := range map[string]struct {
		header map[string]string
		beside string // the other resource's patch
	}{
		"per resource":     {map[string]string{"Retry-After": "60", "x-ms-ratelimit-remaining-resource": "Microsoft.Compute/UpdateVMScaleSetSubscriptionMaximum;1400,Microsoft.Compute/UpdateVMScaleSetResource;0"}, "none"},
		"per subscription": {map[string]string{"Retry-After": "60", "x-ms-ratelimit-remaining-resource": "Microsoft.Compute/UpdateVMScaleSetSubscriptionMaximum;0,Microsoft.Compute/UpdateVMScaleSetResource;9"}, "!throttled"},
		"not said of what": {map[string]string{"Retry-After": "60"}, "!throttled"},
	} {
		t.Run(name, func(t *testing.T) {
			a := start(t, azuresim.Config{State: document()})
			a.play(t, fault.Match{Method: http.MethodPatch}, 1, fault.Response{Status: 429, Code: "OperationNotAllowed", Message: "slow", Headers: test.header})
			client := newClient(t, principal(), armclient.Options{Transport: a, Limits: throttle.Documented()})
			for range 3 {
				_, err := client.Begin(t.Context(), ref(t, setID), `"1"`, addDemo(t))
				if wait, ok := errors.AsType[*armclient.ThrottledError](err); !ok || wait.Own || wait.After > time.Minute || wait.After < 59*time.Second {
					t.Errorf("got %v, want a minute's wait", err)
				}
			}
			if got := a.sent(http.MethodPatch); got != 1 {
				t.Errorf("ARM was asked %d times", got)
			}
			if _, err := client.Begin(t.Context(), ref(t, vmID), `"1"`, addDemo(t)); kind(err) != test.beside {
				t.Errorf("beside it: %v, want %s", err, test.beside)
			}
			if _, err := client.Get(t.Context(), ref(t, setID)); err != nil {
				t.Errorf("reading: %v", err)
			}
		})
	}
}
