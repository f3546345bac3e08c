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

// locks are what says who leads.
func locks() []string { return []string{"leases", "endpoints"} }

// add counts the whole lines of an audit log and returns how long they are. The
// renewals of the locks do not count.
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
			ObjectRef struct{ Resource, Subresource string }
			Status    struct{ Code int } `json:"responseStatus"`
		}
		if json.Unmarshal(line, &event) != nil || event.User.Username != user || slices.Contains(locks(), event.ObjectRef.Resource) {
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
