package scenarios_test

import (
	"net/http"
	"regexp"
	"strings"
	"sync"

	"github.com/Azure/azure-sdk-for-go/sdk/azcore/policy"
)

// gate stands between the controller and ARM. What the controller asks about a
// story's resources waits while the story is held, and so does what it would do
// next: however long a slow machine takes over the parts of one step, they meet in
// the requests of one pass.
type gate struct {
	policy.Transporter

	mu   sync.Mutex
	held map[string]chan struct{} // by story; closed when it is let go
}

// Do sends a request when its story is not held.
func (g *gate) Do(r *http.Request) (*http.Response, error) {
	g.mu.Lock()
	held := g.held[ownStory(r.URL.Path)]
	g.mu.Unlock()
	if held != nil {
		select {
		case <-held:
		case <-r.Context().Done():
			return nil, r.Context().Err() //nolint:wrapcheck // as every transport does
		}
	}
	return g.Transporter.Do(r) //nolint:wrapcheck // it is in the transport's place
}

// hold holds a story until letGo is called.
func (g *gate) hold(story string) (letGo func()) {
	held := make(chan struct{})
	g.mu.Lock()
	defer g.mu.Unlock()
	g.held[story] = held
	return sync.OnceFunc(func() {
		g.mu.Lock()
		defer g.mu.Unlock()
		delete(g.held, story)
		close(held)
	})
}

// storyOf finds a story's prefix in a name.
func storyOf(name string) string {
	return regexp.MustCompile(`s[0-9a-f]{8}-`).FindString(strings.ToLower(name))
}

// ownStory is storyOf, but for what is the sentinel's.
func ownStory(name string) string {
	story := storyOf(name)
	if strings.Contains(strings.ToLower(name), story+sentinelPrefix) {
		return ""
	}
	return story
}
