package replica

import (
	"bytes"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
)

// Writes counts requests that are no reads, by verb, resource and, where the API
// server refused them, its status code.
type Writes map[string]int

const refusal = ": "

// Total counts them all.
func (w Writes) Total() int {
	sum := 0
	for _, n := range w {
		sum += n
	}
	return sum
}

// Refused tells the refused ones.
func (w Writes) Refused() string {
	var out []string
	for _, key := range slices.Sorted(maps.Keys(w)) {
		if strings.Contains(key, refusal) {
			out = append(out, fmt.Sprintf("%d × %s", w[key], key))
		}
	}
	if len(out) == 0 {
		return "none refused"
	}
	return "refused: " + strings.Join(out, ", ")
}

// lockName is the name of MIC's locks.
const lockName = "aad-pod-identity-mic"

// object is what a request was for.
type object struct{ Resource, Subresource, Name string }

// ofLocks reports whether a request was about who leads: the locks themselves, and
// the Event that a new leader writes.
func (o object) ofLocks() bool {
	switch o.Resource {
	case "leases", "endpoints":
		return true
	case "events":
		return strings.HasPrefix(o.Name, lockName+".")
	}
	return false
}

// add counts the whole lines of an audit log and returns how long they are. What
// is about the locks does not count.
func (w Writes) add(log []byte, user string) (read int) {
	for {
		line, _, whole := bytes.Cut(log[read:], []byte("\n"))
		if !whole {
			return read
		}
		read += len(line) + 1
		var event struct {
			Verb      string
			User      struct{ Username string }
			ObjectRef object
			Status    struct{ Code int } `json:"responseStatus"`
		}
		if json.Unmarshal(line, &event) != nil || event.User.Username != user || event.ObjectRef.ofLocks() {
			continue
		}
		switch event.Verb {
		case "get", "list", "watch":
			continue
		}
		key := event.Verb + " " + event.ObjectRef.Resource
		if event.ObjectRef.Subresource != "" {
			key += "/" + event.ObjectRef.Subresource
		}
		if event.Status.Code >= 400 {
			key += refusal + strconv.Itoa(event.Status.Code)
		}
		w[key]++
	}
}
