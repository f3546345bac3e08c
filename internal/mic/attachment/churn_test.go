package attachment_test

import (
	"context"
	"fmt"
	"maps"
	"math/rand/v2"
	"net/http"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"sigs.k8s.io/controller-runtime/pkg/client"

	v1 "github.com/aad-pod-identity/aad-pod-identity/api/v1"
	"github.com/aad-pod-identity/aad-pod-identity/internal/azuresim/fault"
	"github.com/aad-pod-identity/aad-pod-identity/internal/azuresim/journal"
	"github.com/aad-pod-identity/aad-pod-identity/internal/azuresim/model"
)

// TestChurn is half an hour of a busy cluster at ARM's documented limits and
// latencies, in a moment: pods come and go on scale sets and virtual machines,
// leaders are lost at any point, operations get lost, connections break, and
// others use the same subscription and the same resources. It is repeatable by
// its seed. Of the controller's own doing ARM answers 429 not once, and in the
// end every resource carries what its pods need, what others attached, and
// nothing else.
func TestChurn(t *testing.T) {
	for seed := range uint64(1) {
		t.Run(fmt.Sprint("seed ", seed), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) { churn(t, seed) })
		})
	}
}

func churn(t *testing.T, seed uint64) {
	w := newWorld(t)
	c := &churner{world: w, random: rand.New(rand.NewPCG(seed, 4)), foreign: map[string]bool{}}
	stop := w.lead(t)
	for end := time.Now().Add(30 * time.Minute); time.Now().Before(end); {
		time.Sleep(time.Duration(c.random.Int64N(int64(4 * time.Second)))) //nolint:forbidigo // in a bubble of synctest
		if c.random.IntN(60) == 0 {
			stop()
			time.Sleep(15 * time.Second) //nolint:forbidigo // in a bubble of synctest: the lease
			stop = w.lead(t)
			continue
		}
		c.step(t)
	}
	w.sim.Faults.Clear()
	time.Sleep(15 * time.Minute) //nolint:forbidigo // in a bubble of synctest: peace
	c.check(t)
	stop()
}

// churner makes trouble.
type churner struct {
	*world
	random  *rand.Rand
	pods    int
	live    int // assignments, held at what keeps the test quick
	bursts  int
	foreign map[string]bool // resource and identity that somebody else attached
}

func (c *churner) step(t *testing.T) {
	t.Helper()
	on := c.resources[c.random.IntN(len(c.resources))]
	switch dice := c.random.IntN(100); {
	case dice < 45 && c.live < 25:
		c.pods, c.live = c.pods+1, c.live+1
		c.assign(t, fmt.Sprint("pod-", c.pods), on, c.random.IntN(identities))
	case dice < 90:
		c.release(t)
	case dice < 95:
		name := fmt.Sprint("foreign-", c.random.IntN(3))
		attachment := model.Attachment{ScaleSet: on, Identity: identityID(name)}
		if isVM(on) {
			attachment = model.Attachment{VM: on, Identity: identityID(name)}
		}
		if _, err := c.sim.State.Attach(attachment); err == nil { // else an operation runs
			c.foreign[strings.ToLower(on+" "+identityID(name))] = true
		}
	case dice < 96:
		c.burst(t, on)
	default:
		c.fail(t, on)
	}
}

// release deletes one assignment.
func (c *churner) release(t *testing.T) {
	t.Helper()
	all := c.assignments(t)
	if len(all) < 10 {
		return
	}
	c.live--
	gone := all[c.random.IntN(len(all))]
	if err := c.kube.Delete(t.Context(), &gone); err != nil {
		t.Fatal(err)
	}
	c.changed(gone.Spec.NodeName)
}

// burst is another client that leaves nothing in the buckets.
func (c *churner) burst(t *testing.T, on string) {
	t.Helper()
	c.bursts++
	burst := model.Burst{ScaleSet: on, Verb: []string{"get", "update"}[c.random.IntN(2)], Requests: 1 + c.random.IntN(3000), OnlySubscription: c.random.IntN(3) == 0}
	if isVM(on) {
		burst.ScaleSet, burst.VM = "", on
	}
	if _, err := c.control.Burst(t.Context(), burst); err != nil {
		t.Fatal(err)
	}
}

// fail lets the next request of a kind go wrong.
func (c *churner) fail(t *testing.T, on string) {
	t.Helper()
	faults := []fault.Fault{
		{Match: fault.Match{Method: http.MethodPatch, Path: on}, Response: fault.Response{Drop: true}},
		{Match: fault.Match{Method: http.MethodGet, Path: on}, Response: fault.Response{Status: 503, Code: "ServerBusy", Message: "later", Headers: map[string]string{"Retry-After": "7"}}},
		{Match: fault.Match{Method: http.MethodPatch, Path: on}, Response: fault.Response{FailOperation: true, Code: "InternalOperationError", Message: "oops"}},
		{Match: fault.Match{Method: http.MethodGet, Path: "*/operations/*"}, Response: fault.Response{Status: 404, Code: "NotFound", Message: "The entity was not found."}},
		{Match: fault.Match{Method: http.MethodGet, Path: "*/operations/*"}, Response: fault.Response{Delay: fault.Duration(10 * time.Minute), Drop: true}},
	}
	chosen := faults[c.random.IntN(len(faults))]
	chosen.Match.Surface, chosen.Times = journal.ARM, 1
	if _, err := c.sim.Faults.Add(chosen); err != nil {
		t.Fatal(err)
	}
}

// check holds the end against what must be.
func (c *churner) check(t *testing.T) {
	t.Helper()
	c.checkJournal(t)
	want := maps.Clone(c.foreign)
	for _, a := range c.assignments(t) {
		if a.Status.Status != v1.AssignedIDAssigned {
			t.Errorf("%s on %s is %q: %v", a.Name, a.Spec.NodeName, a.Status.Status, a.Status.Conditions)
		}
		want[strings.ToLower(c.resourceOf(a.Spec.NodeName)+" "+a.Spec.AzureIdentityRef.Spec.ResourceID)] = true
	}
	got := map[string]bool{}
	azure := c.sim.State.Snapshot()
	for _, resource := range append(azure.ScaleSets, azure.VirtualMachines...) {
		for _, id := range resource.UserAssigned {
			got[strings.ToLower(resource.ID+" "+id)] = true
		}
	}
	for what := range want {
		if !got[what] {
			t.Errorf("missing in the end: %s", what)
		}
	}
	for what := range got {
		if !want[what] {
			t.Errorf("left behind: %s", what)
		}
	}
}

// checkJournal: no refusal is our doing, and each burst costs a probe or so.
func (c *churner) checkJournal(t *testing.T) {
	t.Helper()
	refused, patches := 0, 0
	for _, e := range c.sim.Journal.Since(0) {
		switch {
		case e.Unexpected || e.IsOwnFault():
			t.Errorf("our doing: %s", e)
		case e.Status == http.StatusTooManyRequests:
			refused++
		case e.Method == http.MethodPatch:
			patches++
		}
	}
	if refused > 3*c.bursts {
		t.Errorf("ARM refused %d requests in %d bursts of others", refused, c.bursts)
	}
	if patches < 50 || c.bursts == 0 {
		t.Errorf("only %d patches and %d bursts: too little happened", patches, c.bursts)
	}
	t.Logf("%d pods, %d requests to ARM, %d patches, %d refused in %d bursts", c.pods, len(c.sim.Journal.Since(0)), patches, refused, c.bursts)
}

// TestSlowResourcesDoNotHoldOthersUp: more resources are at work in ARM than
// there are workers.
func TestSlowResourcesDoNotHoldOthersUp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		defer w.lead(t)()
		for i, on := range w.resources {
			w.assign(t, fmt.Sprint("pod-", i), on, i%identities)
		}
		time.Sleep(5 * time.Second) //nolint:forbidigo // in a bubble of synctest
		begun := map[string]bool{}
		for _, e := range w.sim.Journal.Since(0) {
			if e.Method == http.MethodPatch && e.Status == http.StatusOK {
				begun[e.Path] = true
			}
		}
		if len(begun) != len(w.resources) {
			t.Errorf("%d of %d operations have begun, by %d workers", len(begun), len(w.resources), workers)
		}
		time.Sleep(2 * time.Minute) //nolint:forbidigo // in a bubble of synctest
		if waiting := slices.DeleteFunc(w.assignments(t), func(a v1.AzureAssignedIdentity) bool { return a.Status.Status == v1.AssignedIDAssigned }); len(waiting) > 0 {
			t.Errorf("%d are not assigned", len(waiting))
		}
	})
}

// TestTheNextLeaderGoesOnWithTheOperation: it sends nothing that was sent.
func TestTheNextLeaderGoesOnWithTheOperation(t *testing.T) {
	for name, test := range map[string]struct {
		before func(*world)
		polled bool // by the token in the record
	}{
		"which stands in the record":        {func(*world) {}, true},
		"of which nobody heard":             {func(w *world) { w.deafTo(http.MethodPatch) }, false},
		"although its first poll is missed": {func(w *world) { w.deafTo(http.MethodGet) }, true},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newWorld(t)
				stop := w.lead(t)
				test.before(w)
				w.assign(t, "pod", w.resources[0], 0)
				time.Sleep(11 * time.Second) //nolint:forbidigo // in a bubble of synctest
				stop()
				w.hear()
				defer w.lead(t)()
				time.Sleep(2 * time.Minute) //nolint:forbidigo // in a bubble of synctest
				if a := w.assignments(t)[0]; a.Status.Status != v1.AssignedIDAssigned {
					t.Errorf("it is %q: %v", a.Status.Status, a.Status.Conditions)
				}
				patches, polls := 0, 0
				for _, e := range w.sim.Journal.Since(0) {
					if e.Method == http.MethodPatch {
						patches++
					} else if strings.Contains(e.Path, "/operations/") {
						polls++
					}
				}
				if patches != 1 || (polls > 0) != test.polled {
					t.Errorf("sent %d patches and %d polls", patches, polls)
				}
				var record v1.AzureIdentityAttachmentList
				if err := w.kube.List(t.Context(), &record, client.InNamespace("mic")); err != nil || len(record.Items) != 1 {
					t.Fatalf("got %d records, %v", len(record.Items), err)
				}
				last := record.Items[0].Status.LastOperation
				if owned := record.Items[0].Spec.Owned; len(owned) != 1 || owned[0].State != v1.OwnershipOwned || last.Result == v1.OperationRunning || last.ResumeToken != "" {
					t.Errorf("the record says %+v, %+v", owned, last)
				}
			})
		})
	}
}

// TestALostLeaderAsksNothing: not of ARM, and of nobody else.
func TestALostLeaderAsksNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		stop := w.lead(t)
		w.assign(t, "pod", w.resources[0], 0)
		time.Sleep(5 * time.Second) //nolint:forbidigo // in a bubble of synctest
		stop()
		before := len(w.sim.Journal.Since(0))
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		for _, on := range w.resources {
			_, _ = w.reconciler.Reconcile(ctx, refOf(t, on))
		}
		if after := len(w.sim.Journal.Since(0)); after != before {
			t.Errorf("%d requests after the end", after-before)
		}
	})
}
