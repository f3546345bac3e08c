package caller_test

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	v1 "github.com/aad-pod-identity/aad-pod-identity/api/v1"
	"github.com/aad-pod-identity/aad-pod-identity/internal/identity"
	"github.com/aad-pod-identity/aad-pod-identity/internal/nmi/caller"
	"github.com/aad-pod-identity/aad-pod-identity/internal/nmi/caller/link"
)

// kernel is a node's links as [link.Table] tells of them: what has happened is
// announced before it is answered from.
type kernel struct {
	now     time.Time
	paths   map[netip.Addr]link.Path
	pending []link.Event
	observe func([]link.Event)
	links   int
	fails   error
}

func (k *kernel) Path(address netip.Addr) (link.Path, error) {
	events := k.pending
	k.pending = nil
	if len(events) > 0 {
		k.observe(events)
	}
	path, ok := k.paths[address]
	if !ok {
		path = link.Path{Proof: link.IPOnly}
	}
	return path, k.fails
}

func (k *kernel) Resolve(netip.Addr) error { return nil }

// veth makes a link that carries an address.
func (k *kernel) veth(address netip.Addr) int {
	k.links++
	k.paths[address] = link.Path{Proof: link.PerLink, Link: k.links, Born: k.now}
	k.pending = append(k.pending, link.Event{Kind: link.Seen, Link: k.links}, link.Event{Kind: link.Routed})
	return k.links
}

// port makes a port of a bridge behind which an address is heard.
func (k *kernel) port(address netip.Addr) int {
	k.links++
	k.heard(address, k.links, link.MAC{byte(k.links)}, k.now)
	return k.links
}

func (k *kernel) heard(address netip.Addr, port int, mac link.MAC, born time.Time) {
	k.paths[address] = link.Path{Proof: link.PerPort, Link: port, MAC: mac, Born: born}
	k.pending = append(k.pending,
		link.Event{Kind: link.Neighbour, Addr: address, MAC: mac}, link.Event{Kind: link.Port, Link: port, MAC: mac})
}

func (k *kernel) gone(index int) {
	for address, path := range k.paths {
		if path.Link == index {
			delete(k.paths, address)
		}
	}
	k.pending = append(k.pending, link.Event{Kind: link.Gone, Link: index})
}

// proving returns an index that looks at the links of a kernel.
func proving(change func(*caller.Proofs)) (*caller.Index, *kernel, *[]string) {
	k := &kernel{now: time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC), paths: map[netip.Addr]link.Path{}}
	lost := &[]string{}
	proofs := caller.Proofs{
		Paths: k, Now: func() time.Time { return k.now },
		Lost: func(address netip.Addr, cause caller.Cause) { *lost = append(*lost, fmt.Sprint(address, " ", cause)) },
	}
	if change != nil {
		change(&proofs)
	}
	x := caller.NewIndex(node, 0)
	x.Prove(proofs)
	k.observe = x.Observe
	return x, k, lost
}

// born gives a pod the times that a kubelet reports.
func born(p *corev1.Pod, started, ready time.Time) *corev1.Pod {
	p.Status.StartTime = &metav1.Time{Time: started.Truncate(time.Second)}
	p.Status.Conditions = []corev1.PodCondition{{
		Type: corev1.PodReadyToStartContainers, Status: corev1.ConditionTrue, LastTransitionTime: metav1.Time{Time: ready.Truncate(time.Second)},
	}}
	return p
}

func set(t *testing.T, x *caller.Index, pods ...*corev1.Pod) {
	t.Helper()
	for _, p := range pods {
		if err := x.Set(p); err != nil {
			t.Fatal(err)
		}
	}
}

func TestAClaimIsJudgedByItsLink(t *testing.T) {
	address := netip.MustParseAddr("10.0.0.1")
	const second = time.Second
	for name, test := range map[string]struct {
		run    func(t *testing.T, x *caller.Index, k *kernel)
		want   string
		reason v1.Reason
	}{
		"a link that came before the claim": {func(t *testing.T, x *caller.Index, k *kernel) {
			k.veth(address)
			k.now = k.now.Add(second)
			set(t, x, pod("a", "10.0.0.1"))
		}, "a", ""},
		"its link is gone": {func(t *testing.T, x *caller.Index, k *kernel) {
			l := k.veth(address)
			set(t, x, pod("a", "10.0.0.1"))
			k.gone(l)
		}, "", v1.ReasonCallerUnknown},
		"a successor's link": {func(t *testing.T, x *caller.Index, k *kernel) {
			l := k.veth(address)
			set(t, x, pod("a", "10.0.0.1"))
			k.gone(l)
			k.veth(address)
		}, "", v1.ReasonCallerUnknown},
		"a successor's link, and the old pod is changed": {func(t *testing.T, x *caller.Index, k *kernel) {
			l := k.veth(address)
			set(t, x, pod("a", "10.0.0.1"))
			k.gone(l)
			k.veth(address)
			set(t, x, with(pod("a", "10.0.0.1"), func(p *corev1.Pod) { p.Labels["new"] = "label" }))
		}, "", v1.ReasonCallerUnknown},
		"the successor is told, the old pod is not gone": {func(t *testing.T, x *caller.Index, k *kernel) {
			l := k.veth(address)
			set(t, x, pod("a", "10.0.0.1"))
			k.gone(l)
			k.veth(address)
			k.now = k.now.Add(second)
			set(t, x, pod("b", "10.0.0.1"))
		}, "b", ""},
		"a new pod of the same name": {func(t *testing.T, x *caller.Index, k *kernel) {
			l := k.veth(address)
			set(t, x, pod("a", "10.0.0.1"))
			k.gone(l)
			k.veth(address)
			k.now = k.now.Add(second)
			set(t, x, with(pod("a", "10.0.0.1"), func(p *corev1.Pod) { p.UID = "another" }))
		}, "a", ""},
		"the same pod's network was made anew": {func(t *testing.T, x *caller.Index, k *kernel) {
			l := k.veth(address)
			set(t, x, born(pod("a", "10.0.0.1"), k.now, k.now))
			k.gone(l)
			k.now = k.now.Add(time.Minute)
			k.veth(address)
			k.now = k.now.Add(second)
			set(t, x, born(pod("a", "10.0.0.1"), k.now.Add(-2*time.Minute), k.now))
		}, "a", ""},
		"learned late, of a pod whose link was another": {func(t *testing.T, x *caller.Index, k *kernel) {
			began := k.now
			k.now = k.now.Add(10 * second)
			k.veth(address)
			k.now = k.now.Add(second)
			set(t, x, born(pod("a", "10.0.0.1"), began, began.Add(second)))
		}, "", v1.ReasonCallerUnknown},
		"learned late, of the pod whose link it is": {func(t *testing.T, x *caller.Index, k *kernel) {
			began := k.now
			k.veth(address)
			k.now = k.now.Add(10 * second)
			set(t, x, born(pod("a", "10.0.0.1"), began, began.Add(second)))
		}, "a", ""},
		"a link from before the pod's time": {func(t *testing.T, x *caller.Index, k *kernel) {
			k.veth(address)
			k.now = k.now.Add(10 * second)
			set(t, x, born(pod("a", "10.0.0.1"), k.now, k.now))
		}, "", v1.ReasonCallerMismatch},
		"a link that another pod is tied to": {func(t *testing.T, x *caller.Index, k *kernel) {
			other := netip.MustParseAddr("10.0.0.2")
			l := k.port(other)
			set(t, x, pod("b", "10.0.0.2"), pod("a", "10.0.0.1"))
			k.heard(address, l, link.MAC{9}, k.now)
		}, "", v1.ReasonCallerMismatch},
		"nobody knows now which port": {func(t *testing.T, x *caller.Index, k *kernel) {
			k.paths[address] = link.Path{Proof: link.PerPort}
			set(t, x, pod("a", "10.0.0.1"))
		}, "", v1.ReasonCallerUnknown},
		"from another port": {func(t *testing.T, x *caller.Index, k *kernel) {
			k.port(address)
			set(t, x, pod("a", "10.0.0.1"))
			k.port(address)
		}, "", v1.ReasonCallerMismatch},
		"from another port, with its MAC": {func(t *testing.T, x *caller.Index, k *kernel) {
			l := k.port(address)
			set(t, x, pod("a", "10.0.0.1"))
			k.heard(address, l+1, link.MAC{byte(l)}, k.now)
		}, "", v1.ReasonCallerMismatch},
		"from its own port, a moment after from another": {func(t *testing.T, x *caller.Index, k *kernel) {
			l := k.port(address)
			set(t, x, pod("a", "10.0.0.1"))
			k.heard(address, l+1, link.MAC{byte(l)}, k.now)
			k.heard(address, l, link.MAC{byte(l)}, k.now)
			k.now = k.now.Add(time.Minute)
		}, "", v1.ReasonCallerMismatch},
		"long after from another": {func(t *testing.T, x *caller.Index, k *kernel) {
			l := k.port(address)
			set(t, x, pod("a", "10.0.0.1"))
			k.heard(address, l+1, link.MAC{byte(l)}, k.now)
			k.heard(address, l, link.MAC{byte(l)}, k.now)
			_, _ = x.Find(address)
			k.now = k.now.Add(3 * time.Minute)
		}, "a", ""},
		"more was announced than was read": {func(t *testing.T, x *caller.Index, k *kernel) {
			k.port(address)
			set(t, x, pod("a", "10.0.0.1"))
			k.pending = append(k.pending, link.Event{Kind: link.Missed})
		}, "", v1.ReasonCallerMismatch},
		"the same, on a link of its own": {func(t *testing.T, x *caller.Index, k *kernel) {
			k.veth(address)
			set(t, x, pod("a", "10.0.0.1"))
			k.pending = append(k.pending, link.Event{Kind: link.Missed})
		}, "a", ""},
		"without any link": {func(t *testing.T, x *caller.Index, _ *kernel) { set(t, x, pod("a", "10.0.0.1")) }, "a", ""},
		"its route has gone elsewhere": {func(t *testing.T, x *caller.Index, k *kernel) {
			k.veth(address)
			set(t, x, pod("a", "10.0.0.1"))
			k.paths[address] = link.Path{Proof: link.IPOnly}
		}, "", v1.ReasonCallerMismatch},
		"on a shared segment": {func(t *testing.T, x *caller.Index, k *kernel) {
			k.paths[address] = link.Path{Proof: link.IPOnly, Shared: true}
			set(t, x, pod("a", "10.0.0.1"))
		}, "", v1.ReasonCallerUnproven},
		"links that cannot be read": {func(t *testing.T, x *caller.Index, k *kernel) {
			k.veth(address)
			set(t, x, pod("a", "10.0.0.1"))
			k.fails = errors.New("closed")
		}, "", v1.ReasonNotReady},
	} {
		t.Run(name, func(t *testing.T) {
			x, k, _ := proving(nil)
			test.run(t, x, k)
			got, err := x.Find(address)
			if got.Name != test.want || reasonOf(err) != test.reason {
				t.Errorf("got %q, %v", got.Name, err)
			}
		})
	}
}

// What the contract's flag allows, and what the kubelet says.
func TestPodsThatShareASegment(t *testing.T) {
	address := netip.MustParseAddr("10.0.0.1")
	for name, test := range map[string]struct {
		path            link.Path
		shared, kubenet bool
		reason          v1.Reason
	}{
		"shared, allowed":              {link.Path{Proof: link.IPOnly, Shared: true}, true, false, ""},
		"kubenet, nothing shown":       {link.Path{Proof: link.IPOnly}, false, true, v1.ReasonCallerUnproven},
		"kubenet, allowed":             {link.Path{Proof: link.IPOnly}, true, true, ""},
		"kubenet, with ports":          {link.Path{Proof: link.PerPort, Link: 1}, false, true, ""},
		"no proof, no shared segment":  {link.Path{Proof: link.IPOnly}, false, false, ""},
		"a link of the pod's, allowed": {link.Path{Proof: link.PerLink, Link: 1}, true, false, ""},
	} {
		t.Run(name, func(t *testing.T) {
			x, k, _ := proving(func(p *caller.Proofs) { p.Shared, p.Kubenet = test.shared, test.kubenet })
			k.paths[address] = test.path
			set(t, x, pod("a", "10.0.0.1", "fd00::1"))
			if _, err := x.Find(address); reasonOf(err) != test.reason {
				t.Errorf("got %v", err)
			}
			survey, err := x.Survey()
			if err != nil || survey.Weakest() != test.path.Proof || (survey.Refused > 0) != (test.reason != "") {
				t.Errorf("surveyed %+v, %v", survey, err)
			}
		})
	}
	empty, _, _ := proving(nil)
	if survey, err := empty.Survey(); err != nil || survey.Weakest() != "" {
		t.Errorf("without pods: %+v, %v", survey, err)
	}
}

// Everything that a link loses is told, so that connections end with it.
func TestWhatIsLostIsTold(t *testing.T) {
	x, k, lost := proving(nil)
	one, two, three := netip.MustParseAddr("10.0.0.1"), netip.MustParseAddr("10.0.0.2"), netip.MustParseAddr("10.0.0.3")
	first, second := k.veth(one), k.port(two)
	k.port(three)
	set(t, x, pod("a", "10.0.0.1"), pod("b", "10.0.0.2"), pod("c", "10.0.0.3"))
	for _, step := range []struct {
		name string
		do   func()
		want string
	}{
		{"nothing", func() {}, "[]"},
		{"another link", func() { k.pending = []link.Event{{Kind: link.Gone, Link: 99}, {Kind: link.Routed}} }, "[]"},
		{"the same neighbour again", func() { k.heard(two, second, link.MAC{byte(second)}, k.now) }, "[]"},
		{"its link", func() { k.gone(first) }, "[10.0.0.1 link-gone]"},
		{"its neighbour", func() { k.heard(two, 99, link.MAC{99}, k.now) }, "[10.0.0.2 moved]"},
		{"its port", func() {
			k.pending = []link.Event{{Kind: link.Port, Link: 98, MAC: link.MAC{byte(second)}}}
		}, "[10.0.0.2 moved]"},
		{"a pod that is gone", func() { x.Delete(identity.Key{Namespace: "ns", Name: "b"}); k.gone(second) }, "[]"},
		{"all of a bridge", func() { k.pending = []link.Event{{Kind: link.Missed}} }, "[10.0.0.3 overrun]"},
	} {
		*lost = nil
		step.do()
		_, _ = x.Find(one)
		if got := fmt.Sprint(*lost); got != step.want {
			t.Errorf("%s: lost %s, want %s", step.name, got, step.want)
		}
	}
}

// Whoever could be first is tied before anybody asks.
func TestAClaimIsTiedBeforeAnybodyAsks(t *testing.T) {
	address := netip.MustParseAddr("10.0.0.1")
	x, k, _ := proving(nil)
	k.paths[address] = link.Path{Proof: link.PerPort}
	set(t, x, pod("a", "10.0.0.1"))
	k.port(address)
	x.Tie()
	k.port(address)
	if _, err := x.Find(address); reasonOf(err) != v1.ReasonCallerMismatch {
		t.Errorf("got %v", err)
	}
}

// life is one pod of the model: it has an address from the time that its link is
// made until it ends.
type life struct {
	object  *corev1.Pod
	address netip.Addr
	link    int
	ends    time.Time
}

// told is what the API will say, later.
type told struct {
	at time.Time
	do func()
}

// model is a node on which pods come and go, addresses are given out again at
// once, and the API is told of it late, in order.
type model struct {
	t       *testing.T
	random  *rand.Rand
	x       *caller.Index
	k       *kernel
	bridge  bool
	living  map[netip.Addr]*life
	waiting []told
	count   int
	served  int
}

func (m *model) tell(do func()) {
	at := m.k.now.Add(time.Duration(m.random.IntN(5000)) * time.Millisecond)
	if n := len(m.waiting); n > 0 && m.waiting[n-1].at.After(at) {
		at = m.waiting[n-1].at // a watch keeps the order
	}
	m.waiting = append(m.waiting, told{at, do})
}

func (m *model) start(address netip.Addr) {
	m.count++
	started := m.k.now
	m.k.now = m.k.now.Add(time.Duration(m.random.IntN(300)) * time.Millisecond)
	l := &life{address: address}
	if l.link = m.k.links + 1; m.bridge {
		m.k.port(address)
	} else {
		m.k.veth(address)
	}
	ready := m.k.now.Add(time.Duration(m.random.IntN(900)) * time.Millisecond)
	// Less than the API's grain apart, nothing can tell two pods.
	l.ends = ready.Add(2*time.Second + time.Duration(m.random.IntN(4000))*time.Millisecond)
	l.object = born(pod(fmt.Sprint("p", m.count), address.String()), started, ready)
	m.living[address] = l
	m.tell(func() { set(m.t, m.x, l.object) })
}

func (m *model) end(l *life) {
	m.k.gone(l.link)
	delete(m.living, l.address)
	changed := l.object.DeepCopy()
	changed.Labels["ending"] = "true"
	m.tell(func() { set(m.t, m.x, changed) })
	m.tell(func() { m.x.Delete(identity.Key{Namespace: "ns", Name: l.object.Name}) })
}

// step lets a little time pass and something happen.
func (m *model) step(addresses []netip.Addr) {
	m.k.now = m.k.now.Add(time.Duration(m.random.IntN(200)) * time.Millisecond)
	for _, address := range addresses {
		if l := m.living[address]; l != nil && !l.ends.After(m.k.now) {
			m.end(l)
		}
	}
	if address := addresses[m.random.IntN(len(addresses))]; m.living[address] == nil {
		m.start(address)
	}
	for len(m.waiting) > 0 && !m.waiting[0].at.After(m.k.now) {
		m.waiting[0].do()
		m.waiting = m.waiting[1:]
	}
	m.ask(addresses[m.random.IntN(len(addresses))])
}

// ask asks as whoever has the address now.
func (m *model) ask(address netip.Addr) {
	l := m.living[address]
	got, err := m.x.Find(address)
	switch {
	case err == nil && l != nil && got.UID == l.object.UID:
		m.served++
	case err == nil && l != nil:
		m.t.Fatalf("pod %s got the identity of %s", l.object.Name, got.Name)
	case err == nil && !m.bridge && m.k.paths[address].Proof == link.PerLink:
		m.t.Fatalf("nobody has %s, and %s was found", address, got.Name)
	}
}

// TestAnAddressThatIsGivenOutAgain: whatever the delays of the API, a pod never
// gets the identity of the one that had its address before, and gets its own
// when the API has said all that it has to say.
func TestAnAddressThatIsGivenOutAgain(t *testing.T) {
	addresses := []netip.Addr{netip.MustParseAddr("10.0.0.1"), netip.MustParseAddr("10.0.0.2"), netip.MustParseAddr("10.0.0.3")}
	for seed := range uint64(100) {
		x, k, _ := proving(nil)
		m := &model{t: t, random: rand.New(rand.NewPCG(seed, 5)), x: x, k: k, bridge: seed%2 == 1, living: map[netip.Addr]*life{}}
		for range 300 {
			m.step(addresses)
		}
		for _, next := range m.waiting {
			m.k.now = next.at
			next.do()
		}
		for address, l := range m.living {
			if got, err := x.Find(address); err != nil || got.UID != l.object.UID {
				t.Fatalf("seed %d: in the end %s is found as %q, %v", seed, l.object.Name, got.Name, err)
			}
		}
		if m.served < 20 {
			t.Fatalf("seed %d: only %d requests were served in %d lives", seed, m.served, m.count)
		}
	}
}

// TestWithoutProofTheWindowIsTheAPIs measures what is left where nothing but the
// address is known: a pod is taken for its predecessor for as long as the API
// shows that one with the address, and no longer.
func TestWithoutProofTheWindowIsTheAPIs(t *testing.T) {
	address := netip.MustParseAddr("10.0.0.1")
	x, k, _ := proving(nil)
	set(t, x, pod("before", "10.0.0.1"))
	began := k.now
	var window time.Duration
	for range 50 {
		k.now = k.now.Add(100 * time.Millisecond)
		if k.now.Sub(began) == 3*time.Second {
			x.Delete(identity.Key{Namespace: "ns", Name: "before"})
			set(t, x, pod("after", "10.0.0.1"))
		}
		if got, _ := x.Find(address); got.Name == "before" {
			window = k.now.Sub(began)
		}
	}
	if want := 3*time.Second - 100*time.Millisecond; window != want {
		t.Errorf("the window is %s, want %s", window, want)
	}
}

// A spoofer on a bridge who takes the neighbour's address, with or without its
// MAC, in any order with what the neighbour says, never gets its identity.
func TestASpooferOnABridge(t *testing.T) {
	victim, own := netip.MustParseAddr("10.0.0.1"), netip.MustParseAddr("10.0.0.2")
	for seed := range uint64(200) {
		random := rand.New(rand.NewPCG(seed, 7))
		x, k, _ := proving(nil)
		first, second := k.port(victim), k.port(own)
		set(t, x, born(pod("victim", "10.0.0.1"), k.now, k.now), born(pod("spoofer", "10.0.0.2"), k.now, k.now))
		for range 100 {
			k.now = k.now.Add(time.Duration(random.IntN(30)) * time.Second)
			spoofed := random.IntN(2) == 0
			if spoofed {
				k.heard(victim, second, link.MAC{byte(1 + random.IntN(3))}, k.now)
			} else {
				k.heard(victim, first, link.MAC{byte(first)}, k.now)
			}
			if random.IntN(5) == 0 {
				set(t, x, born(with(pod("victim", "10.0.0.1"), func(p *corev1.Pod) { p.Labels["n"] = fmt.Sprint(random.Int()) }), k.now.Add(-time.Hour), k.now.Add(-time.Hour)))
			}
			if got, err := x.Find(victim); spoofed && (err == nil || got.UID == types.UID("uid-victim")) {
				t.Fatalf("seed %d: the spoofer got the identity of %s", seed, got.Name)
			}
		}
		k.heard(victim, first, link.MAC{byte(first)}, k.now)
		_, _ = x.Find(victim)
		k.now = k.now.Add(3 * time.Minute)
		if got, err := x.Find(victim); err != nil || got.Name != "victim" {
			t.Fatalf("seed %d: the victim is not served afterwards: %v", seed, err)
		}
	}
}
