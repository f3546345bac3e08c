package nmi

import (
	"fmt"
	"testing"

	"k8s.io/apimachinery/pkg/types"

	"github.com/aad-pod-identity/aad-pod-identity/internal/azure/imds"
	"github.com/aad-pod-identity/aad-pod-identity/internal/nmi/resolve"
)

func TestDecisionsHoldUntilAnythingChanges(t *testing.T) {
	var d decisions
	first, second := make(chan struct{}), make(chan struct{})
	asked := question{uid: "u", selector: "app"}
	d.keep(first, asked, resolve.Choice{Several: true})
	for name, test := range map[string]struct {
		changed chan struct{}
		asked   question
		want    bool
	}{
		"the same":              {first, asked, true},
		"another pod":           {first, question{uid: "v", selector: "app"}, false},
		"another label":         {first, question{uid: "u", selector: "other"}, false},
		"another query":         {first, question{uid: "u", selector: "app", query: resolve.Query{ClientID: "c"}}, false},
		"after a change":        {second, asked, false},
		"before all was known":  {nil, asked, false},
		"the same, in the end":  {first, asked, true},
		"the other, in the end": {second, asked, false},
	} {
		t.Run(name, func(t *testing.T) {
			if got, ok := d.of(test.changed, test.asked); ok != test.want || got.Several != test.want {
				t.Errorf("known: %v, %+v", ok, got)
			}
		})
	}
	d.keep(second, question{uid: "w"}, resolve.Choice{})
	if _, ok := d.of(second, asked); ok {
		t.Error("a decision outlived a change")
	}
}

func TestDecisionsAreBounded(t *testing.T) {
	var d decisions
	changed := make(chan struct{})
	for i := range 3 * maxDecisions {
		d.keep(changed, question{uid: types.UID(fmt.Sprint(i))}, resolve.Choice{})
	}
	if len(d.known) > maxDecisions {
		t.Errorf("%d are remembered", len(d.known))
	}
}

// A change of objects is seen by the next request, also by one that asked the same
// before.
func TestADecisionFollowsItsObjects(t *testing.T) {
	s := newScene(t, 0)
	s.bind(1)
	for range 2 {
		if got, reason := s.ask(t, imds.TokenRequest{Resource: "r"}); got != "id-1" {
			t.Fatalf("got %q %s", got, reason)
		}
	}
	s.change(func() {
		s.bindings[0].Spec.AzureIdentity, s.identities = "id-2", append(s.identities, azureIdentity("ns", 2))
	})
	if got, reason := s.ask(t, imds.TokenRequest{Resource: "r"}); got != "id-2" {
		t.Errorf("got %q %s", got, reason)
	}
	s.change(func() { s.bindings = nil })
	if got, reason := s.ask(t, imds.TokenRequest{Resource: "r"}); got != "" {
		t.Errorf("got %q %s", got, reason)
	}
}
