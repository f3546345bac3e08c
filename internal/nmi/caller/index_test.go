package caller_test

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	v1 "github.com/aad-pod-identity/aad-pod-identity/api/v1"
	"github.com/aad-pod-identity/aad-pod-identity/internal/identity"
	"github.com/aad-pod-identity/aad-pod-identity/internal/nmi/caller"
	"github.com/aad-pod-identity/aad-pod-identity/internal/refusal"
)

const node = "node-a"

func pod(name string, ips ...string) *corev1.Pod {
	out := &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: name, UID: types.UID("uid-" + name), Labels: map[string]string{"l": name}},
		Spec:       corev1.PodSpec{NodeName: node, ServiceAccountName: "sa-" + name},
		Status:     corev1.PodStatus{Phase: corev1.PodRunning},
	}
	for i, ip := range ips {
		if i == 0 {
			out.Status.PodIP = ip
		}
		out.Status.PodIPs = append(out.Status.PodIPs, corev1.PodIP{IP: ip})
	}
	return out
}

func with(pod *corev1.Pod, change func(*corev1.Pod)) *corev1.Pod {
	change(pod)
	return pod
}

func index(t testing.TB, pods ...*corev1.Pod) *caller.Index {
	t.Helper()
	x := caller.NewIndex(node, 0)
	for _, pod := range pods {
		if err := x.Set(pod); err != nil {
			t.Fatal(err)
		}
	}
	return x
}

func reasonOf(err error) v1.Reason {
	if err == nil {
		return ""
	}
	return refusal.Of(err).Reason
}

func TestLookup(t *testing.T) {
	for name, test := range map[string]struct {
		pods   []*corev1.Pod
		remote string
		want   string
		reason v1.Reason
	}{
		"by its address":                {[]*corev1.Pod{pod("a", "10.0.0.1"), pod("b", "10.0.0.2")}, "10.0.0.2", "b", ""},
		"by its second address":         {[]*corev1.Pod{pod("a", "10.0.0.1", "fd00::1")}, "fd00::1", "a", ""},
		"by IPv4 mapped to IPv6":        {[]*corev1.Pod{pod("a", "10.0.0.1")}, "::ffff:10.0.0.1", "a", ""},
		"address written otherwise":     {[]*corev1.Pod{pod("a", "fd00:0:0::1")}, "fd00::1", "a", ""},
		"podIP alone":                   {[]*corev1.Pod{with(pod("a", "10.0.0.1"), func(p *corev1.Pod) { p.Status.PodIPs = nil })}, "10.0.0.1", "a", ""},
		"podIPs alone":                  {[]*corev1.Pod{with(pod("a", "10.0.0.1"), func(p *corev1.Pod) { p.Status.PodIP = "" })}, "10.0.0.1", "a", ""},
		"while init containers run":     {[]*corev1.Pod{with(pod("a", "10.0.0.1"), func(p *corev1.Pod) { p.Status.Phase = corev1.PodPending })}, "10.0.0.1", "a", ""},
		"nobody's":                      {[]*corev1.Pod{pod("a", "10.0.0.1")}, "10.0.0.9", "", v1.ReasonCallerUnknown},
		"of a pod that succeeded":       {[]*corev1.Pod{with(pod("a", "10.0.0.1"), func(p *corev1.Pod) { p.Status.Phase = corev1.PodSucceeded })}, "10.0.0.1", "", v1.ReasonCallerUnknown},
		"of a pod that failed":          {[]*corev1.Pod{with(pod("a", "10.0.0.1"), func(p *corev1.Pod) { p.Status.Phase = corev1.PodFailed })}, "10.0.0.1", "", v1.ReasonCallerUnknown},
		"of a pod in no phase":          {[]*corev1.Pod{with(pod("a", "10.0.0.1"), func(p *corev1.Pod) { p.Status.Phase = corev1.PodUnknown })}, "10.0.0.1", "", v1.ReasonCallerUnknown},
		"of the host's network":         {[]*corev1.Pod{with(pod("a", "10.0.0.1"), func(p *corev1.Pod) { p.Spec.HostNetwork = true })}, "10.0.0.1", "", v1.ReasonCallerUnknown},
		"of another node":               {[]*corev1.Pod{with(pod("a", "10.0.0.1"), func(p *corev1.Pod) { p.Spec.NodeName = "node-b" })}, "10.0.0.1", "", v1.ReasonCallerUnknown},
		"of two pods":                   {[]*corev1.Pod{pod("a", "10.0.0.1"), pod("b", "10.0.0.1")}, "10.0.0.1", "", v1.ReasonCallerAmbiguous},
		"of one pod and one that ended": {[]*corev1.Pod{pod("a", "10.0.0.1"), with(pod("b", "10.0.0.1"), func(p *corev1.Pod) { p.Status.Phase = corev1.PodSucceeded })}, "10.0.0.1", "a", ""},
		"invalid":                       {[]*corev1.Pod{pod("a", "10.0.0.1")}, "", "", v1.ReasonCallerUnknown},
	} {
		t.Run(name, func(t *testing.T) {
			var remote netip.Addr
			if test.remote != "" {
				remote = netip.MustParseAddr(test.remote)
			}
			got, err := index(t, test.pods...).Lookup(t.Context(), remote)
			if got.Name != test.want || reasonOf(err) != test.reason {
				t.Fatalf("got %q, %v", got.Name, err)
			}
			if err == nil && (got.UID != types.UID("uid-"+test.want) || got.ServiceAccount != "sa-"+test.want || got.Labels["l"] != test.want) {
				t.Errorf("got %+v", got)
			}
		})
	}
}

func TestAmbiguityNamesNoPodToTheCaller(t *testing.T) {
	_, err := index(t, pod("alpha", "10.0.0.1"), pod("beta", "10.0.0.1")).Find(netip.MustParseAddr("10.0.0.1"))
	refused := refusal.Of(err)
	if strings.Contains(refused.Message, "alpha") || refused.Err == nil || !strings.Contains(refused.Err.Error(), "ns/alpha, ns/beta") {
		t.Errorf("message %q, for the log %v", refused.Message, refused.Err)
	}
}

func TestAnAddressFollowsItsPod(t *testing.T) {
	address := netip.MustParseAddr("10.0.0.1")
	x := index(t, pod("a", "10.0.0.1"))
	for _, step := range []struct {
		name string
		do   func() error
		want string
	}{
		{"the pod moves to another address", func() error { return x.Set(pod("a", "10.0.0.2")) }, ""},
		{"another pod gets it", func() error { return x.Set(pod("b", "10.0.0.1")) }, "b"},
		{"the other pod ends", func() error {
			return x.Set(with(pod("b", "10.0.0.1"), func(p *corev1.Pod) { p.Status.Phase = corev1.PodFailed }))
		}, ""},
		{"a third gets it", func() error { return x.Set(pod("c", "10.0.0.1")) }, "c"},
		{"the third is deleted", func() error { x.Delete(identity.Key{Namespace: "ns", Name: "c"}); return nil }, ""},
		{"deleted twice", func() error { x.Delete(identity.Key{Namespace: "ns", Name: "c"}); return nil }, ""},
	} {
		if err := step.do(); err != nil {
			t.Fatal(err)
		}
		if got, _ := x.Find(address); got.Name != step.want {
			t.Fatalf("%s: got %q, want %q", step.name, got.Name, step.want)
		}
	}
}

func TestAPodWithoutAReadableAddressIsKeptOut(t *testing.T) {
	x := index(t)
	if err := x.Set(pod("a", "10.0.0.1", "not-an-ip")); err == nil {
		t.Error("accepted")
	}
	if _, err := x.Find(netip.MustParseAddr("10.0.0.1")); reasonOf(err) != v1.ReasonCallerUnknown {
		t.Errorf("got %v", err)
	}
}

func TestLookupWaitsForTheWatch(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		x := caller.NewIndex(node, 2*time.Second)
		start := time.Now()
		time.AfterFunc(time.Second, func() {
			if err := errors.Join(x.Set(pod("other", "10.0.0.8")), x.Set(pod("late", "10.0.0.1"))); err != nil {
				t.Error(err)
			}
		})
		got, err := x.Lookup(t.Context(), netip.MustParseAddr("10.0.0.1"))
		if err != nil || got.Name != "late" {
			t.Fatalf("got %q, %v", got.Name, err)
		}
		if took := time.Since(start); took != time.Second {
			t.Errorf("answered after %s, want at once on the event", took)
		}
	})
}

func TestLookupWaitsNoLonger(t *testing.T) {
	for name, test := range map[string]struct {
		cancel time.Duration
		want   time.Duration
	}{
		"than the bound":  {time.Hour, 2 * time.Second},
		"than the caller": {time.Second, time.Second},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				x := caller.NewIndex(node, 2*time.Second)
				ctx, cancel := context.WithTimeout(t.Context(), test.cancel)
				defer cancel()
				start := time.Now()
				if _, err := x.Lookup(ctx, netip.MustParseAddr("10.0.0.1")); reasonOf(err) != v1.ReasonCallerUnknown {
					t.Errorf("got %v", err)
				}
				if took := time.Since(start); took != test.want {
					t.Errorf("took %s, want %s", took, test.want)
				}
			})
		})
	}
}

func TestTrimKeepsWhatIsRead(t *testing.T) {
	full := with(pod("a", "10.0.0.1"), func(p *corev1.Pod) {
		p.Annotations = map[string]string{"big": strings.Repeat("x", 1<<10)}
		p.Spec.Containers = []corev1.Container{{Name: "c"}}
		p.ManagedFields = []metav1.ManagedFieldsEntry{{Manager: "m"}}
	})
	object, err := caller.Trim(full)
	if err != nil {
		t.Fatal(err)
	}
	trimmed := object.(*corev1.Pod)
	if trimmed.Annotations != nil || trimmed.Spec.Containers != nil || trimmed.ManagedFields != nil {
		t.Errorf("kept %+v", trimmed)
	}
	want, _ := index(t, full).Find(netip.MustParseAddr("10.0.0.1"))
	got, err := index(t, trimmed).Find(netip.MustParseAddr("10.0.0.1"))
	if err != nil || got.Key != want.Key || got.UID != want.UID || got.ServiceAccount != want.ServiceAccount {
		t.Errorf("got %+v, %v; want %+v", got, err, want)
	}
}

// Whatever came and went, the index answers as a search through the pods would.
func TestIndexIsAsGoodAsASearch(t *testing.T) {
	random := rand.New(rand.NewPCG(1, 2))
	x := index(t)
	model := map[string]*corev1.Pod{}
	for range 3000 {
		name := fmt.Sprint("p", random.IntN(6))
		if random.IntN(4) == 0 {
			delete(model, name)
			x.Delete(identity.Key{Namespace: "ns", Name: name})
		} else {
			p := pod(name, fmt.Sprint("10.0.0.", random.IntN(4)), fmt.Sprint("fd00::", random.IntN(4)))
			p.Status.Phase = []corev1.PodPhase{corev1.PodRunning, corev1.PodPending, corev1.PodSucceeded}[random.IntN(3)]
			model[name] = p
			if err := x.Set(p); err != nil {
				t.Fatal(err)
			}
		}
		address := fmt.Sprint("10.0.0.", random.IntN(4))
		want := search(model, address)
		got, err := x.Find(netip.MustParseAddr(address))
		switch {
		case len(want) == 0 && reasonOf(err) != v1.ReasonCallerUnknown,
			len(want) == 1 && (err != nil || got.Name != want[0]),
			len(want) > 1 && reasonOf(err) != v1.ReasonCallerAmbiguous:
			t.Fatalf("address %s of %v: got %q, %v", address, want, got.Name, err)
		}
	}
}

func search(pods map[string]*corev1.Pod, address string) []string {
	var out []string
	for name, p := range pods {
		alive := p.Status.Phase != corev1.PodSucceeded
		if alive && slices.ContainsFunc(p.Status.PodIPs, func(ip corev1.PodIP) bool { return ip.IP == address }) {
			out = append(out, name)
		}
	}
	return out
}

// Programs of the node ask for pods that have no address yet, such as those
// whose volumes they mount.
func TestLookupNamed(t *testing.T) {
	x := index(t, pod("running", "10.0.0.1"), pod("broken"),
		with(pod("waiting"), func(p *corev1.Pod) { p.Status.Phase = corev1.PodPending }),
		with(pod("host", "10.0.0.2"), func(p *corev1.Pod) { p.Spec.HostNetwork = true }),
		with(pod("ended", "10.0.0.3"), func(p *corev1.Pod) { p.Status.Phase = corev1.PodFailed }),
		with(pod("far", "10.0.0.4"), func(p *corev1.Pod) { p.Spec.NodeName = "node-b" }))
	x.Delete(identity.Key{Namespace: "ns", Name: "broken"})
	for name, want := range map[string]v1.Reason{
		"running": "", "waiting": "", "host": "",
		"ended": v1.ReasonCallerUnknown, "far": v1.ReasonCallerUnknown, "broken": v1.ReasonCallerUnknown, "none": v1.ReasonCallerUnknown,
	} {
		key := identity.Key{Namespace: "ns", Name: name}
		got, err := x.LookupNamed(t.Context(), key)
		if reasonOf(err) != want || err == nil && (got.Key != key || got.UID != types.UID("uid-"+name)) {
			t.Errorf("%s: got %+v, %v", name, got, err)
		}
		if again, err := x.FindNamed(key); reasonOf(err) != want || again.UID != got.UID {
			t.Errorf("%s: found %+v, %v", name, again, err)
		}
	}
	if _, err := x.Find(netip.MustParseAddr("10.0.0.2")); reasonOf(err) != v1.ReasonCallerUnknown {
		t.Errorf("a pod of the host's network is found by its address: %v", err)
	}
}

func TestLookupNamedWaitsForTheWatch(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		x := caller.NewIndex(node, time.Minute)
		time.AfterFunc(time.Second, func() {
			if err := x.Set(with(pod("late"), func(p *corev1.Pod) { p.Status.Phase = corev1.PodPending })); err != nil {
				t.Error(err)
			}
		})
		begin := time.Now()
		if _, err := x.LookupNamed(t.Context(), identity.Key{Namespace: "ns", Name: "late"}); err != nil || time.Since(begin) != time.Second {
			t.Errorf("%v after %s", err, time.Since(begin))
		}
	})
}
