package nmi

import (
	"sync"

	"k8s.io/apimachinery/pkg/types"

	"github.com/aad-pod-identity/aad-pod-identity/internal/nmi/resolve"
)

// maxDecisions bounds what is remembered: a pod can ask for anything, and those
// that get something are few.
const maxDecisions = 2048

// decisions remember which identity answers which question for as long as no
// object changes, since most pods ask one question over and over. The zero value
// remembers nothing yet.
type decisions struct {
	mu sync.RWMutex // protects all following fields
	// changed is the signal that ends all that is known; see objects.
	changed <-chan struct{}
	known   map[question]resolve.Choice
}

// question is what decides besides objects.
type question struct {
	uid      types.UID
	selector string
	query    resolve.Query
}

// of returns what was decided since the last change of objects. changed is
// their signal, taken before.
func (d *decisions) of(changed <-chan struct{}, asked question) (resolve.Choice, bool) {
	d.mu.RLock()
	defer d.mu.RUnlock()
	if d.changed != changed {
		return resolve.Choice{}, false
	}
	choice, ok := d.known[asked]
	return choice, ok
}

// keep remembers a decision that was made after changed was taken.
func (d *decisions) keep(changed <-chan struct{}, asked question, choice resolve.Choice) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.known == nil || d.changed != changed || len(d.known) >= maxDecisions {
		d.changed, d.known = changed, map[question]resolve.Choice{}
	}
	d.known[asked] = choice
}
