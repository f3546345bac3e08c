package obs_test

import (
	"context"
	"io"
	"net/http"
	"testing"
	"time"

	"github.com/aad-pod-identity/aad-pod-identity/internal/obs"
)

// served is a server that was told to end while a request is under way.
type served struct {
	answered chan string // the body of the answer, or the error
	ended    chan error
}

// endWhile starts a server, asks it, and tells it to end as soon as it has begun to
// answer.
func endWhile(t *testing.T, drain time.Duration, answer http.HandlerFunc) served {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	listener, err := obs.Listen(ctx, "127.0.0.1:0", "port")
	if err != nil {
		t.Fatal(err)
	}
	begun := make(chan struct{})
	out := served{make(chan string, 1), make(chan error, 1)}
	go func() {
		out.ended <- obs.Serve(ctx, listener, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			close(begun)
			answer(w, r)
		}), drain)
	}()
	request, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "http://"+listener.Addr().String(), nil)
	if err != nil {
		t.Fatal(err)
	}
	go func() {
		response, err := (&http.Client{Transport: &http.Transport{DisableKeepAlives: true}}).Do(request)
		if err != nil {
			out.answered <- err.Error()
			return
		}
		defer func() { _ = response.Body.Close() }()
		body, _ := io.ReadAll(response.Body) // what came until the end
		out.answered <- string(body)
	}()
	<-begun
	cancel()
	return out
}

func TestARequestInFlightEnds(t *testing.T) {
	may := make(chan struct{})
	s := endWhile(t, time.Minute, func(w http.ResponseWriter, _ *http.Request) {
		<-may
		_, _ = io.WriteString(w, "whole")
	})
	close(may)
	if got := <-s.answered; got != "whole" {
		t.Errorf("got %q", got)
	}
	if err := <-s.ended; err != nil {
		t.Errorf("ended with %v", err)
	}
}

// A request that never ends ends with its connection, and the process with it.
func TestTheDrainIsBounded(t *testing.T) {
	s := endWhile(t, time.Millisecond, func(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() })
	if err := <-s.ended; err == nil {
		t.Error("nobody was told that a request was cut off")
	}
	if got := <-s.answered; got == "" {
		t.Error("the request was answered")
	}
}
