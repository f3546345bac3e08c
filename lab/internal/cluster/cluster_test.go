package cluster

import (
	"context"
	"encoding/pem"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	"software.sslmate.com/src/go-pkcs12"

	"github.com/aad-pod-identity/aad-pod-identity/lab/internal/build"
	"github.com/aad-pod-identity/aad-pod-identity/lab/internal/pki"
	"github.com/aad-pod-identity/aad-pod-identity/lab/internal/render"
	"github.com/aad-pod-identity/aad-pod-identity/lab/internal/state"
	"github.com/aad-pod-identity/aad-pod-identity/lab/internal/topology"
)

func TestTrustStoreIsReadWithItsPassword(t *testing.T) {
	authority, err := pki.NewAuthority("azure")
	if err != nil {
		t.Fatal(err)
	}
	store, err := trustStore(authority.CertPEM)
	if err != nil {
		t.Fatal(err)
	}
	certs, err := pkcs12.DecodeTrustStore(store, render.TrustStorePassword)
	if err != nil {
		t.Fatal(err)
	}
	block, _ := pem.Decode(authority.CertPEM)
	if len(certs) != 1 || string(certs[0].Raw) != string(block.Bytes) {
		t.Error("another certificate is in it")
	}
	for name, text := range map[string]string{"nothing": "", "no certificate": "-----BEGIN X-----\nAA==\n-----END X-----\n"} {
		if _, err := trustStore([]byte(text)); err == nil || !strings.Contains(err.Error(), "reading the simulator's CA") {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestWithout(t *testing.T) {
	got := without([]string{"A=1", "PATH=/bin", "B=PATH=x", "PATHS=2"}, "PATH", "C")
	if diff := cmp.Diff([]string{"A=1", "B=PATH=x", "PATHS=2"}, got); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

func TestNotReady(t *testing.T) {
	condition := func(kind corev1.NodeConditionType, status corev1.ConditionStatus) corev1.NodeCondition {
		return corev1.NodeCondition{Type: kind, Status: status, Message: "CNI is missing"}
	}
	for name, c := range map[string]struct {
		conditions []corev1.NodeCondition
		want       string
	}{
		"ready":                   {[]corev1.NodeCondition{condition(corev1.NodeMemoryPressure, corev1.ConditionFalse), condition(corev1.NodeReady, corev1.ConditionTrue)}, ""},
		"not ready":               {[]corev1.NodeCondition{condition(corev1.NodeReady, corev1.ConditionFalse)}, "CNI is missing"},
		"no longer heard of":      {[]corev1.NodeCondition{condition(corev1.NodeReady, corev1.ConditionUnknown)}, "CNI is missing"},
		"nothing was reported":    {nil, "its kubelet has not reported yet"},
		"another condition holds": {[]corev1.NodeCondition{condition(corev1.NodeDiskPressure, corev1.ConditionTrue)}, "its kubelet has not reported yet"},
	} {
		t.Run(name, func(t *testing.T) {
			if got := notReady(&corev1.Node{Status: corev1.NodeStatus{Conditions: c.conditions}}); got != c.want {
				t.Errorf("got %q, want %q", got, c.want)
			}
		})
	}
}

func TestNodeAt(t *testing.T) {
	lab, err := topology.New(0, 2)
	if err != nil {
		t.Fatal(err)
	}
	if n, err := nodeAt(lab, 2); err != nil || n.Name() != "node2" {
		t.Errorf("got %s %v", n.Name(), err)
	}
	for _, number := range []int{0, 3, -1} {
		if _, err := nodeAt(lab, number); err == nil || !strings.Contains(err.Error(), "this lab has nodes 1 to 2") {
			t.Errorf("%d: got %v", number, err)
		}
	}
}

func TestAwait(t *testing.T) {
	t.Run("until it is so", func(t *testing.T) {
		asked := 0
		err := await(t.Context(), "it", time.Minute, func(context.Context) error {
			if asked++; asked < 3 {
				return errors.New("not yet")
			}
			return nil
		})
		if err != nil || asked != 3 {
			t.Errorf("asked %d times, %v", asked, err)
		}
	})
	t.Run("says what it last heard", func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		err := await(ctx, "it", time.Minute, func(context.Context) error {
			cancel()
			return errors.New("not yet")
		})
		if err == nil || err.Error() != "waiting for it: not yet" {
			t.Errorf("got %v", err)
		}
	})
	t.Run("not for what is gone", func(t *testing.T) {
		dir, err := state.Open(filepath.Join(t.TempDir(), "lab"))
		if err != nil {
			t.Fatal(err)
		}
		l := &Lab{dir: dir}
		log := dir.Path(render.HubName, "log", "init.log")
		if err := errors.Join(os.MkdirAll(filepath.Dir(log), 0o700), os.WriteFile(log, []byte("mounting /etc: no overlay\n"), 0o600)); err != nil {
			t.Fatal(err)
		}
		lab, err := topology.New(0, 1)
		if err != nil {
			t.Fatal(err)
		}
		err = await(t.Context(), "it", time.Minute, l.whileAlive(lab, func(context.Context) error { return errors.New("not yet") }))
		if err == nil || !strings.Contains(err.Error(), "azure has ended; its log ends:\nmounting /etc: no overlay") {
			t.Errorf("got %v", err)
		}
	})
}

func version(t *testing.T, text string) build.Version {
	t.Helper()
	v, err := build.ParseVersion(text)
	if err != nil {
		t.Fatal(err)
	}
	return v
}

func TestWantAgainstWhatRuns(t *testing.T) {
	runs, other := version(t, "v1.36.3"), version(t, "v1.35.4")
	for name, c := range map[string]struct {
		want Want
		err  string
	}{
		"anything":                   {},
		"the same by name":           {want: Want{Nodes: 2, Kubernetes: runs}},
		"other nodes":                {want: Want{Nodes: 3}, err: "the lab runs with 2 nodes: `lab down` first for one with 3"},
		"another version":            {want: Want{Kubernetes: other}, err: "the lab runs Kubernetes v1.36.3: `lab down` first for one with v1.35.4"},
		"both, of which one is told": {want: Want{Nodes: 1, Kubernetes: other}, err: "the lab runs with 2 nodes: `lab down` first for one with 1"},
	} {
		t.Run(name, func(t *testing.T) {
			err := c.want.check(2, runs)
			if c.err == "" && err != nil || c.err != "" && (err == nil || err.Error() != c.err) {
				t.Errorf("got %v, want %q", err, c.err)
			}
		})
	}
}

// pinning is a lab in a source tree that pins v1.36.3, with what its folder says
// of an earlier command.
func pinning(t *testing.T, saved *state.Lab) *Lab {
	t.Helper()
	root := t.TempDir()
	mod := filepath.Join(root, "lab", "kubernetes", "go.mod")
	if err := errors.Join(os.MkdirAll(filepath.Dir(mod), 0o700), os.WriteFile(mod, []byte("require k8s.io/kubernetes v1.36.3\n"), 0o600)); err != nil {
		t.Fatal(err)
	}
	dir, err := state.Open(filepath.Join(root, "lab", "state"))
	if err != nil {
		t.Fatal(err)
	}
	if saved != nil {
		if err := dir.Save(*saved); err != nil {
			t.Fatal(err)
		}
	}
	return &Lab{dir: dir, builder: build.Builder{Root: root}}
}

// record makes this test as every process of a lab of one node.
func record(t *testing.T, l *Lab) {
	t.Helper()
	self, err := state.Identify(os.Getpid())
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(l.dir.Record(render.HubName, self), l.dir.Record("node1", self)); err != nil {
		t.Fatal(err)
	}
}

func TestWhichKubernetesIsUsed(t *testing.T) {
	older := version(t, "v1.35.4")
	for name, c := range map[string]struct {
		saved *state.Lab
		alive bool
		want  Want
		uses  string
		err   string
	}{
		"the pinned one, without a lab":               {uses: "v1.36.3"},
		"what is wanted, without a lab":               {want: Want{Kubernetes: older}, uses: "v1.35.4"},
		"what runs":                                   {saved: &state.Lab{Nodes: 1, Kubernetes: "v1.35.4", Complete: true}, alive: true, uses: "v1.35.4"},
		"what runs, by name":                          {saved: &state.Lab{Nodes: 1, Kubernetes: "v1.35.4", Complete: true}, alive: true, want: Want{Kubernetes: older}, uses: "v1.35.4"},
		"the pinned one that runs, without a record":  {saved: &state.Lab{Nodes: 1, Complete: true}, alive: true, uses: "v1.36.3"},
		"none in place of another that runs":          {saved: &state.Lab{Nodes: 1, Kubernetes: "v1.36.3", Complete: true}, alive: true, want: Want{Kubernetes: older}, err: "the lab runs Kubernetes v1.36.3: `lab down` first"},
		"what is wanted, in place of a dead lab":      {saved: &state.Lab{Nodes: 1, Kubernetes: "v1.34.0", Complete: true}, want: Want{Kubernetes: older}, uses: "v1.35.4"},
		"the pinned one, in place of a dead lab":      {saved: &state.Lab{Nodes: 1, Kubernetes: "v1.34.0", Complete: true}, uses: "v1.36.3"},
		"what is wanted, in place of a half-made lab": {saved: &state.Lab{Nodes: 1, Kubernetes: "v1.34.0"}, alive: true, want: Want{Kubernetes: older}, uses: "v1.35.4"},
		"none by a record that was spoilt":            {saved: &state.Lab{Nodes: 1, Kubernetes: "1.35", Complete: true}, alive: true, err: "`lab down` removes it"},
	} {
		t.Run(name, func(t *testing.T) {
			l := pinning(t, c.saved)
			if c.alive {
				record(t, l)
			}
			_, running, err := l.settle(c.want)
			if c.err != "" {
				if err == nil || !strings.Contains(err.Error(), c.err) {
					t.Errorf("got %v, want %s", err, c.err)
				}
				return
			}
			if complete := c.saved != nil && c.saved.Complete && c.alive; err != nil || l.version.String() != c.uses || running != complete {
				t.Errorf("uses %s, running %v, %v; want %s", l.version, running, err, c.uses)
			}
		})
	}
}

// TestEnvLeadsToItsKubernetes is what kubectl of a shell comes from.
func TestEnvLeadsToItsKubernetes(t *testing.T) {
	for saved, folder := range map[string]string{"v1.36.3": "kubernetes", "v1.35.4": "kubernetes-v1.35.4"} {
		t.Run(saved, func(t *testing.T) {
			l := pinning(t, &state.Lab{Nodes: 1, Kubernetes: saved, Complete: true})
			got, err := l.Env()
			if err != nil {
				t.Fatal(err)
			}
			cache := filepath.Join(l.builder.Root, ".cache")
			for _, want := range []string{"LAB_KUBERNETES=" + saved, "LAB_BIN=" + filepath.Join(cache, "lab", "bin") + ":" + filepath.Join(cache, folder)} {
				if !slices.Contains(got, want) {
					t.Errorf("no %s in %v", want, got)
				}
			}
			if p := l.paths(); p.Kubernetes != filepath.Join(cache, folder) || p.Minor != l.version.Minor() || p.Minor < 35 {
				t.Errorf("paths %+v", p)
			}
		})
	}
}

// TestImagesOfTheClusterAreBuilt ties the names that nodes run to those that are
// loaded.
func TestImagesOfTheClusterAreBuilt(t *testing.T) {
	for name, want := range map[string]string{"pause": render.PauseImage, "coredns": render.DNSImage} {
		if got := build.Repository + "/" + name + ":" + build.Tag; got != want || !slices.Contains(build.ImageNames(), name) {
			t.Errorf("image %s is built, %s is run", got, want)
		}
	}
}
