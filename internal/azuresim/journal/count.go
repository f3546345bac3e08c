package journal

import (
	"cmp"
	"slices"
)

// Count is how many requests of a kind there were since the start, those among
// them that the journal no longer holds.
type Count struct {
	Surface  string `json:"surface"`
	Node     string `json:"node,omitempty"`
	Method   string `json:"method,omitempty"`
	Status   int    `json:"status,omitempty"`
	Throttle string `json:"throttle,omitempty"` // the limit that refused them
	N        int    `json:"n"`
}

func countOf(e Entry) Count {
	c := Count{Surface: e.Surface, Node: e.Node, Method: e.Method, Status: e.Status}
	if e.Throttle != nil {
		c.Throttle = e.Throttle.Bucket
	}
	return c
}

// Counts returns how many requests of each kind there were, in a stable order.
func (j *Journal) Counts() []Count {
	j.mu.Lock()
	defer j.mu.Unlock()
	counts := make([]Count, 0, len(j.counts))
	for c, n := range j.counts {
		c.N = n
		counts = append(counts, c)
	}
	slices.SortFunc(counts, func(a, b Count) int {
		return cmp.Or(cmp.Compare(a.Surface, b.Surface), cmp.Compare(a.Node, b.Node), cmp.Compare(a.Method, b.Method),
			cmp.Compare(a.Status, b.Status), cmp.Compare(a.Throttle, b.Throttle))
	})
	return counts
}
