package caller

import (
	"fmt"
	"net/netip"
	"time"

	corev1 "k8s.io/api/core/v1"

	v1 "github.com/aad-pod-identity/aad-pod-identity/api/v1"
	"github.com/aad-pod-identity/aad-pod-identity/internal/nmi/caller/link"
	"github.com/aad-pod-identity/aad-pod-identity/internal/refusal"
)

// readyGrain is how much later than a pod's network is said to be ready its link
// can have been seen: the API tells seconds only, and a busy node is late to see
// a link.
const readyGrain = 2 * time.Second

// claim is what the API says: that a pod has an address. It is tied to the link
// that carries the address, once, and is void when that link has gone or when
// the link that carries the address came after the claim, until the API claims
// the address again.
type claim struct {
	of      *entry
	address netip.Addr
	life    life
	// learned is when the API said so.
	learned time.Time

	// tied says that link, and on a bridge mac, carry the address.
	tied  bool
	proof link.Proof
	link  int
	mac   link.MAC
	void  bool
	// held says until when the claim is not honoured, because somebody else spoke
	// from its address.
	held time.Time
}

// life is what the API says of when the pod's network came to be, in whole
// seconds of the node's clock. Zero times are not known.
type life struct {
	// started is before the pod's link is made, ready is after.
	started, ready time.Time
}

func lifeOf(pod *corev1.Pod) life {
	var out life
	if pod.Status.StartTime != nil {
		out.started = pod.Status.StartTime.Time
	}
	for _, condition := range pod.Status.Conditions {
		if condition.Type == corev1.PodReadyToStartContainers && condition.Status == corev1.ConditionTrue {
			out.ready = condition.LastTransitionTime.Time
		}
	}
	return out
}

// again reports whether what the API says now is a new claim of the same pod: its
// network was made anew. A network that is taken down is none.
func (c *claim) again(now life) bool {
	return !now.ready.IsZero() && !now.ready.Equal(c.life.ready) && (c.void || !c.tied)
}

// verdict is what is said of one claim.
type verdict int

// The verdicts, from the best to the worst to tell.
const (
	proven     verdict = iota // by the link that it is tied to
	provable                  // by the link that carries the address, to which it is to be tied
	unprovable                // by the address alone
	unresolved                // the kernel does not know now which link it is
	outdated                  // void, until the API claims the address again
	unproven                  // by the address alone, on a segment where that is nothing
	mismatched                // another link than the pod's speaks
)

func (v verdict) accepts() bool { return v <= unprovable }

// state is what judges claims beside themselves.
type state struct {
	path link.Path
	// taken says that the path's link is another pod's.
	taken bool
	// held says that somebody else spoke from the address a moment ago.
	held bool
	// shared allows pods that share a segment without proof.
	shared bool
}

// judge decides whether the pod of the claim is behind the path. It is pure.
func (c *claim) judge(s state) verdict {
	switch {
	case c.void:
		return outdated
	case s.held:
		return mismatched
	case s.path.Shared && !s.shared:
		return unproven
	case c.tied:
		return c.compare(s.path)
	case s.path.Proof == link.IPOnly:
		return unprovable
	case !s.path.Known():
		return unresolved
	case s.taken:
		return mismatched
	}
	return c.date(s.path)
}

// compare looks whether the address is where it was.
func (c *claim) compare(path link.Path) verdict {
	switch {
	case path.Proof == c.proof && !path.Known():
		return unresolved
	case path.Proof == c.proof && path.Link == c.link && path.MAC == c.mac:
		return proven
	}
	return mismatched
}

// date asks whether the link can be the pod's at all. A link that is older than
// the pod is somebody else's. One that is younger than the claim, or than the
// pod's network, is a successor's.
func (c *claim) date(path link.Path) verdict {
	switch {
	case c.life.started.After(path.Born):
		return mismatched
	case path.Old:
		return provable
	case path.Born.After(c.learned):
		return outdated
	case !c.life.ready.IsZero() && path.Born.After(c.life.ready.Add(readyGrain)):
		return outdated
	}
	return provable
}

// refuse words a verdict that accepts nobody.
func (x *Index) refuse(v verdict, address netip.Addr, path link.Path) *refusal.Error {
	var out *refusal.Error
	switch v {
	case unresolved:
		out = refusal.New(v1.ReasonCallerUnknown, "node %s does not know yet over which link %s is reached", x.node, address)
	case outdated:
		out = refusal.New(v1.ReasonCallerUnknown, "the link over which node %s reaches %s is newer than what the API says of the address: try again when it knows the new pod", x.node, address)
	case unproven:
		out = refusal.New(v1.ReasonCallerUnproven,
			"pods of node %s share a network segment on which one can take another's address, and nothing shows which one asks: --allow-network-plugin-kubenet serves them all the same", x.node)
	default:
		out = refusal.New(v1.ReasonCallerMismatch, "the address %s is, or was a moment ago, used from another link of node %s than its pod's", address, x.node)
	}
	out.Err = fmt.Errorf("address %s by %s %q (%s): %s", address, path.Proof, path.Name, path.MAC, path.Why)
	return out
}
