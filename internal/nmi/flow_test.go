package nmi

import (
	"context"
	"encoding/base64"
	"errors"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	v1 "github.com/aad-pod-identity/aad-pod-identity/api/v1"
	"github.com/aad-pod-identity/aad-pod-identity/internal/audit"
	"github.com/aad-pod-identity/aad-pod-identity/internal/azure/armid"
	"github.com/aad-pod-identity/aad-pod-identity/internal/azure/imds"
	"github.com/aad-pod-identity/aad-pod-identity/internal/identity"
	"github.com/aad-pod-identity/aad-pod-identity/internal/nmi/caller"
	"github.com/aad-pod-identity/aad-pod-identity/internal/nmi/tokensource"
	"github.com/aad-pod-identity/aad-pod-identity/internal/refusal"
)

const flowPod = "10.0.0.1"

// scene is an agent among objects that a test changes as it goes.
type scene struct {
	agent *agent

	mu         sync.Mutex // protects all following fields
	identities []*v1.AzureIdentity
	bindings   []*v1.AzureIdentityBinding
	unsynced   []string
	changed    chan struct{}
	warned     []v1.Reason
	failing    map[string]error
}

func newScene(t *testing.T, wait time.Duration) *scene {
	t.Helper()
	s := &scene{changed: make(chan struct{}), failing: map[string]error{}}
	s.agent = &agent{node: nodeName, managed: true, callers: caller.NewIndex(nodeName, time.Second), objects: s, tokens: s, warnings: s, wait: wait}
	s.pod(t, "uid-1", "app")
	return s
}

func (s *scene) pod(t *testing.T, uid, label string) {
	t.Helper()
	err := s.agent.callers.Set(&corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: "pod", UID: types.UID(uid), Labels: map[string]string{v1.PodLabel: label}},
		Spec:       corev1.PodSpec{NodeName: nodeName},
		Status:     corev1.PodStatus{Phase: corev1.PodRunning, PodIP: flowPod},
	})
	if err != nil {
		t.Fatal(err)
	}
}

func (s *scene) change(do func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	do()
	close(s.changed)
	s.changed = make(chan struct{})
}

func (s *scene) bind(n int) {
	s.change(func() {
		s.identities = append(s.identities, azureIdentity("ns", n))
		s.bindings = append(s.bindings, azureBinding("ns", n, "app"))
	})
}

func (s *scene) Bindings(string) []*v1.AzureIdentityBinding {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.bindings)
}

func (s *scene) Identity(key identity.Key) *v1.AzureIdentity {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, id := range s.identities {
		if id.Name == key.Name {
			return id
		}
	}
	return nil
}

func (s *scene) HasIdentity(string, armid.ID) bool                 { return false }
func (s *scene) Assigned(identity.Key) []*v1.AzureAssignedIdentity { return nil }
func (s *scene) Exceptions(string) []*v1.AzurePodIdentityException { return nil }

func (s *scene) Changed() <-chan struct{} {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.changed
}

func (*scene) Stale() []string { return nil }

func (s *scene) Unsynced() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.unsynced)
}

func (s *scene) Warn(_ identity.Key, _ types.UID, reason v1.Reason, _ string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.warned = append(s.warned, reason)
}

// Token issues a token whose oid tells the identity.
func (s *scene) Token(_ context.Context, request tokensource.Ask) (imds.Token, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := s.failing[request.Identity.Name]; err != nil {
		return imds.Token{}, err
	}
	payload := base64.RawURLEncoding.EncodeToString([]byte(`{"oid":"object-` + request.Identity.Name + `"}`))
	return imds.NewToken("h."+payload+".s", imds.Token{ClientID: request.Identity.ClientID.String(), Resource: request.Resource}), nil
}

func (s *scene) ask(t *testing.T, request imds.TokenRequest) (string, v1.Reason) {
	t.Helper()
	record := &audit.Record{}
	who, err := s.agent.Identify(t.Context(), netip.MustParseAddr(flowPod), true, record)
	if err != nil {
		return "", refusal.Of(err).Reason
	}
	answer, err := who.Token(t.Context(), request, record)
	if err != nil {
		return "", refusal.Of(err).Reason
	}
	oid, _ := answer.Token.ObjectID()
	if want := "object-" + record.Identity.Name; oid != want {
		t.Errorf("recorded %s, issued a token for %s", record.Identity, oid)
	}
	return strings.TrimPrefix(oid, "object-"), ""
}

func TestWhatIsMissingIsWaitedFor(t *testing.T) {
	for name, test := range map[string]struct {
		meanwhile func(*testing.T, *scene)
		want      string
		reason    v1.Reason
		took      time.Duration
	}{
		"and comes": {func(_ *testing.T, s *scene) { s.bind(1) }, "id-1", "", time.Second},
		"and comes in two steps": {func(_ *testing.T, s *scene) {
			s.change(func() { s.bindings = append(s.bindings, azureBinding("ns", 1, "app")) })
			time.AfterFunc(time.Second, func() { s.change(func() { s.identities = append(s.identities, azureIdentity("ns", 1)) }) })
		}, "id-1", "", 2 * time.Second},
		"and something else comes":      {func(_ *testing.T, s *scene) { s.change(func() {}) }, "", v1.ReasonNoBinding, 4 * time.Second},
		"and never comes":               {func(*testing.T, *scene) {}, "", v1.ReasonNoBinding, 4 * time.Second},
		"and the label goes":            {func(t *testing.T, s *scene) { s.pod(t, "uid-1", ""); s.change(func() {}) }, "", v1.ReasonNotSelected, time.Second},
		"and the address changes hands": {func(t *testing.T, s *scene) { s.pod(t, "uid-2", "app"); s.bind(1) }, "", v1.ReasonCallerUnknown, time.Second},
		"and the pod goes": {func(_ *testing.T, s *scene) {
			s.agent.callers.Delete(identity.Key{Namespace: "ns", Name: "pod"})
			s.bind(1)
		}, "", v1.ReasonCallerUnknown, time.Second},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s := newScene(t, 4*time.Second)
				time.AfterFunc(time.Second, func() { test.meanwhile(t, s) })
				begin := time.Now()
				got, reason := s.ask(t, imds.TokenRequest{Resource: "r"})
				if took := time.Since(begin); got != test.want || reason != test.reason || took != test.took {
					t.Errorf("got %q, %s after %s", got, reason, took)
				}
			})
		})
	}
}

func TestNothingIsDecidedByHalfTheFacts(t *testing.T) {
	s := newScene(t, 0)
	s.bind(1)
	s.unsynced = []string{"pods"}
	if _, reason := s.ask(t, imds.TokenRequest{Resource: "r"}); reason != v1.ReasonNotReady {
		t.Errorf("got %s", reason)
	}
	s.unsynced = nil
	if got, reason := s.ask(t, imds.TokenRequest{Resource: "r"}); got != "id-1" {
		t.Errorf("got %q, %s", got, reason)
	}
}

func TestObjectIDsWhereAnIdentityCannotBeLookedAt(t *testing.T) {
	down := &refusal.Error{Reason: v1.ReasonUpstreamUnavailable}
	for name, test := range map[string]struct {
		failing map[string]error
		ask     string
		want    string
		reason  v1.Reason
	}{
		"all can":                  {nil, "OBJECT-ID-2", "id-2", ""},
		"another's cannot":         {map[string]error{"id-1": down}, "object-id-2", "id-2", ""},
		"its own cannot":           {map[string]error{"id-2": down}, "object-id-2", "", v1.ReasonUpstreamUnavailable},
		"none has it":              {nil, "object-id-9", "", v1.ReasonUnknownIdentity},
		"none has it, one cannot":  {map[string]error{"id-1": down}, "object-id-9", "", v1.ReasonUpstreamUnavailable},
		"a mistake of the agent's": {map[string]error{"id-1": errors.New("x")}, "object-id-9", "", v1.ReasonInternalError},
	} {
		t.Run(name, func(t *testing.T) {
			s := newScene(t, 0)
			s.bind(1)
			s.bind(2)
			if test.failing != nil {
				s.failing = test.failing
			}
			got, reason := s.ask(t, imds.TokenRequest{Resource: "r", ObjectID: test.ask})
			if got != test.want || reason != test.reason {
				t.Errorf("got %q, %s", got, reason)
			}
		})
	}
}

func TestWhoIsWarned(t *testing.T) {
	for name, test := range map[string]struct {
		prepare func(*testing.T, *scene)
		request imds.TokenRequest
		want    []v1.Reason
	}{
		"nobody, all is well":              {func(_ *testing.T, s *scene) { s.bind(1) }, imds.TokenRequest{}, nil},
		"nobody, the pod has no label":     {func(t *testing.T, s *scene) { s.pod(t, "uid-1", "") }, imds.TokenRequest{}, nil},
		"nobody, one of several was asked": {func(_ *testing.T, s *scene) { s.bind(1); s.bind(2) }, imds.TokenRequest{ClientID: clientID(2)}, nil},
		"nobody, upstream is down": {func(_ *testing.T, s *scene) {
			s.bind(1)
			s.failing["id-1"] = &refusal.Error{Reason: v1.ReasonUpstreamUnavailable}
		}, imds.TokenRequest{}, nil},
		"of several identities":  {func(_ *testing.T, s *scene) { s.bind(1); s.bind(2) }, imds.TokenRequest{}, []v1.Reason{v1.ReasonSeveralIdentities}},
		"of a missing binding":   {func(*testing.T, *scene) {}, imds.TokenRequest{}, []v1.Reason{v1.ReasonNoBinding}},
		"of an unknown identity": {func(_ *testing.T, s *scene) { s.bind(1) }, imds.TokenRequest{ClientID: "zz"}, []v1.Reason{v1.ReasonUnknownIdentity}},
		"of what upstream refused": {func(_ *testing.T, s *scene) {
			s.bind(1)
			s.failing["id-1"] = &refusal.Error{Reason: v1.ReasonUpstreamRefused}
		}, imds.TokenRequest{}, []v1.Reason{v1.ReasonUpstreamRefused}},
	} {
		t.Run(name, func(t *testing.T) {
			s := newScene(t, 0)
			test.prepare(t, s)
			s.ask(t, test.request)
			if !slices.Equal(s.warned, test.want) {
				t.Errorf("got %v, want %v", s.warned, test.want)
			}
		})
	}
}
