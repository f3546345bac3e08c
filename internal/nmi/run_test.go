package nmi

import (
	"context"
	"errors"
	"io"
	"net"
	"net/netip"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/rest"
	"k8s.io/klog/v2"
	"sigs.k8s.io/controller-runtime/pkg/client"

	v1 "github.com/aad-pod-identity/aad-pod-identity/api/v1"
	"github.com/aad-pod-identity/aad-pod-identity/internal/nmi/redirect"
)

// gate is a way to the API server that can be shut.
type gate struct {
	listener net.Listener
	target   string

	mu    sync.Mutex // protects all following fields
	open  bool
	conns map[net.Conn]bool
}

func newGate(t *testing.T, config *rest.Config, open bool) (*gate, *rest.Config) {
	t.Helper()
	var listen net.ListenConfig
	listener, err := listen.Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	g := &gate{listener: listener, target: strings.Trim(strings.TrimPrefix(config.Host, "https:"), "/"), open: open, conns: map[net.Conn]bool{}}
	t.Cleanup(func() { _ = listener.Close(); g.set(false) })
	go g.run(t.Context())
	through := rest.CopyConfig(config)
	through.Host = "https://" + listener.Addr().String()
	return g, through
}

func (g *gate) run(ctx context.Context) {
	for {
		in, err := g.listener.Accept()
		if err != nil {
			return
		}
		var dialer net.Dialer
		out, err := dialer.DialContext(ctx, "tcp", g.target)
		if err != nil || !g.keep(in, out) {
			_ = in.Close()
			continue
		}
		for _, pair := range [][2]net.Conn{{in, out}, {out, in}} {
			go func() {
				_, _ = io.Copy(pair[0], pair[1]) // ends when either is closed
				_ = pair[0].Close()
				_ = pair[1].Close()
			}()
		}
	}
}

func (g *gate) keep(conns ...net.Conn) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	for _, conn := range conns {
		if g.open {
			g.conns[conn] = true
		} else {
			_ = conn.Close()
		}
	}
	return g.open
}

func (g *gate) set(open bool) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.open = open
	if !open {
		for conn := range g.conns {
			_ = conn.Close()
		}
		clear(g.conns)
	}
}

func TestTheAPIServerComesAndGoes(t *testing.T) {
	c := newCluster(t)
	ns := c.namespace("away")
	_, upstream := azure(t)
	c.apply(azureIdentity(ns, 1), azureBinding(ns, 1, "app"))
	c.pod(ns, "pod", "app", "127.1.0.1")
	way, config := newGate(t, c.config, false)
	r := start(t, config, upstream, "--operation-mode=managed")

	// Without an API server: up, closed, and unready for a reason that is said.
	if got := r.get("127.1.0.1", tokenPath+"?resource="+resource); got.status != 503 || !strings.Contains(got.body, "NotReady") {
		t.Errorf("before: %d %s", got.status, got.body)
	}
	if got := probe(t, r.probes, "/readyz"); got.status != 503 || !strings.Contains(got.body, "[+]rules ok") || !strings.Contains(got.body, "azureidentities, azureidentitybindings, azurepodidentityexceptions, pods") {
		t.Errorf("before: /readyz %d %s", got.status, got.body)
	}
	if got := probe(t, r.probes, "/healthz"); got.status != 200 || got.body != "Not Active" {
		t.Errorf("before: /healthz %d %s", got.status, got.body)
	}

	way.set(true)
	r.ready()
	if got := r.get("127.1.0.1", tokenPath+"?resource="+resource); got.status != 200 {
		t.Errorf("with it: %d %s", got.status, got.body)
	}

	// Away again: what is known is served, also what no cache of tokens has.
	way.set(false)
	if got := r.get("127.1.0.1", tokenPath+"?resource=https://storage.azure.com"); got.status != 200 {
		t.Errorf("without it: %d %s", got.status, got.body)
	}
	if got := probe(t, r.probes, "/readyz"); got.status != 200 {
		t.Errorf("without it: /readyz %d %s", got.status, got.body)
	}

	// The agent comes back, too, and needs no help.
	if err := r.stop(); err != nil {
		t.Fatal(err)
	}
	way.set(true)
	again := start(t, config, upstream, "--operation-mode=managed").ready()
	if got := again.get("127.1.0.1", tokenPath+"?resource="+resource); got.status != 200 {
		t.Errorf("restarted: %d %s", got.status, got.body)
	}
	testLateAddress(t, c, again, ns)
	testAssignmentsWithoutLabel(t, c, upstream)
}

// A pod can ask before its address has reached the API server.
func testLateAddress(t *testing.T, c *cluster, r *running, ns string) {
	answered := make(chan reaction, 1)
	go func() { answered <- r.get("127.1.0.2", tokenPath+"?resource="+resource) }()
	c.pod(ns, "late", "app", "127.1.0.2")
	if got := <-answered; got.status != 200 {
		t.Errorf("late address: %d %s", got.status, got.body)
	}
}

// Assignments of old controllers carry no label of their node.
func testAssignmentsWithoutLabel(t *testing.T, c *cluster, upstream netip.AddrPort) {
	ns := c.namespace("unlabelled")
	id := azureIdentity(ns, 1)
	c.apply(id, azureBinding(ns, 1, "app"))
	assigned := assignment(c.pod(ns, "pod", "app", "127.1.0.3"), id, v1.AssignedIDAssigned)
	assigned.Labels = nil
	c.apply(assigned)
	for flag, want := range map[string]int{"--enableScaleFeatures=true": 404, "--enableScaleFeatures=false": 200} {
		r := start(t, c.config, upstream, flag, "--assignment-wait=0s").ready()
		if got := r.get("127.1.0.3", tokenPath+"?resource="+resource); got.status != want {
			t.Errorf("%s: %d %s", flag, got.status, got.body)
		}
	}
	var pods corev1.PodList
	if err := c.client.List(t.Context(), &pods, client.InNamespace(ns)); err != nil || len(pods.Items) != 1 {
		t.Errorf("pods %v, %v", pods.Items, err)
	}
}

// clock is the time, and what a test adds to it.
type clock struct{ ahead atomic.Int64 }

func (c *clock) now() time.Time { return time.Now().Add(time.Duration(c.ahead.Load())) }

func TestWhatIsKnownIsServedForABoundedTime(t *testing.T) {
	c := newCluster(t)
	ns := c.namespace("stale")
	_, upstream := azure(t)
	c.apply(azureIdentity(ns, 1), azureBinding(ns, 1, "app"))
	c.pod(ns, "pod", "app", "127.1.2.1")
	way, config := newGate(t, c.config, true)
	ahead := &clock{}
	r := startWith(t, func(o *Options) { o.rest, o.Upstream, o.now = config, upstream.String(), ahead.now },
		"--operation-mode=managed", "--max-cache-staleness=10m").ready()
	ask := func() reaction { return r.get("127.1.2.1", tokenPath+"?resource="+resource) }
	want := func(when string, status, readyz int, words string) {
		t.Helper()
		if got := ask(); got.status != status || !strings.Contains(got.body, words) {
			t.Errorf("%s: %d %s", when, got.status, got.body)
		}
		if got := probe(t, r.probes, "/readyz"); got.status != readyz {
			t.Errorf("%s: /readyz %d %s", when, got.status, got.body)
		}
	}
	want("with the API server", 200, 200, "")
	way.set(false)
	ahead.ahead.Store(int64(9 * time.Minute))
	want("away for 9 minutes", 200, 200, "")
	ahead.ahead.Store(int64(11 * time.Minute))
	want("away for 11 minutes", 503, 503, string(v1.ReasonStale))
	if got := probe(t, r.probes, "/readyz").body; !strings.Contains(got, "[-]caches failed: the API server has said nothing") || !strings.Contains(got, "azurepodidentityexceptions, pods") {
		t.Errorf("/readyz: %s", got)
	}
	if got := probe(t, r.probes, "/healthz"); got.status != 200 || got.body != "Not Active" {
		t.Errorf("a restart does not bring the API server back: /healthz %d %s", got.status, got.body)
	}
	if got := probe(t, r.metrics, "/metrics").body; !strings.Contains(got, `nmi_decisions_total{reason="Stale",route="token"} 1`) {
		t.Error("the refusal is not counted")
	}

	// Each kind is heard of again: by an event, which a bookmark would be, later.
	way.set(true)
	c.apply(azureIdentity(ns, 2), azureBinding(ns, 2, "other"),
		&v1.AzurePodIdentityException{ObjectMeta: metav1.ObjectMeta{Namespace: ns, Name: "e"}, Spec: v1.AzurePodIdentityExceptionSpec{PodLabels: map[string]string{"a": "b"}}})
	c.pod(ns, "other", "other", "127.1.2.2")
	deadline := time.Now().Add(time.Minute)
	for probe(t, r.probes, "/readyz").status != 200 {
		if time.Now().After(deadline) {
			t.Fatal("the agent did not come back")
		}
	}
	want("back", 200, 200, "")
}

// nowhere is a configuration that leads to no API server.
func nowhere() *rest.Config { return &rest.Config{Host: "https://127.0.0.1:1"} }

func TestRunRefusesToStart(t *testing.T) {
	var listen net.ListenConfig
	taken, err := listen.Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = taken.Close() }()
	_, port, err := net.SplitHostPort(taken.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	for name, test := range map[string]struct {
		flags  []string
		change func(*Options)
		words  []string
	}{
		"no node":           {[]string{"--node="}, nil, []string{"--node is empty", "spec.nodeName"}},
		"port in use":       {[]string{"--nmi-port=" + port}, nil, []string{"127.0.0.1:" + port, "--nmi-port"}},
		"probe port in use": {[]string{"--http-probe-port=" + port}, nil, []string{port, "--http-probe-port"}},
		"unknown mode":      {[]string{"--operation-mode=magic"}, nil, []string{"--operation-mode", "standard or managed"}},
		"no privileges": {nil, func(o *Options) {
			o.newRedirect = func(redirect.Config) (redirector, error) {
				return &fakeRedirect{keep: func(context.Context, redirectHooks) error { return errors.New("needs NET_ADMIN") }}, nil
			}
		}, []string{"putting the redirect in place", "needs NET_ADMIN"}},
		"no kubeconfig":      {[]string{"--kubeconfig=" + filepath.Join(t.TempDir(), "none")}, func(o *Options) { o.rest = nil }, []string{"how to reach the API server"}},
		"unknown log format": {[]string{"--log-format=xml"}, func(o *Options) { o.Logger = nil }, []string{"text or json"}},
	} {
		t.Run(name, func(t *testing.T) {
			options := testOptions(t, test.flags...)
			options.rest, options.Logger = nowhere(), quiet(t)
			options.newRedirect = func(redirect.Config) (redirector, error) { return &fakeRedirect{}, nil }
			if test.change != nil {
				test.change(options)
			}
			err := Run(t.Context(), options)
			for _, word := range test.words {
				if err == nil || !strings.Contains(err.Error(), word) {
					t.Errorf("error %v does not say %q", err, word)
				}
			}
		})
	}
}

func TestRunEndsWhenToldTo(t *testing.T) {
	waiting, leave := make(chan struct{}), make(chan struct{})
	upstream := slowUpstream(t, waiting, leave)
	c := newCluster(t)
	ns := c.namespace("drain")
	c.apply(azureIdentity(ns, 1), azureBinding(ns, 1, "app"))
	c.pod(ns, "pod", "app", "127.1.1.1")
	r := start(t, c.config, upstream, "--operation-mode=managed").ready()
	answered := make(chan reaction, 1)
	go func() { answered <- r.get("127.1.1.1", tokenPath+"?resource="+resource) }()
	<-waiting
	ended := make(chan error, 1)
	go func() { ended <- r.stop() }()
	// Unready is what comes first; it is a matter of a goroutine's turn.
	turns := 0
	for ; probe(t, r.probes, "/readyz").status == 200; turns++ {
		if turns == 10_000 {
			t.Fatal("the agent was told to end and stayed ready")
		}
	}
	close(leave)
	if got := <-answered; got.status != 200 {
		t.Errorf("the request in flight: %d %s", got.status, got.body)
	}
	if err := <-ended; err != nil {
		t.Errorf("ended with %v", err)
	}
	if !strings.Contains(r.log.String(), "rules stay") || r.redirect.deleted.Load() {
		t.Error("the log does not say that the rules stay, or they did not")
	}
	if !r.redirect.refused.Load() {
		t.Error("pods were still led to an agent that ended")
	}
}

// TestTheTargetIsMadeBeforeTheAgentListens: an address that nobody has made is
// what the agent then cannot listen on.
func TestTheTargetIsMadeBeforeTheAgentListens(t *testing.T) {
	broken := errors.New("no links here")
	for name, test := range map[string]struct {
		made  string
		err   error
		words string
	}{
		"it is made":         {"link x: missing", nil, "listening on 169.254.255.79:"},
		"it is there":        {"", nil, "listening on 169.254.255.79:"},
		"it cannot be there": {"", broken, "no links here"},
	} {
		t.Run(name, func(t *testing.T) {
			log := &lines{}
			options := testOptions(t, "--redirect-target=link")
			options.rest, options.Logger = nowhere(), logTo(log)
			var config redirect.Config
			options.newRedirect = func(c redirect.Config) (redirector, error) {
				config = c
				return &fakeRedirect{prepare: func() (string, error) { return test.made, test.err }}, nil
			}
			err := Run(t.Context(), options)
			if err == nil || !strings.Contains(err.Error(), test.words) || !config.Link || config.Target.Addr() != redirect.LinkAddress() {
				t.Errorf("%v, for a redirect of %+v", err, config)
			}
			if got := strings.Contains(log.String(), "made what pods are led to"); got != (test.made != "") {
				t.Errorf("the log says %q", log.String())
			}
		})
	}
}

func TestTheRedirectIsReported(t *testing.T) {
	hooks := make(chan redirectHooks, 1)
	keep := &fakeRedirect{keep: func(ctx context.Context, h redirectHooks) error { hooks <- h; <-ctx.Done(); return nil }}
	log := &lines{}
	options := testOptions(t)
	options.rest, options.Logger = nowhere(), logTo(log)
	options.newRedirect = func(redirect.Config) (redirector, error) { return keep, nil }
	var probes, metrics netip.AddrPort
	open := make(chan struct{})
	options.listening = func(_, p, m netip.AddrPort) { probes, metrics = loopback(p), loopback(m); close(open) }
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- Run(ctx, options) }()
	<-open
	h := <-hooks
	if got := probe(t, probes, "/readyz"); got.status != 503 || !strings.Contains(got.body, "[-]rules failed: not in place yet") {
		t.Errorf("before: %d %s", got.status, got.body)
	}
	h.ready()
	h.changed(redirect.Change{Rules: true, Reason: "a rule is gone"})
	h.changed(redirect.Change{OwnLink: "the link was down"})
	h.changed(redirect.Change{Links: 1})
	h.failed(errors.New("netlink is silent"))
	if got := probe(t, probes, "/readyz"); !strings.Contains(got.body, "[+]rules ok") {
		t.Errorf("after: %s", got.body)
	}
	if got := probe(t, metrics, "/metrics"); !strings.Contains(got.body, "nmi_redirect_repairs_total 2\n") {
		t.Error("the repairs are not counted")
	}
	cancel()
	if err := <-ended; err != nil {
		t.Error(err)
	}
	for _, words := range []string{"redirect is in place", "a rule is gone", "the link was down", "netlink is silent"} {
		if !strings.Contains(log.String(), words) {
			t.Errorf("the log lacks %q", words)
		}
	}
}

func TestExecute(t *testing.T) {
	for name, test := range map[string]struct {
		args           []string
		code           int
		stdout, stderr string
	}{
		"version":          {[]string{"--version"}, 0, "NMI Version: ", ""},
		"help":             {[]string{"--help"}, 0, "", "--nmi-listen-address"},
		"help's commands":  {[]string{"--help"}, 0, "", "nmi redirect-only"},
		"a command's help": {[]string{"cleanup", "--help"}, 0, "", "removes the tables"},
		"a command's flag": {[]string{"cleanup", "--node=a"}, 2, "", "nmi cleanup --help"},
		"help's uninstall": {[]string{"--help"}, 0, "", "nmi uninstall "},
		"uninstall":        {[]string{"uninstall"}, 2, "", "nmi uninstall --help"},
		"unknown flag":     {[]string{"--nodes=a"}, 2, "", "unknown flag: --nodes"},
		"unknown command":  {[]string{"frobnicate"}, 2, "", `unknown command "frobnicate"`},
		"no node":          {nil, 1, "", "--node is empty"},
	} {
		t.Run(name, func(t *testing.T) {
			var stdout, stderr strings.Builder
			before := klog.Background()
			code := Execute(t.Context(), test.args, &stdout, &stderr)
			if code != test.code || !strings.Contains(stdout.String(), test.stdout) || !strings.Contains(stderr.String(), test.stderr) {
				t.Errorf("exit %d, stdout %q, stderr %q", code, stdout.String(), stderr.String())
			}
			if klog.Background() != before {
				t.Error("the whole process logs elsewhere, though nothing runs")
			}
			if strings.Contains(stderr.String(), "log_backtrace_at") {
				t.Error("help shows flags without an effect")
			}
		})
	}
}

func TestMetadataThatCanBeListed(t *testing.T) {
	if _, err := testOptions(t, "--allowed-metadata=attested,scheduledevents").config(); err != nil {
		t.Error(err)
	}
	if _, err := testOptions(t, "--allowed-metadata=identity").config(); err == nil || !strings.Contains(err.Error(), "attested, scheduledevents") {
		t.Errorf("got %v", err)
	}
}
