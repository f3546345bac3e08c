package caller

import (
	"net/netip"
	"time"

	"github.com/aad-pod-identity/aad-pod-identity/internal/nmi/caller/link"
	"github.com/aad-pod-identity/aad-pod-identity/internal/refusal"

	v1 "github.com/aad-pod-identity/aad-pod-identity/api/v1"
)

// holdTime is for how long a claim is not honoured after somebody else spoke from
// its address. The kernel completes a handshake for 63 seconds, and a connection
// waits for its first request for 5: one that began meanwhile is no more.
const holdTime = 2 * time.Minute

// Paths tells how the node reaches addresses. It must have told the Index what it
// announces, by [Index.Observe], before it answers.
type Paths interface {
	Path(address netip.Addr) (link.Path, error)
	// Resolve has the kernel find out.
	Resolve(address netip.Addr) error
}

// Proofs configure how callers are proven.
type Proofs struct {
	// Paths says by which link an address is reached; nil proves nothing.
	Paths Paths
	// Shared serves pods that share a segment without proof all the same.
	Shared bool
	// Kubenet says that pods share a bridge whatever the links show.
	Kubenet bool
	// Lost is told of an address that a link no longer carries for its pod, and
	// why. It must not call the Index. Nil tells nobody.
	Lost func(address netip.Addr, cause Cause)
	// Now is the clock; nil is the real one.
	Now func() time.Time
}

// Cause is why an address was lost.
type Cause string

// The causes.
const (
	// LinkGone: the link that carried the address is no more.
	LinkGone Cause = "link-gone"
	// Moved: the address was used from another link or port.
	Moved Cause = "moved"
	// Overrun: the kernel announced more than could be read, so that any address
	// of a bridge may have been used from elsewhere.
	Overrun Cause = "overrun"
)

// Prove sets how callers are proven. It is called before the Index is used.
func (x *Index) Prove(proofs Proofs) {
	if proofs.Now == nil {
		proofs.Now = time.Now
	}
	if proofs.Lost == nil {
		proofs.Lost = func(netip.Addr, Cause) {}
	}
	x.proofs = proofs
}

// path asks how an address is reached. Without Paths nothing is proven.
func (x *Index) path(address netip.Addr) (link.Path, error) {
	if x.proofs.Paths == nil {
		return link.Path{Proof: link.IPOnly, Why: "links are not looked at"}, nil
	}
	path, err := x.proofs.Paths.Path(address)
	if err != nil {
		refused := refusal.New(v1.ReasonNotReady, "the node's links cannot be read")
		refused.Err = err
		return link.Path{}, refused
	}
	if x.proofs.Kubenet && path.Proof == link.IPOnly {
		path.Shared = true
	}
	return path, nil
}

// judge judges one claim by a path.
func (x *Index) judge(c *claim, path link.Path) verdict {
	owner, owned := x.owners[path.Link]
	return c.judge(state{
		path: path, taken: owned && owner != c.of.pod.UID,
		held: x.proofs.Now().Before(c.held), shared: x.proofs.Shared,
	})
}

// tie ties a claim to the link of a path.
func (x *Index) tie(c *claim, path link.Path) {
	c.tied, c.proof, c.link, c.mac = true, path.Proof, path.Link, path.MAC
	x.owners[path.Link] = c.of.pod.UID
}

// release lets go of the link of a claim, unless another of the same pod has it.
func (x *Index) release(c *claim) {
	if !c.tied {
		return
	}
	c.tied = false
	for _, other := range c.of.claims {
		if other.tied && other.link == c.link {
			return
		}
	}
	delete(x.owners, c.link)
}

// Observe takes what the kernel announces of links.
func (x *Index) Observe(events []link.Event) {
	lost := map[netip.Addr]Cause{}
	x.mu.Lock()
	for _, event := range events {
		x.observe(event, lost)
	}
	x.announce()
	x.mu.Unlock()
	for address, cause := range lost {
		x.proofs.Lost(address, cause)
	}
}

func (x *Index) observe(event link.Event, lost map[netip.Addr]Cause) {
	for _, claims := range x.suspects(event) {
		for _, c := range claims {
			switch {
			case !c.tied:
			case event.Kind == link.Gone && c.link == event.Link:
				x.release(c)
				c.void = true
				lost[c.address] = LinkGone
			case elsewhere(c, event):
				x.hold(c)
				lost[c.address] = Moved
			case event.Kind == link.Missed && c.proof == link.PerPort:
				x.hold(c)
				lost[c.address] = Overrun
			}
		}
	}
}

// suspects returns the claims that an event can be about.
func (x *Index) suspects(event link.Event) map[netip.Addr][]*claim {
	switch event.Kind {
	case link.Neighbour:
		return map[netip.Addr][]*claim{event.Addr: x.byAddress[event.Addr]}
	case link.Gone, link.Port, link.Missed:
		return x.byAddress
	}
	return nil
}

// elsewhere reports whether somebody else speaks with the address or the MAC that
// a claim is tied to.
func elsewhere(c *claim, event link.Event) bool {
	if c.proof != link.PerPort {
		return false
	}
	switch event.Kind {
	case link.Neighbour:
		return event.MAC != c.mac
	case link.Port:
		return event.MAC == c.mac && event.Link != c.link
	}
	return false
}

func (x *Index) hold(c *claim) { c.held = x.proofs.Now().Add(holdTime) }

// Tie ties every claim that can be, so that nobody else can be first. It is called
// when links have changed.
func (x *Index) Tie() {
	x.mu.RLock()
	var open []netip.Addr
	for address, claims := range x.byAddress {
		for _, c := range claims {
			if !c.tied && !c.void {
				open = append(open, address)
			}
		}
	}
	x.mu.RUnlock()
	for _, address := range open {
		_, _, _ = x.find(address) // who it is does not matter now
	}
}

// catchUp has everything told that the kernel has announced by now, so that a
// claim is not taken to be older than it is.
func (x *Index) catchUp(addresses []netip.Addr) {
	if len(addresses) > 0 {
		_, _ = x.path(addresses[0]) // what it is does not matter now
	}
}

// resolve ties the addresses of a new claim, or has the kernel find out where
// they are.
func (x *Index) resolve(addresses []netip.Addr) {
	if x.proofs.Paths == nil {
		return
	}
	for _, address := range addresses {
		if path, err := x.path(address); err == nil && path.Proof == link.PerPort && !path.Known() {
			// If it cannot be asked now, it is when the pod is first spoken to.
			_ = x.proofs.Paths.Resolve(address)
		}
		_, _, _ = x.find(address)
	}
}

// Survey is how the pods of the node are proven.
type Survey struct {
	// Pods counts addresses by their proof.
	Pods map[link.Proof]int
	// Refused counts those that are not served, since they share a segment without
	// proof.
	Refused int
	// Why says of one address that is not proven what stands in the way.
	Why string
}

// Weakest returns the proof that holds for all of the node's pods; empty if there
// are none.
func (s Survey) Weakest() link.Proof {
	for _, proof := range []link.Proof{link.IPOnly, link.PerPort, link.PerLink} {
		if s.Pods[proof] > 0 {
			return proof
		}
	}
	return ""
}

// Survey looks how all addresses are reached now.
func (x *Index) Survey() (Survey, error) {
	x.mu.RLock()
	addresses := make([]netip.Addr, 0, len(x.byAddress))
	for address := range x.byAddress {
		if address.Is4() { // the metadata service has no other
			addresses = append(addresses, address)
		}
	}
	x.mu.RUnlock()
	out := Survey{Pods: map[link.Proof]int{}}
	for _, address := range addresses {
		path, err := x.path(address)
		if err != nil {
			return Survey{}, err
		}
		out.Pods[path.Proof]++
		if path.Proof == link.IPOnly {
			out.Why = path.Why
		}
		if path.Shared && !x.proofs.Shared {
			out.Refused++
		}
	}
	return out, nil
}
