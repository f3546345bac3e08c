package e2e_test

import (
	"context"
	"net/http"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/aad-pod-identity/aad-pod-identity/test/world"
)

// load is a pod's requests, one after the other by several of its programs, for as
// long as a test wants them.
type load struct {
	issued, failed atomic.Int64
	// served says that a token came since it was read last.
	served chan struct{}
	stop   func()
}

// startLoad begins. Whatever comes must be a token of the identity, an agent's
// refusal, or nothing at all.
func startLoad(t *testing.T, pod *world.Pod, clientID string) *load {
	t.Helper()
	l := &load{served: make(chan struct{}, 1)}
	ctx, cancel := context.WithCancel(t.Context())
	var programs sync.WaitGroup
	for range 3 {
		client := httpClient(t, pod.NS)
		client.Timeout = 5 * time.Second
		programs.Go(func() {
			pace := time.NewTicker(5 * time.Millisecond)
			defer pace.Stop()
			for ctx.Err() == nil {
				<-pace.C
				l.ask(ctx, t, client, clientID)
			}
		})
	}
	l.stop = func() { cancel(); programs.Wait() }
	t.Cleanup(l.stop)
	return l
}

func (l *load) ask(ctx context.Context, t *testing.T, client *http.Client, clientID string) {
	got, err := get(ctx, client, query(), metadata())
	switch {
	case err != nil:
		l.failed.Add(1)
	case got.status == http.StatusServiceUnavailable: // an agent that has just come
		l.failed.Add(1)
	case got.status != http.StatusOK || got.field("client_id") != clientID:
		t.Errorf("the pod was answered %d %s", got.status, got.body)
	default:
		l.issued.Add(1)
		select {
		case l.served <- struct{}{}:
		default:
		}
	}
}

// TestAHundredRestarts kills, ends and upgrades NMI under a pod that asks all the
// while: no packet of the pod's reaches the node's metadata service, counted on
// the wire, and each agent that comes serves it.
func TestAHundredRestarts(t *testing.T) {
	const index, restarts = 1, 100
	node := shared.Nodes[index]
	noLeak(t, node)
	identity := newIdentity(t, "")
	bind(t, name(t), identity, name(t))
	pod := runPod(t, node, name(t), name(t))
	awaitAssigned(t, pod)
	l := startLoad(t, pod, identity.ClientID)
	t.Cleanup(func() { // the other tests want the usual one, and ready
		ctx := context.WithoutCancel(t.Context())
		if err := restart(ctx, index, syscall.SIGTERM); err != nil {
			t.Error(err)
		}
		if err := node.AwaitNMI(ctx, shared.nmi[index]); err != nil {
			t.Error(err)
		}
	})
	// An upgrade brings another program with other flags and other rules: the port
	// is in all of them. The order is that of a DaemonSet, which ends the old one
	// first.
	versions := [][]string{
		{"--operation-mode=standard"},
		{"--operation-mode=standard", "--log-format=json", "--ipt-update-interval-sec=1"},
		{"--operation-mode=standard", "--nmi-port=2580"},
		{"--operation-mode=standard"},
	}
	signals := []syscall.Signal{syscall.SIGKILL, syscall.SIGTERM, syscall.SIGKILL}
	for i := range restarts {
		awaitServed(t, l, i)
		if err := restart(t.Context(), index, signals[i%len(signals)], versions[i%len(versions)]...); err != nil {
			t.Fatal(err)
		}
	}
	awaitServed(t, l, restarts)
	l.stop()
	t.Logf("%d tokens, and %d requests for which no agent was there", l.issued.Load(), l.failed.Load())
	if l.issued.Load() < restarts || l.failed.Load() == 0 {
		t.Error("the pod did not ask all the while: this test proves nothing")
	}
}

// awaitServed waits for a token that came after the call.
func awaitServed(t *testing.T, l *load, restarts int) {
	t.Helper()
	for range 2 { // the first may have come before
		select {
		case <-l.served:
		case <-time.After(time.Minute):
			t.Fatalf("after %d restarts the pod gets no token:\n%s", restarts, shared.nmi[1].Log())
		}
	}
}

// restart ends the agent of a node and starts another. It waits for nothing.
func restart(ctx context.Context, index int, signal syscall.Signal, flags ...string) error {
	if err := shared.nmi[index].Signal(ctx, signal); err != nil {
		return err
	}
	process, err := shared.Nodes[index].LaunchNMI(ctx, flags...)
	if err == nil {
		shared.nmi[index] = process
	}
	return err
}
