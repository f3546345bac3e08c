package attachment_test

import (
	"net/http"
	"testing"
	"testing/synctest"
	"time"

	"sigs.k8s.io/controller-runtime/pkg/client"

	v1 "github.com/aad-pod-identity/aad-pod-identity/api/v1"
	"github.com/aad-pod-identity/aad-pod-identity/internal/azuresim/model"
)

// TestTheNextLeaderKeepsASubscriptionsWait: ARM has told one leader, of one
// resource, that the subscription is to be left alone. The next leader asks for
// another resource only when the time is over.
func TestTheNextLeaderKeepsASubscriptionsWait(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		stop := w.lead(t)
		time.Sleep(time.Second) //nolint:forbidigo // in a bubble of synctest
		if _, err := w.control.Burst(t.Context(), model.Burst{ScaleSet: w.resources[0], Verb: "update", Requests: 3000, OnlySubscription: true}); err != nil {
			t.Fatal(err)
		}
		w.assign(t, "told", w.resources[0], 0)
		time.Sleep(3 * time.Second) //nolint:forbidigo // in a bubble of synctest
		stop()
		var records v1.AzureIdentityAttachmentList
		if err := w.kube.List(t.Context(), &records, client.InNamespace("mic")); err != nil || len(records.Items) != 1 {
			t.Fatalf("got %d records, %v", len(records.Items), err)
		}
		if status := records.Items[0].Status; status.RetryAfter == nil || status.RetryScope != v1.RetryScopeSubscription {
			t.Errorf("the record says to wait until %v with %q", status.RetryAfter, status.RetryScope)
		}
		w.assign(t, "another", w.resources[1], 1)
		defer w.lead(t)()
		time.Sleep(5 * time.Minute) //nolint:forbidigo // in a bubble of synctest
		refused := 0
		for _, e := range w.sim.Journal.Since(0) {
			if e.IsOwnFault() {
				t.Errorf("our own fault: %s", e)
			}
			if e.Status == http.StatusTooManyRequests {
				refused++
			}
		}
		if refused != 1 {
			t.Errorf("ARM refused %d requests, want the one that told", refused)
		}
		for _, a := range w.assignments(t) {
			if a.Status.Status != v1.AssignedIDAssigned {
				t.Errorf("%s is %q: %v", a.Name, a.Status.Status, a.Status.Conditions)
			}
		}
	})
}
