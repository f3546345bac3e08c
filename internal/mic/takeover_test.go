package mic_test

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"net"
	"net/http"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	coordinationv1 "k8s.io/api/coordination/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/tools/clientcmd"
	clientcmdapi "k8s.io/client-go/tools/clientcmd/api"
	"sigs.k8s.io/controller-runtime/pkg/client"

	v1 "github.com/aad-pod-identity/aad-pod-identity/api/v1"
	"github.com/aad-pod-identity/aad-pod-identity/internal/azuresim"
	"github.com/aad-pod-identity/aad-pod-identity/internal/azuresim/journal"
	"github.com/aad-pod-identity/aad-pod-identity/internal/mic"
	"github.com/aad-pod-identity/aad-pod-identity/test/replica"
)

// childVariable tells a copy of this test program that it is a controller, and
// which one.
const childVariable = "MIC_TEST_CHILD"

// child is a controller as a process, so that it can be killed.
type child struct {
	Args  []string
	HTTPS string // the simulator's address
}

// TestChild is no test: it is the process that [world.spawn] starts.
func TestChild(t *testing.T) {
	text := os.Getenv(childVariable)
	if text == "" {
		return
	}
	var c child
	if err := json.Unmarshal([]byte(text), &c); err != nil {
		t.Fatal(err)
	}
	options, err := mic.ParseOptions(c.Args, os.Stderr)
	if err != nil {
		t.Fatal(err)
	}
	options.Transport = &http.Client{Transport: &http.Transport{
		TLSClientConfig: &tls.Config{InsecureSkipVerify: true, MinVersion: tls.VersionTLS12}, // loopback, and the simulator's own authority
		DialContext: func(ctx context.Context, network, _ string) (net.Conn, error) {
			var dialer net.Dialer
			return dialer.DialContext(ctx, network, c.HTTPS)
		},
	}}
	ctx, stop := signal.NotifyContext(t.Context(), syscall.SIGTERM)
	defer stop()
	if err := mic.Run(ctx, options); err != nil {
		t.Fatal(err)
	}
}

// process is a running child.
type process struct {
	command *exec.Cmd
	health  string
	ended   chan error
}

// spawn starts a controller as a process. It ends with the test.
func (w *world) spawn(t *testing.T, kubeconfig string, args ...string) *process {
	t.Helper()
	port := freePort(t)
	text, err := json.Marshal(child{HTTPS: w.https, Args: append([]string{
		"--cloudconfig", w.azure, "--kubeconfig", kubeconfig, "--http-probe-port=" + port, "--prometheus-port=0",
		"--gather-window=300ms", "--retry-min=200ms", "--retry-max=2s",
	}, args...)})
	if err != nil {
		t.Fatal(err)
	}
	p := &process{command: exec.CommandContext(t.Context(), os.Args[0], "-test.run=^TestChild$"), health: "http://127.0.0.1:" + port + "/healthz", ended: make(chan error, 1)}
	p.command.Env = append(os.Environ(), childVariable+"="+string(text), "MIC_POD_NAMESPACE="+micNamespace)
	p.command.Stdout, p.command.Stderr = t.Output(), t.Output()
	if err := p.command.Start(); err != nil {
		t.Fatal(err)
	}
	go func() { p.ended <- p.command.Wait() }()
	t.Cleanup(func() { _ = p.command.Process.Kill() }) // may have ended
	return p
}

func (w *world) kubeconfig(t *testing.T) string {
	t.Helper()
	file := filepath.Join(t.TempDir(), "kubeconfig")
	if err := clientcmd.WriteToFile(clientcmdapi.Config{
		Clusters:       map[string]*clientcmdapi.Cluster{"c": {Server: w.config.Host, CertificateAuthorityData: w.config.CAData}},
		AuthInfos:      map[string]*clientcmdapi.AuthInfo{"u": {ClientCertificateData: w.config.CertData, ClientKeyData: w.config.KeyData, Impersonate: micUser}},
		Contexts:       map[string]*clientcmdapi.Context{"x": {Cluster: "c", AuthInfo: "u"}},
		CurrentContext: "x",
	}, file); err != nil {
		t.Fatal(err)
	}
	return file
}

func says(text string) func(int, string) bool {
	return func(status int, body string) bool { return status == http.StatusOK && body == text }
}

// TestTakeover: the leader is killed while Azure attaches an identity for it.
// Another replica leads within the lease's duration and 2 seconds, and finishes
// the work without a second request to attach. One that ends cleanly is replaced
// at once. Who waits to lead does not gather the keys of all that comes and goes.
func TestTakeover(t *testing.T) {
	const duration = 8 * time.Second
	w := newWorld(t, azuresim.Config{ARMLatency: 3 * time.Second})
	s := w.scene(t, "takeover", scaleSets)
	s.identity(t, "demo")
	kubeconfig := w.kubeconfig(t)
	spawn := func(args ...string) *process {
		return w.spawn(t, kubeconfig, append(args, "--leader-election-duration="+duration.String())...)
	}
	first := spawn()
	get(t, first.health, says("Active"))
	port := freePort(t)
	second := spawn("--prometheus-port=" + port)
	get(t, strings.Replace(second.health, "healthz", "readyz", 1), says("ok"))
	if status, text := fetch(t, "http://127.0.0.1:"+port+"/metrics"); status != http.StatusOK || replica.Sum(text, "workqueue_depth") > 0 {
		t.Errorf("who waits to lead answers %d and has gathered %v keys", status, replica.Sum(text, "workqueue_depth"))
	}

	pod := s.pod(t, "web", "demo")
	if _, err := w.sim.Journal.Wait(t.Context(), func(e journal.Entry) bool { return s.ours(e, http.MethodPatch) }); err != nil {
		t.Fatal(err)
	}
	killed := time.Now()
	if err := first.command.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	get(t, second.health, says("Active"))
	took := time.Since(killed)
	t.Logf("killed: replaced after %s, with a lease of %s", took.Round(10*time.Millisecond), duration)
	if took > duration+2*time.Second {
		t.Errorf("killed: replaced after %s, want %s at most", took, duration+2*time.Second)
	}
	s.assigned(t, pod)
	if got := len(s.requests(http.MethodPatch)); got != 1 {
		t.Errorf("ARM saw %d patches, want the killed leader's alone", got)
	}
	s.record(t, "that is owned", owns(v1.OwnershipOwned))

	third := spawn()
	get(t, strings.Replace(third.health, "healthz", "readyz", 1), says("ok"))
	stopped := time.Now()
	if err := second.command.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	get(t, third.health, says("Active"))
	took = time.Since(stopped)
	t.Logf("stopped: replaced after %s", took.Round(10*time.Millisecond))
	if took > duration/2 {
		t.Errorf("stopped: replaced after %s: was the lease not released?", took)
	}
	if err := <-second.ended; err != nil {
		t.Errorf("a clean end is %v", err)
	}
	s.kill(t, pod)
	s.present(t)
}

// TestLostLead: whoever loses the lead ends, and with it every request under way.
func TestLostLead(t *testing.T) {
	t.Parallel()
	w := newWorld(t, azuresim.Config{})
	s := w.scene(t, "lost", scaleSets)
	s.identity(t, "demo")
	options := s.options(t, "--leader-election-duration=4s")
	waiting, cut := make(chan struct{}), make(chan struct{})
	options.Transport = &gate{Transporter: options.Transport, before: func(r *http.Request) error {
		if r.Method != http.MethodPatch {
			return nil
		}
		close(waiting)
		<-r.Context().Done()
		close(cut)
		return r.Context().Err()
	}}
	ran := make(chan error, 1)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	go func() { ran <- mic.Run(ctx, options) }()
	s.pod(t, "web", "demo")
	<-waiting
	lease := &coordinationv1.Lease{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "aad-pod-identity-mic"}}
	stolen := make(chan struct{})
	go func() { // the thief stays alive
		defer close(stolen)
		for ctx.Err() == nil {
			if err := w.kube.Get(ctx, client.ObjectKeyFromObject(lease), lease); err != nil {
				continue
			}
			lease.Spec.HolderIdentity, lease.Spec.RenewTime = new("thief"), new(metav1.NowMicro())
			_ = w.kube.Update(ctx, lease) // a conflict is tried again
		}
	}()
	if err := <-ran; err == nil || !strings.Contains(err.Error(), "leader election lost") {
		t.Errorf("got %v, want that the lead was lost", err)
	}
	<-cut
	cancel()
	<-stolen
}

// TestOldLeaderIsWaitedFor: an old controller holds its lock, says so by writing
// it, and ends. Ours says on its Lease whom it waits for.
func TestOldLeaderIsWaitedFor(t *testing.T) {
	t.Parallel()
	w := newWorld(t, azuresim.Config{})
	record := func(holder string) map[string]string {
		return map[string]string{"control-plane.alpha.kubernetes.io/leader": `{"holderIdentity":"` + holder + `","leaseDurationSeconds":5,"acquireTime":"2023-09-28T12:00:00Z","renewTime":"2023-09-28T12:00:00Z","leaderTransitions":7}`}
	}
	old := &corev1.Endpoints{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "aad-pod-identity-mic", Annotations: record("mic-5d8f7b7c9-x2x4v")}} //nolint:staticcheck // the old controller's kind
	w.create(t, old)
	port := freePort(t)
	run(t, w.options(t, "--http-probe-port="+port, "--leader-election-duration=4s"))
	s := &scene{world: w}
	s.event(t, "Lease", "aad-pod-identity-mic", string(v1.ReasonOldController), "mic-5d8f7b7c9-x2x4v")
	if status, body := fetch(t, "http://127.0.0.1:"+port+"/healthz"); status != http.StatusOK || body != "Not Active" {
		t.Errorf("while an old one leads: %d %q", status, body)
	}
	get(t, "http://127.0.0.1:"+port+"/healthz", says("Active"))
	s.event(t, "Lease", "aad-pod-identity-mic", "LeaderElection", "became leader")
}
