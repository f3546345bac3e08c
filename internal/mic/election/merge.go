package election

import (
	"time"

	"k8s.io/client-go/tools/leaderelection/resourcelock"
)

// merge returns who leads by two records, of which each may be nobody's.
//
//	by the Lease   by the old lock   leads
//	nobody,        nobody:           nobody
//	self,          self:             self
//	self,          nobody:           self, and the old lock was deleted
//	nobody,        self:             self, and the Lease was deleted or not written yet
//	another,       self or nobody:   the other, a replica of this version
//	anybody,       another:          the other, an old controller, or a replica about to write its Lease
//
// Whoever is not self is waited for as long as its own record says, and never
// shorter than own: an old controller's record may say nothing.
func merge(self string, own time.Duration, lease, old resourcelock.LeaderElectionRecord) resourcelock.LeaderElectionRecord {
	out := lease
	if foreign(old, self) || lease.HolderIdentity == "" {
		out = old
	}
	out.LeaderTransitions = max(lease.LeaderTransitions, old.LeaderTransitions)
	for _, record := range []resourcelock.LeaderElectionRecord{lease, old} {
		if foreign(record, self) {
			out.LeaseDurationSeconds = max(out.LeaseDurationSeconds, record.LeaseDurationSeconds, int(own/time.Second))
		}
	}
	return out
}

func foreign(record resourcelock.LeaderElectionRecord, self string) bool {
	return record.HolderIdentity != "" && record.HolderIdentity != self
}
