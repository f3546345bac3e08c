package chart_test

import (
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	appsv1 "k8s.io/api/apps/v1"
	policyv1 "k8s.io/api/policy/v1"

	"github.com/aad-pod-identity/aad-pod-identity/internal/mic"
	"github.com/aad-pod-identity/aad-pod-identity/test/env"
)

// TestOldValues: a values file that was written for AAD Pod Identity v1.8.17
// renders, and everything in it that still means something arrives.
func TestOldValues(t *testing.T) {
	out, err := helm(t, "template", release, chart(), "--namespace="+namespace, "--values="+filepath.Join("testdata", "values-v1.8.17.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	r := parse(t, out)
	o, err := mic.ParseOptions(r.container("mic").Args, io.Discard)
	if err != nil {
		t.Fatal(err)
	}
	got := mic.Options{
		ElectionNS: o.ElectionNS, ElectionName: o.ElectionName, ElectionDuration: o.ElectionDuration, LegacyLock: o.LegacyLock,
		ProbePort: o.ProbePort, PrometheusPort: o.PrometheusPort, ImmutableMSIs: o.ImmutableMSIs, CustomUserAgent: o.CustomUserAgent,
		ClientQPS: o.ClientQPS, ReconcileInterval: o.ReconcileInterval, Log: o.Log, CloudConfig: o.CloudConfig, Ignored: o.Ignored,
	}
	want := mic.Options{
		ElectionNS: "kube-system", ElectionName: "aad-pod-identity-mic", ElectionDuration: 30 * time.Second, LegacyLock: true,
		ProbePort: 8081, PrometheusPort: 8889, ImmutableMSIs: "00000000-0000-4000-8000-000000000001,00000000-0000-4000-8000-00000000000A",
		CustomUserAgent: "contoso/1.0", ClientQPS: 100, ReconcileInterval: 10 * time.Minute,
	}
	want.Log.Format, want.Log.Verbosity = "json", 2
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("options (-want +got):\n%s", diff)
	}
	deployment, pod := as[appsv1.Deployment](r, "Deployment", "aad-pod-identity-mic"), r.workload("mic")
	for what, ok := range map[string]bool{
		"replicas":     *deployment.Spec.Replicas == 3,
		"annotations":  pod.Annotations["prometheus.io/scrape"] == "true" && pod.Annotations["checksum/config"] != "",
		"labels":       pod.Labels["team"] == "platform",
		"priority":     pod.Spec.PriorityClassName == "system-cluster-critical",
		"tolerations":  len(pod.Spec.Tolerations) == 1,
		"spread":       len(pod.Spec.TopologySpreadConstraints) == 1,
		"budget":       as[policyv1.PodDisruptionBudget](r, "PodDisruptionBudget", "mic-pdb").Spec.MinAvailable.IntVal == 1,
		"namespaced":   r.variable("mic", "FORCENAMESPACED") == "true",
		"credentials":  r.credentials()["USER_ASSIGNED_MSI_CLIENT_ID"] == "aad-pod-identity-mic/UserAssignedMSIClientID",
		"custom cloud": r.variable("mic", "AZURE_ENVIRONMENT_FILEPATH") == "/etc/kubernetes/akscustom.json",
		"the election": slices.Contains(r.names("Role"), "kube-system/aad-pod-identity-mic-leader"),
	} {
		if !ok {
			t.Errorf("%s did not arrive", what)
		}
	}
}

// TestReusedValues: `helm upgrade --reuse-values` brings values without those
// that are new.
func TestReusedValues(t *testing.T) {
	r := render(t, `mic.leaderElection.legacyLock=null`, `mic.credentialsSecret=null`, `mic.trustedCAConfigMap=null`, `mic.extraArgs=null`, `nmi.redirectProbeInterval=null`, `nmi.uninstallJob=null`, `nmi.redirectTarget=null`)
	if got := r.flag("mic", "legacy-lock"); got != nil {
		t.Errorf("--legacy-lock=%v without a value", got)
	}
	if len(r.names("Role")) != 4 {
		t.Errorf("roles %v", r.names("Role"))
	}
	if got := r.flag("uninstall", "timeout"); got != nil {
		t.Errorf("--timeout=%v without a value", got)
	}
}

// TestOwnPod: MIC knows its own pod, to say there what is wrong with it.
func TestOwnPod(t *testing.T) {
	got := map[string]string{}
	for _, variable := range render(t).container("mic").Env {
		if from := variable.ValueFrom; from != nil && from.FieldRef != nil {
			got[variable.Name] = from.FieldRef.FieldPath
		}
	}
	want := map[string]string{"MIC_POD_NAMESPACE": "metadata.namespace", "MIC_POD_NAME": "metadata.name", "MIC_POD_UID": "metadata.uid"}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

// TestUpgradeDocument: each flag that has no effect any more is explained to those
// who come from AAD Pod Identity.
func TestUpgradeDocument(t *testing.T) {
	text, err := os.ReadFile(filepath.Join(env.Root(), "docs", "upgrade.md"))
	if err != nil {
		t.Fatal(err)
	}
	args := []string{"--syncRetryDuration=1", "--createDeleteBatch=1", "--enableScaleFeatures", "--update-user-msi-max-retry=1", "--update-user-msi-retry-interval=1", "--enable-type-upgrade", "--config-map-name=x", "--type-upgrade-status-key=x", "--logtostderr", "--vmodule=x"}
	o, err := mic.ParseOptions(args, io.Discard)
	if err != nil || len(o.Ignored) != len(args) {
		t.Fatalf("%v: %v", o.Ignored, err)
	}
	for _, flag := range o.Ignored {
		if !strings.Contains(string(text), "`--"+flag.Name+"`") {
			t.Errorf("upgrade.md does not explain --%s", flag.Name)
		}
	}
}
