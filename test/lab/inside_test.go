//go:build e2e

package lab_test

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"

	"github.com/aad-pod-identity/aad-pod-identity/internal/azuresim/journal"
	"github.com/aad-pod-identity/aad-pod-identity/internal/azuresim/model"
	"github.com/aad-pod-identity/aad-pod-identity/test/netns"
)

// enter opens the network namespace of a member of the lab: azure, node1, …
func enter(t *testing.T, member string) *netns.NS {
	t.Helper()
	var process struct{ PID int }
	readJSON(t, filepath.Join(lab.dir, "process", member+".json"), &process)
	return open(t, member, process.PID)
}

// enterPod opens the network namespace of a pod by way of a program that runs in
// it for a moment. Nothing that is done in it later asks the API server.
func enterPod(t *testing.T, pod *corev1.Pod) *netns.NS {
	t.Helper()
	cmd := lab.Command(t.Context(), "exec", "-n", pod.Namespace, pod.Name, "--", "cat")
	stdin, err := cmd.StdinPipe()
	must(t, err)
	stdout, err := cmd.StdoutPipe()
	must(t, err)
	must(t, cmd.Start())
	_, err = stdin.Write([]byte{'\n'})
	must(t, err)
	_, err = io.ReadFull(stdout, make([]byte, 1)) // it is cat by now, under the number that lab had
	must(t, err)
	inside := open(t, pod.Name, cmd.Process.Pid)
	must(t, stdin.Close())
	must(t, cmd.Wait())
	return inside
}

func open(t *testing.T, name string, pid int) *netns.NS {
	t.Helper()
	n, err := netns.Open(name, pid)
	must(t, err)
	t.Cleanup(func() { must(t, n.Close()) })
	return n
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func readJSON(t *testing.T, file string, v any) {
	t.Helper()
	text, err := os.ReadFile(file)
	must(t, err)
	must(t, json.Unmarshal(text, v))
}

// inNode runs a command in a node and returns what it printed.
func inNode(ctx context.Context, node string, command ...string) (string, error) {
	return lab.Run(ctx, append([]string{"node", strings.TrimPrefix(node, "node"), "--"}, command...)...)
}

// onNode is inNode for a command that must succeed.
func onNode(t *testing.T, node string, command ...string) string {
	t.Helper()
	out, err := inNode(t.Context(), node, command...)
	if err != nil {
		t.Fatalf("%s on %s: %v: %s", strings.Join(command, " "), node, err, out)
	}
	return out
}

// kill sends a signal to a process of a node, by its number there.
func kill(t *testing.T, node, name string, pid int) {
	t.Helper()
	onNode(t, node, "kill", "-"+name, strconv.Itoa(pid))
}

// supervised is the process of a program that the node keeps running.
func supervised(t *testing.T, node, name string) int {
	t.Helper()
	var state struct{ PID int }
	readJSON(t, filepath.Join(lab.dir, node, "run", name+".json"), &state)
	if state.PID == 0 {
		t.Fatalf("%s does not run on %s", name, node)
	}
	return state.PID
}

// contained is the process of a program in a pod's container.
func contained(t *testing.T, pod *corev1.Pod, name string) int {
	t.Helper()
	const find = `for p in $(pgrep -x "$0"); do if grep -q "pod$1" /proc/$p/cgroup; then echo $p; fi; done`
	out := onNode(t, pod.Spec.NodeName, "sh", "-c", find, name, string(pod.UID))
	pid, err := strconv.Atoi(strings.TrimSpace(out))
	if err != nil {
		t.Fatalf("want one process %s in %s, got %q", name, pod.Name, out)
	}
	return pid
}

// metadataAddress is where pods ask for tokens.
func metadataAddress() netip.Addr { return netip.AddrFrom4([4]byte{169, 254, 169, 254}) }

// wire is the link between the nodes and Azure, as Azure sees it: what pods of
// one node get through to the node's metadata address.
type wire struct {
	node    string
	pods    netip.Prefix
	counter *netns.Counter
	packets uint64 // accounted for
	seq     uint64 // in the journal
}

// tapWire begins to count, and shows that it would see what it is there for: a
// request that the node itself sends from the range of its pods.
func tapWire(t *testing.T, node string) *wire {
	t.Helper()
	w := &wire{node: node, pods: podRange(t, node), seq: lastEntry(t)}
	var err error
	w.counter, err = enter(t, "azure").CountArrivalsFrom("nodes", w.pods, metadataAddress())
	must(t, err)
	conn := dialFrom(t, enter(t, node), w.pods.Addr().Next())
	defer conn.Close()
	_, err = io.WriteString(conn, "GET /metadata/instance?api-version=2021-02-01 HTTP/1.0\r\nMetadata: true\r\n\r\n")
	must(t, err)
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	entry, err := lab.Sim.Wait(ctx, w.seq, w.isLeak)
	must(t, err)
	_, err = io.Copy(io.Discard, conn) // the simulator closes; the kernel still says goodbye
	must(t, err)
	must(t, conn.Close())
	w.seq = entry.Seq
	if w.fresh(t) == 0 {
		t.Fatal("the count misses packets that Azure answered")
	}
	return w
}

func dialFrom(t *testing.T, node *netns.NS, source netip.Addr) net.Conn {
	t.Helper()
	var conn net.Conn
	must(t, node.Do(func() (err error) {
		dialer := net.Dialer{LocalAddr: &net.TCPAddr{IP: source.AsSlice()}, Timeout: 10 * time.Second}
		conn, err = dialer.DialContext(t.Context(), "tcp4", netip.AddrPortFrom(metadataAddress(), 80).String())
		return err
	}))
	return conn
}

// podRange is the range of a node's pods, as Azure knows it.
func podRange(t *testing.T, node string) netip.Prefix {
	t.Helper()
	for _, p := range azureNode(t, node).Prefixes {
		if !p.IsSingleIP() {
			return p
		}
	}
	t.Fatalf("Azure knows no range of pods on %s", node)
	return netip.Prefix{}
}

func azureNode(t *testing.T, name string) model.Node {
	t.Helper()
	state, err := lab.Sim.State(t.Context())
	must(t, err)
	i := slices.IndexFunc(state.Nodes, func(n model.Node) bool { return n.Name == name })
	if i < 0 {
		t.Fatalf("Azure does not know %s", name)
	}
	return state.Nodes[i]
}

// lastEntry is the number of the journal's last entry.
func lastEntry(t *testing.T) uint64 {
	t.Helper()
	entries, err := lab.Sim.Journal(t.Context(), 0)
	must(t, err)
	if len(entries) == 0 {
		return 0
	}
	return entries[len(entries)-1].Seq
}

// fresh returns how many packets have come since it was last asked.
func (w *wire) fresh(t *testing.T) uint64 {
	t.Helper()
	total, err := w.counter.Count()
	must(t, err)
	fresh := total - w.packets
	w.packets = total
	return fresh
}

// isLeak reports whether Azure answered a pod.
func (w *wire) isLeak(e journal.Entry) bool {
	return e.Surface == journal.IMDS && w.pods.Contains(e.Remote)
}

// leaks returns the requests of pods that Azure answered.
func (w *wire) leaks(t *testing.T) []journal.Entry {
	t.Helper()
	entries, err := lab.Sim.Journal(t.Context(), w.seq)
	must(t, err)
	return slices.DeleteFunc(entries, func(e journal.Entry) bool { return !w.isLeak(e) })
}

// wantSilence fails the test if a packet of a pod has come since the wire was
// last asked, or a request that Azure answered.
func (w *wire) wantSilence(t *testing.T) {
	t.Helper()
	if fresh := w.fresh(t); fresh > 0 {
		t.Errorf("%d packets of pods reached the metadata address of %s", fresh, w.node)
	}
	for _, e := range w.leaks(t) {
		t.Errorf("a pod was answered by the node's metadata service: %s", e)
	}
}

// asker is a program in a pod that asks for tokens, on a new connection each
// time.
type asker struct {
	http     *http.Client
	identity model.Identity
	// answers are what came how often: a status code, or one of the words below.
	answers map[string]int
	// pages holds the last body of each kind of answer.
	pages map[string]string
}

// What comes beside refusals, which are told by their status code.
const (
	own         = "200" // a token of the pod's own identity
	anothers    = "another identity"
	unreachable = "no connection"
)

func newAsker(inside *netns.NS, identity model.Identity) *asker {
	return &asker{
		http: &http.Client{
			Transport: &http.Transport{DialContext: inside.DialContext, DisableKeepAlives: true},
			Timeout:   5 * time.Second,
		},
		identity: identity, answers: map[string]int{}, pages: map[string]string{},
	}
}

// ask asks once and returns what kind of answer came.
func (a *asker) ask(ctx context.Context) string {
	kind, page := a.request(ctx)
	a.answers[kind]++
	a.pages[kind] = page
	return kind
}

func (a *asker) request(ctx context.Context) (kind, page string) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, tokenURL, nil)
	if err != nil {
		return unreachable, err.Error()
	}
	req.Header.Set("Metadata", "true")
	resp, err := a.http.Do(req)
	if err != nil {
		return unreachable, err.Error()
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		return unreachable, err.Error()
	}
	if resp.StatusCode != http.StatusOK {
		return strconv.Itoa(resp.StatusCode), string(body)
	}
	var token struct {
		ClientID string `json:"client_id"`
	}
	if json.Unmarshal(body, &token) != nil || !strings.EqualFold(token.ClientID, a.identity.ClientID) {
		return anothers, token.ClientID // never the body: it holds a token
	}
	return own, ""
}

// during asks twenty times a second, for five minutes at most, while f runs.
func (a *asker) during(t *testing.T, f func()) {
	t.Helper()
	ctx, stop := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() {
		defer close(done)
		pace := time.NewTicker(50 * time.Millisecond)
		defer pace.Stop()
		for range 5 * 60 * 20 {
			a.ask(context.WithoutCancel(ctx)) // to its end: a broken-off request is no answer
			select {
			case <-pace.C:
			case <-ctx.Done():
				return
			}
		}
	}()
	defer func() {
		stop()
		<-done
		t.Logf("answers meanwhile: %s", a)
	}()
	f()
}

// wantToken asks once and wants a token of the pod's own identity.
func (a *asker) wantToken(t *testing.T) {
	t.Helper()
	if kind := a.ask(t.Context()); kind != own {
		t.Errorf("the pod got no token of its own: %s %s", kind, a.pages[kind])
	}
}

// wantNone fails the test if there was ever an answer of the kind.
func (a *asker) wantNone(t *testing.T, kind string) {
	t.Helper()
	if a.answers[kind] > 0 {
		t.Errorf("%d answers of kind %s, such as %s", a.answers[kind], kind, a.pages[kind])
	}
}

func (a *asker) String() string {
	var parts []string
	for _, kind := range slices.Sorted(maps.Keys(a.answers)) {
		parts = append(parts, fmt.Sprintf("%s: %d", kind, a.answers[kind]))
	}
	return strings.Join(parts, ", ")
}
