package nmi

import (
	"context"
	"errors"
	"io"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/client-go/rest"
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
	if got := probe(t, r.probes, "/readyz"); got.status != 503 || !strings.Contains(got.body, "rules: ok") || !strings.Contains(got.body, "azureidentities, azureidentitybindings, azurepodidentityexceptions, pods") {
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
	if !strings.Contains(r.log.String(), "rules stay") {
		t.Error("the log does not say that the rules stay")
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
	if got := probe(t, probes, "/readyz"); got.status != 503 || !strings.Contains(got.body, "rules: not in place yet") {
		t.Errorf("before: %d %s", got.status, got.body)
	}
	h.ready()
	h.changed(redirect.Change{Rules: true, Reason: "a rule is gone"})
	h.failed(errors.New("netlink is silent"))
	if got := probe(t, probes, "/readyz"); !strings.Contains(got.body, "rules: ok") {
		t.Errorf("after: %s", got.body)
	}
	if got := probe(t, metrics, "/metrics"); !strings.Contains(got.body, "nmi_redirect_repairs_total 1\n") {
		t.Error("the repair is not counted")
	}
	cancel()
	if err := <-ended; err != nil {
		t.Error(err)
	}
	for _, words := range []string{"redirect is in place", "a rule is gone", "netlink is silent"} {
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
		"version":         {[]string{"--version"}, 0, "NMI Version: ", ""},
		"help":            {[]string{"--help"}, 0, "", "--nmi-listen-address"},
		"unknown flag":    {[]string{"--nodes=a"}, 2, "", "unknown flag: --nodes"},
		"unknown command": {[]string{"frobnicate"}, 2, "", `unknown command "frobnicate"`},
		"no node":         {nil, 1, "", "--node is empty"},
	} {
		t.Run(name, func(t *testing.T) {
			var stdout, stderr strings.Builder
			code := Execute(t.Context(), test.args, &stdout, &stderr)
			if code != test.code || !strings.Contains(stdout.String(), test.stdout) || !strings.Contains(stderr.String(), test.stderr) {
				t.Errorf("exit %d, stdout %q, stderr %q", code, stdout.String(), stderr.String())
			}
			if strings.Contains(stderr.String(), "log_backtrace_at") {
				t.Error("help shows flags without an effect")
			}
		})
	}
}

func TestOptions(t *testing.T) {
	t.Setenv("FORCENAMESPACED", "true")
	t.Setenv("KUBECONFIG", filepath.Join(os.TempDir(), "k"))
	fromEnvironment := NewOptions()
	if !fromEnvironment.Namespaced || fromEnvironment.Kubeconfig == "" {
		t.Errorf("the environment is not read: %+v", fromEnvironment)
	}
	for name, test := range map[string]struct {
		flags []string
		check func(config) bool
		words string
	}{
		"defaults": {nil, func(c config) bool {
			return c.wait == 4*time.Second && c.ruleInterval == time.Minute && c.metadata == c.upstream && c.metadata.String() == "169.254.169.254:80"
		}, ""},
		"metadata address everywhere":  {[]string{"--metadata-ip=10.0.0.1", "--metadata-port=81"}, func(c config) bool { return c.metadata.String() == "10.0.0.1:81" && c.upstream == c.metadata }, ""},
		"all addresses":                {[]string{"--nmi-listen-address=0.0.0.0"}, func(c config) bool { return c.api == "0.0.0.0:0" && c.listener.Addr().IsLoopback() }, ""},
		"any spelling of the mode":     {[]string{"--operation-mode=Managed"}, func(c config) bool { return c.managed }, ""},
		"its own wait":                 {[]string{"--assignment-wait=9s"}, func(c config) bool { return c.wait == 9*time.Second }, ""},
		"the contract's wait":          {[]string{"--retry-attempts-for-created=1", "--retry-attempts-for-assigned=1", "--find-identity-retry-interval=1"}, func(c config) bool { return c.wait == 2*time.Second }, ""},
		"one of the contract's three":  {[]string{"--find-identity-retry-interval=1"}, func(c config) bool { return c.wait == 20*time.Second }, ""},
		"a wait without end":           {[]string{"--find-identity-retry-interval=60"}, nil, "--assignment-wait"},
		"a wait before its beginning":  {[]string{"--assignment-wait=-1s"}, nil, "--assignment-wait"},
		"an interval of nothing":       {[]string{"--ipt-update-interval-sec=0"}, nil, "--ipt-update-interval-sec"},
		"a port that is none":          {[]string{"--nmi-port=http"}, nil, "--nmi-port"},
		"a port too far":               {[]string{"--prometheus-port=70000"}, nil, "--prometheus-port"},
		"an address that is none":      {[]string{"--metadata-ip=imds"}, nil, "--metadata-ip"},
		"an address of another family": {[]string{"--nmi-listen-address=::1"}, nil, "IPv4"},
		"an upstream without a port":   {[]string{"--metadata-upstream=10.0.0.1"}, nil, "--metadata-upstream"},
		"the known clouds": {nil, func(c config) bool {
			return finds(c, "https://login.microsoftonline.us/") && !finds(c, "https://adfs.local/")
		}, ""},
		"authorities of one's own": {[]string{"--authority-hosts=adfs.local,login.microsoftonline.us"}, func(c config) bool {
			return finds(c, "https://adfs.local/") && !finds(c, "https://login.microsoftonline.com/")
		}, ""},
		"an authority by http":  {[]string{"--authority-hosts=http://adfs.local"}, nil, "--authority-hosts"},
		"no authority":          {[]string{"--authority-hosts=,"}, nil, "--authority-hosts"},
		"a Secret for ever":     {[]string{"--secret-max-age=24h"}, nil, "--secret-max-age"},
		"a Secret for no time":  {[]string{"--secret-max-age=0s"}, nil, "--secret-max-age"},
		"metadata that is none": {[]string{"--allowed-metadata=identity"}, nil, "attested, scheduledevents"},
		"metadata that is some": {[]string{"--allowed-metadata=attested,scheduledevents"}, func(config) bool { return true }, ""},
		"asking itself":         {[]string{"--metadata-ip=127.0.0.1", "--metadata-port=0"}, nil, "never leave the agent"},
	} {
		t.Run(name, func(t *testing.T) {
			got, err := testOptions(t, test.flags...).config()
			switch {
			case test.check == nil && (err == nil || !strings.Contains(err.Error(), test.words)):
				t.Errorf("got %v, want words of %q", err, test.words)
			case test.check != nil && (err != nil || !test.check(got)):
				t.Errorf("got %+v, %v", got, err)
			}
		})
	}
}

func finds(c config, endpoint string) bool {
	_, err := c.authorities.Find(endpoint)
	return err == nil
}

// A cloud of one's own is allowed beside the known ones.
func TestTheCustomCloudsAuthority(t *testing.T) {
	file := filepath.Join(t.TempDir(), "cloud.json")
	if err := os.WriteFile(file, []byte(`{"activeDirectoryEndpoint":"https://adfs.local.azurestack.external/adfs/"}`), 0o600); err != nil {
		t.Fatal(err)
	}
	t.Setenv("AZURE_ENVIRONMENT_FILEPATH", file)
	c, err := testOptions(t).config()
	if err != nil || !finds(c, "https://adfs.local.azurestack.external/adfs") || !finds(c, "") {
		t.Errorf("got %+v, %v", c.authorities, err)
	}
	t.Setenv("AZURE_ENVIRONMENT_FILEPATH", file+"x")
	if _, err := testOptions(t).config(); err == nil || !strings.Contains(err.Error(), "AZURE_ENVIRONMENT_FILEPATH") {
		t.Errorf("without the file: %v", err)
	}
}

func TestFlagsWithoutAnEffectAreTakenAndNamed(t *testing.T) {
	options := testOptions(t, "--MICNamespace=x", "--enableProfile", "--kubelet-config=/etc/default/kubelet", "--allow-network-plugin-kubenet=true", "-v", "3", "--logtostderr", "--stderrthreshold=2")
	got := strings.Join(options.Ignored(), " ")
	if got != "--MICNamespace --stderrthreshold --enableProfile --logtostderr" || options.Log.Verbosity != 3 {
		t.Errorf("got %s", got)
	}
}
