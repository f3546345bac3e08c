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

// TestImagesOfTheClusterAreBuilt ties the names that nodes run to those that are
// loaded.
func TestImagesOfTheClusterAreBuilt(t *testing.T) {
	for name, want := range map[string]string{"pause": render.PauseImage, "coredns": render.DNSImage} {
		if got := build.Repository + "/" + name + ":" + build.Tag; got != want || !slices.Contains(build.ImageNames(), name) {
			t.Errorf("image %s is built, %s is run", got, want)
		}
	}
}
