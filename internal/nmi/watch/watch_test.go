package watch

import (
	"log/slog"
	"slices"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/cache"

	v1 "github.com/aad-pod-identity/aad-pod-identity/api/v1"
	"github.com/aad-pod-identity/aad-pod-identity/internal/azure/armid"
	"github.com/aad-pod-identity/aad-pod-identity/internal/identity"
)

const resourceID = "/subscriptions/s/resourceGroups/g/providers/Microsoft.ManagedIdentity/userAssignedIdentities/Demo"

type noPods struct{}

func (noPods) Set(*corev1.Pod) error { return nil }
func (noPods) Delete(identity.Key)   {}

func unconnected(t *testing.T, assigned bool) *Store {
	t.Helper()
	s, err := New(&rest.Config{Host: "https://127.0.0.1:1"}, Options{
		Node: "node", Assigned: assigned, Pods: noPods{}, PodTransform: trim, Log: slog.New(slog.DiscardHandler),
	})
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func put(t *testing.T, informer cache.SharedIndexInformer, objects ...any) {
	t.Helper()
	for _, object := range objects {
		if err := informer.GetIndexer().Add(object); err != nil {
			t.Fatal(err)
		}
	}
}

func meta(namespace, name string) metav1.ObjectMeta {
	return metav1.ObjectMeta{Namespace: namespace, Name: name}
}

func TestAStoreThatNeverConnectedIsEmptyAndSaysSo(t *testing.T) {
	for assigned, want := range map[bool][]string{
		false: {"azureidentities", "azureidentitybindings", "azurepodidentityexceptions", "pods"},
		true:  {"azureassignedidentities", "azureidentities", "azureidentitybindings", "azurepodidentityexceptions", "pods"},
	} {
		s := unconnected(t, assigned)
		got := s.Unsynced()
		slices.Sort(got)
		if !slices.Equal(got, want) {
			t.Errorf("got %v, want %v", got, want)
		}
		key := identity.Key{Namespace: "ns", Name: "n"}
		if s.Identity(key) != nil || len(s.Bindings("x"))+len(s.Assigned(key))+len(s.Exceptions("ns")) > 0 {
			t.Error("the store holds something")
		}
	}
}

func TestBindingsAreFoundInEitherSpelling(t *testing.T) {
	s := unconnected(t, false)
	put(t, s.bindings,
		&v1.AzureIdentityBinding{ObjectMeta: meta("ns", "new"), Spec: v1.AzureIdentityBindingSpec{Selector: "app"}},
		&v1.AzureIdentityBinding{ObjectMeta: meta("ns", "old"), Spec: v1.AzureIdentityBindingSpec{LegacySelector: "app"}},
		&v1.AzureIdentityBinding{ObjectMeta: meta("ns", "both"), Spec: v1.AzureIdentityBindingSpec{Selector: "else", LegacySelector: "app"}},
		&v1.AzureIdentityBinding{ObjectMeta: meta("ns", "none")})
	for selector, want := range map[string]int{"app": 3, "else": 1, "App": 0, "": 0} {
		if got := len(s.Bindings(selector)); got != want {
			t.Errorf("selector %q: %d bindings, want %d", selector, got, want)
		}
	}
}

func TestIdentitiesAreKnownByTheirIDs(t *testing.T) {
	s := unconnected(t, false)
	put(t, s.identities,
		&v1.AzureIdentity{ObjectMeta: meta("ns", "new"), Spec: v1.AzureIdentitySpec{ClientID: "ABC", ResourceID: resourceID}},
		&v1.AzureIdentity{ObjectMeta: meta("ns", "old"), Spec: v1.AzureIdentitySpec{LegacyClientID: "old", LegacyResourceID: resourceID + "2"}},
		&v1.AzureIdentity{ObjectMeta: meta("ns", "broken"), Spec: v1.AzureIdentitySpec{ResourceID: "nonsense"}})
	id := func(text string) armid.ID {
		parsed, err := armid.Parse(text)
		if err != nil {
			t.Fatal(err)
		}
		return parsed
	}
	for name, test := range map[string]struct {
		clientID   string
		resourceID armid.ID
		want       bool
	}{
		"client ID in another case":   {"abc", armid.ID{}, true},
		"client ID in old spelling":   {"OLD", armid.ID{}, true},
		"unknown client ID":           {"zzz", armid.ID{}, false},
		"resource ID in another case": {"", id(strings.ToUpper(resourceID)), true},
		"resource ID in old spelling": {"", id(resourceID + "2"), true},
		"unknown resource ID":         {"", id(resourceID + "3"), false},
		"either":                      {"zzz", id(resourceID), true},
		"nothing":                     {"", armid.ID{}, false},
	} {
		t.Run(name, func(t *testing.T) {
			if got := s.HasIdentity(test.clientID, test.resourceID); got != test.want {
				t.Errorf("got %v", got)
			}
		})
	}
}

func TestAssignmentsAreNarrowedByTheNodesLabelWhereItFits(t *testing.T) {
	for name, test := range map[string]struct {
		options Options
		want    string
	}{
		"a node":                   {Options{Node: "aks-1"}, "nodename=aks-1"},
		"a name of 63 characters":  {Options{Node: strings.Repeat("n", 63)}, "nodename=" + strings.Repeat("n", 63)},
		"a name too long":          {Options{Node: strings.Repeat("n", 64)}, ""},
		"labels cannot be trusted": {Options{Node: "aks-1", AllNodes: true}, ""},
	} {
		t.Run(name, func(t *testing.T) {
			var list metav1.ListOptions
			test.options.assignedOnly()(&list)
			if list.LabelSelector != test.want {
				t.Errorf("got %q, want %q", list.LabelSelector, test.want)
			}
		})
	}
}

func TestAssignmentsAreFoundByPod(t *testing.T) {
	s := unconnected(t, true)
	put(t, s.assigned,
		&v1.AzureAssignedIdentity{ObjectMeta: meta("default", "a"), Spec: v1.AzureAssignedIdentitySpec{Pod: "p", PodNamespace: "ns"}},
		&v1.AzureAssignedIdentity{ObjectMeta: meta("other", "b"), Spec: v1.AzureAssignedIdentitySpec{Pod: "p", PodNamespace: "ns"}},
		&v1.AzureAssignedIdentity{ObjectMeta: meta("default", "c"), Spec: v1.AzureAssignedIdentitySpec{Pod: "p", PodNamespace: "ns2"}})
	if got := len(s.Assigned(identity.Key{Namespace: "ns", Name: "p"})); got != 2 {
		t.Errorf("%d assignments, want 2", got)
	}
}

func TestASignalWakesEveryoneWhoWaited(t *testing.T) {
	s := newSignal()
	first, second := s.wait(), s.wait()
	s.raise()
	<-first
	<-second
	select {
	case <-s.wait():
		t.Error("a wait that began after the change was woken by it")
	default:
	}
}
