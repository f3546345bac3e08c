// Package plan decides what to do to the identities of one virtual machine or
// scale set: what is observed, wanted and recorded in, the next request to ARM
// and the records around it out.
//
// It is pure and does no I/O. It must not retry, wait or report: it only says
// what would be right.
//
// A record says what the controller attached, so that nothing else is ever
// removed. It is written before the request and settled when its outcome is
// seen, which may be after a crash:
//
//	record     ARM shows the identity        →
//	inherited  no                            dropped: it went before we came
//	inherited  yes                           owned: the old controller attached it
//	attaching  no                            dropped: nothing was attached
//	attaching  yes, and the ETag has changed owned: it was absent at the recorded ETag, and a
//	                                         request that needed that ETag was about to be sent
//	attaching  yes, and the ETag is the same dropped: it is somebody else's
//	owned      yes                           owned
//	no                            dropped: somebody removed it
//	any        while an operation runs       kept: ARM shows what was asked for, and takes it
//	                                         back if the operation fails
//
// The second line is a choice. Where the controller stops between record and
// request, and somebody else attaches the very same identity before it is back,
// that one is taken for ours and is removed when its last pod goes. The other
// choice would leave behind everything that was being attached at every crash.
// A request that ARM refused outright leaves no such doubt: [Plan.Undo] is
// written at once.
package plan

import (
	"maps"
	"slices"
	"time"

	v1 "github.com/aad-pod-identity/aad-pod-identity/api/v1"
	"github.com/aad-pod-identity/aad-pod-identity/internal/azure/armid"
	"github.com/aad-pod-identity/aad-pod-identity/internal/azure/compute"
	"github.com/aad-pod-identity/aad-pod-identity/internal/identity"
	"github.com/aad-pod-identity/aad-pod-identity/internal/mic/attachment/quarantine"
)

// Snapshot is all that a plan depends on.
type Snapshot struct {
	// Seen is what ARM showed.
	Seen compute.Identities
	// Wanted are the identities that pods on the resource need.
	Wanted []armid.ID
	// Named are the AzureIdentities of the cluster that name an identity.
	Named map[armid.ID]Naming
	// Quarantine is what ARM refused before.
	Quarantine quarantine.State
	// Unconfirmed are the identities that were attached, with the client IDs that
	// their AzureIdentities had then, until ARM shows one of those.
	Unconfirmed map[armid.ID][]string
	// Records are what the controller attached or was attaching.
	Records []v1.OwnedIdentity
	Now     time.Time
}

// Naming is what the AzureIdentities say that name one identity.
type Naming struct {
	// Objects are the AzureIdentities as they are, by UID and generation, sorted.
	Objects []string
	// ClientIDs are what they say, in lower case, sorted.
	ClientIDs []string
}

// Policy holds what is never removed, whoever attached it. The zero Policy
// protects nothing.
type Policy struct {
	IDs       map[armid.ID]bool
	ClientIDs map[identity.ClientID]bool
	// Limit is how many identities one request may name; zero is ARM's.
	Limit int
}

// Protects reports whether an identity with that client ID must stay. The client
// ID is what ARM shows; it may be empty.
func (p Policy) Protects(id armid.ID, clientID string) bool {
	if p.IDs[id] {
		return true
	}
	parsed, err := identity.ParseClientID(clientID)
	return err == nil && p.ClientIDs[parsed]
}

// Plan is what is to be done next.
type Plan struct {
	// There are the wanted identities that are known to be on the resource;
	// Pending are the other wanted ones.
	There, Pending []armid.ID
	// Estranged are the wanted identities on the resource for which ARM shows
	// another client ID than any AzureIdentity has, and which; see [Estranged].
	Estranged map[armid.ID]*Estranged
	// Quarantine is the state as the snapshot settles it, and Again is when an
	// identity in it is to be tried, if there is nothing to do before; zero is
	// never.
	Quarantine quarantine.State
	Again      time.Time
	// Unconfirmed is as in [Snapshot], settled; UnconfirmedAfter is what it is once
	// the patch succeeded.
	Unconfirmed, UnconfirmedAfter map[armid.ID][]string
	// Records are the records as the snapshot settles them. They are to be
	// written if there is no patch, and when ARM refuses the patch outright.
	Records []v1.OwnedIdentity
	// Wait says that an operation of the controller's own runs: look again.
	Wait bool
	// Patch is to be sent with the snapshot's ETag; nil if there is nothing to do.
	Patch *compute.Patch
	// Before must be written before the patch is sent, After once it succeeded.
	Before, After []v1.OwnedIdentity
}

// Undo is what to write when ARM refused the patch outright.
func (p Plan) Undo() []v1.OwnedIdentity { return p.Records }

// Compute returns the plan of a snapshot. The plan of the state that a plan
// leads to has no patch, but for what did not fit into one request.
func Compute(s Snapshot, policy Policy) Plan {
	records := settle(s)
	running := s.Seen.Updating && attaching(records)
	p := Plan{Records: records, Wait: running, Quarantine: s.quarantine(), Unconfirmed: s.unconfirmed()}
	strange := s.estranged(records, policy)
	p.Estranged = strange
	p.There, p.Pending = s.sort(records, strange)
	if running {
		return p
	}
	limit := policy.Limit
	if limit < 1 {
		limit = compute.MaxIdentitiesPerRequest
	}
	batch, again := p.Quarantine.Batch(s.missing(), limit, s.Now)
	p.Patch = compute.IdentityPatch(s.Seen, batch, append(s.removable(records, policy), mendable(strange)...), limit)
	if p.Patch == nil {
		p.Again = again
		return p
	}
	p.Before, p.After, p.UnconfirmedAfter = records, records, maps.Clone(p.Unconfirmed)
	for _, id := range p.Patch.Add {
		p.UnconfirmedAfter[id] = s.Named[id].ClientIDs
		p.Before = with(p.Before, v1.OwnedIdentity{ResourceID: id.String(), State: v1.OwnershipAttaching, ETag: s.Seen.ETag})
		p.After = with(p.After, v1.OwnedIdentity{ResourceID: id.String(), State: v1.OwnershipOwned})
	}
	for _, id := range p.Patch.Remove {
		p.After = slices.DeleteFunc(slices.Clone(p.After), func(r v1.OwnedIdentity) bool { return r.ResourceID == id.String() })
	}
	return p
}

// missing are the wanted identities that ARM does not show.
func (s Snapshot) missing() []armid.ID {
	return slices.DeleteFunc(slices.Clone(s.Wanted), s.Seen.Has)
}

// quarantine is the state in the light of the snapshot.
func (s Snapshot) quarantine() quarantine.State {
	wanted := make(map[armid.ID]bool, len(s.Wanted))
	for _, id := range s.Wanted {
		wanted[id] = true
	}
	return s.Quarantine.Settle(quarantine.Seen{
		Wanted: func(id armid.ID) bool { return wanted[id] }, Present: s.Seen.Has,
		Identities: func(id armid.ID) []string { return s.Named[id].Objects }, Now: s.Now,
	})
}

// settle applies the table of the package comment.
func settle(s Snapshot) []v1.OwnedIdentity {
	var out []v1.OwnedIdentity
	for _, record := range s.Records {
		id, err := armid.Parse(record.ResourceID)
		if err != nil {
			continue // names nothing that ARM could show
		}
		record.ResourceID = id.String()
		switch {
		case s.Seen.Updating:
			out = with(out, record)
		case !s.Seen.Has(id):
		case record.State == v1.OwnershipOwned, record.State == v1.OwnershipInherited:
			out = with(out, v1.OwnedIdentity{ResourceID: record.ResourceID, State: v1.OwnershipOwned})
		case record.ETag != "" && record.ETag != s.Seen.ETag:
			out = with(out, v1.OwnedIdentity{ResourceID: record.ResourceID, State: v1.OwnershipOwned})
		}
	}
	return out
}

func attaching(records []v1.OwnedIdentity) bool {
	return slices.ContainsFunc(records, func(r v1.OwnedIdentity) bool { return r.State == v1.OwnershipAttaching })
}

// sort tells the wanted identities that are there from the others. What an
// operation of ours is attaching is shown by ARM, and not there yet; what has no
// principal is of no use.
func (s Snapshot) sort(records []v1.OwnedIdentity, strange map[armid.ID]*Estranged) (there, pending []armid.ID) {
	for _, id := range distinct(s.Wanted) {
		coming := slices.ContainsFunc(records, func(r v1.OwnedIdentity) bool {
			return r.State == v1.OwnershipAttaching && r.ResourceID == id.String()
		})
		if s.Seen.Has(id) && !coming && !strange[id].useless() {
			there = append(there, id)
		} else {
			pending = append(pending, id)
		}
	}
	return there, pending
}

func (s Snapshot) removable(records []v1.OwnedIdentity, policy Policy) []armid.ID {
	var out []armid.ID
	for _, record := range records {
		id, err := armid.Parse(record.ResourceID)
		if err != nil || record.State != v1.OwnershipOwned || slices.Contains(s.Wanted, id) || policy.Protects(id, s.Seen.Present[id]) {
			continue
		}
		out = append(out, id)
	}
	return out
}

// with returns the records, ordered, with one of them set. The list that it is
// given is left as it is.
func with(records []v1.OwnedIdentity, record v1.OwnedIdentity) []v1.OwnedIdentity {
	at, found := slices.BinarySearchFunc(records, record.ResourceID, func(r v1.OwnedIdentity, id string) int {
		switch {
		case r.ResourceID < id:
			return -1
		case r.ResourceID > id:
			return 1
		}
		return 0
	})
	out := slices.Clone(records)
	if found {
		out[at] = record
		return out
	}
	return slices.Insert(out, at, record)
}

func distinct(ids []armid.ID) []armid.ID {
	out := slices.Clone(ids)
	slices.SortFunc(out, armid.ID.Compare)
	return slices.Compact(out)
}
