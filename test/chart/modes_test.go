package chart_test

import (
	"bytes"
	"maps"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/spf13/pflag"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"

	v1 "github.com/aad-pod-identity/aad-pod-identity/api/v1"
	"github.com/aad-pod-identity/aad-pod-identity/internal/mic"
	"github.com/aad-pod-identity/aad-pod-identity/internal/nmi"
)

// TestObjects: what each mode installs, and nothing else.
func TestObjects(t *testing.T) {
	for mode, want := range map[string]map[string][]string{
		"standard": {
			"Deployment": {"pod-identity/aad-pod-identity-mic"}, "DaemonSet": {"pod-identity/aad-pod-identity-nmi"},
			"Job":                       {"pod-identity/aad-pod-identity-nmi-uninstall"},
			"ServiceAccount":            {"pod-identity/aad-pod-identity-mic", "pod-identity/aad-pod-identity-nmi", "pod-identity/aad-pod-identity-nmi-uninstall"},
			"ClusterRole":               {"/aad-pod-identity-mic", "/aad-pod-identity-nmi", "/aad-pod-identity-nmi-uninstall"},
			"ClusterRoleBinding":        {"/aad-pod-identity-mic", "/aad-pod-identity-nmi", "/aad-pod-identity-nmi-uninstall"},
			"Role":                      {"default/aad-pod-identity-mic-leader", "pod-identity/aad-pod-identity-mic", "pod-identity/aad-pod-identity-nmi", "pod-identity/aad-pod-identity-nmi-uninstall"},
			"RoleBinding":               {"default/aad-pod-identity-mic-leader", "pod-identity/aad-pod-identity-mic", "pod-identity/aad-pod-identity-nmi", "pod-identity/aad-pod-identity-nmi-uninstall"},
			"ValidatingAdmissionPolicy": {"/aad-pod-identity-nmi-node-report"}, "ValidatingAdmissionPolicyBinding": {"/aad-pod-identity-nmi-node-report"},
			"AzurePodIdentityException": {"kube-system/aks-addon-exception", "pod-identity/mic"},
		},
		"managed": {
			"DaemonSet": {"pod-identity/aad-pod-identity-nmi"}, "Job": {"pod-identity/aad-pod-identity-nmi-uninstall"},
			"ServiceAccount": {"pod-identity/aad-pod-identity-nmi", "pod-identity/aad-pod-identity-nmi-uninstall"},
			"ClusterRole":    {"/aad-pod-identity-nmi", "/aad-pod-identity-nmi-uninstall"}, "ClusterRoleBinding": {"/aad-pod-identity-nmi", "/aad-pod-identity-nmi-uninstall"},
			"Role": {"pod-identity/aad-pod-identity-nmi", "pod-identity/aad-pod-identity-nmi-uninstall"}, "RoleBinding": {"pod-identity/aad-pod-identity-nmi", "pod-identity/aad-pod-identity-nmi-uninstall"},
			"ValidatingAdmissionPolicy": {"/aad-pod-identity-nmi-node-report"}, "ValidatingAdmissionPolicyBinding": {"/aad-pod-identity-nmi-node-report"},
			"AzurePodIdentityException": {"kube-system/aks-addon-exception"},
		},
	} {
		t.Run(mode, func(t *testing.T) {
			// What is MIC's alone makes nothing in managed mode.
			r := render(t, `operationMode="`+mode+`"`)
			got := map[string][]string{}
			for _, object := range r {
				got[object.GetKind()] = r.names(object.GetKind())
			}
			if diff := cmp.Diff(want, got); diff != "" {
				t.Errorf("objects (-want +got):\n%s", diff)
			}
		})
	}
	r := render(t, `operationMode="managed"`, `mic.podDisruptionBudget={"minAvailable":1}`, `adminsecret={"cloud":"c","useMSI":"true"}`)
	if got := append(r.names("PodDisruptionBudget"), r.names("Secret")...); len(got) > 0 {
		t.Errorf("managed mode has %v, which are MIC's", got)
	}
}

// TestLabels: a workload's selector is immutable, and so a part of the contract.
func TestLabels(t *testing.T) {
	r := render(t)
	deployment, daemonSet := as[appsv1.Deployment](r, "Deployment", "aad-pod-identity-mic"), as[appsv1.DaemonSet](r, "DaemonSet", "aad-pod-identity-nmi")
	for component, got := range map[string]struct{ workload, selector, pod map[string]string }{
		"mic": {deployment.Labels, deployment.Spec.Selector.MatchLabels, deployment.Spec.Template.Labels},
		"nmi": {daemonSet.Labels, daemonSet.Spec.Selector.MatchLabels, daemonSet.Spec.Template.Labels},
	} {
		want := map[string]string{"app.kubernetes.io/name": "aad-pod-identity", "app.kubernetes.io/instance": release, "app.kubernetes.io/component": component}
		if diff := cmp.Diff(want, got.selector); diff != "" {
			t.Errorf("selector of %s (-want +got):\n%s", component, diff)
		}
		if component == "nmi" {
			want["tier"] = "node"
		}
		if diff := cmp.Diff(want, got.pod); diff != "" {
			t.Errorf("labels of %s's pods (-want +got):\n%s", component, diff)
		}
		maps.Copy(want, map[string]string{"app.kubernetes.io/managed-by": "Helm", "helm.sh/chart": "aad-pod-identity-" + version("version")})
		if diff := cmp.Diff(want, got.workload); diff != "" {
			t.Errorf("labels of %s (-want +got):\n%s", component, diff)
		}
	}
}

// TestExceptions: MIC's pods match MIC's exception by its one label, NMI's do not.
func TestExceptions(t *testing.T) {
	r := render(t)
	for name, want := range map[string]map[string]string{
		"mic":                 {"app.kubernetes.io/component": "mic"},
		"aks-addon-exception": {"kubernetes.azure.com/managedby": "aks"},
	} {
		if diff := cmp.Diff(want, as[v1.AzurePodIdentityException](r, "AzurePodIdentityException", name).Spec.PodLabels); diff != "" {
			t.Errorf("%s (-want +got):\n%s", name, diff)
		}
	}
	for key, value := range as[v1.AzurePodIdentityException](r, "AzurePodIdentityException", "mic").Spec.PodLabels {
		if got := r.workload("mic").Labels[key]; got != value {
			t.Errorf("MIC's pods have %s=%q, and so get no token", key, got)
		}
	}
}

func TestSecurity(t *testing.T) {
	restricted := func(uid int64, add ...corev1.Capability) *corev1.SecurityContext {
		out := &corev1.SecurityContext{
			RunAsUser: &uid, AllowPrivilegeEscalation: new(false), ReadOnlyRootFilesystem: new(true),
			Capabilities:   &corev1.Capabilities{Drop: []corev1.Capability{"ALL"}, Add: add},
			SeccompProfile: &corev1.SeccompProfile{Type: corev1.SeccompProfileTypeRuntimeDefault},
		}
		if uid != 0 {
			out.RunAsNonRoot = new(true)
		}
		return out
	}
	for name, test := range map[string]struct {
		component string
		values    []string
		want      *corev1.SecurityContext
	}{
		"NMI has two capabilities":           {"nmi", nil, restricted(0, "NET_ADMIN", "NET_RAW")},
		"what uninstalls NMI has none":       {"uninstall", nil, restricted(65532)},
		"MIC reads azure.json as root":       {"mic", nil, restricted(0)},
		"MIC with a Secret is not root":      {"mic", []string{`mic.credentialsSecret="s"`}, restricted(65532)},
		"MIC with credentials is not root":   {"mic", []string{`adminsecret={"cloud":"c","useMSI":true}`}, restricted(65532)},
		"MIC reads a custom cloud's as root": {"mic", []string{`mic.credentialsSecret="s"`, `mic.customCloud.enabled=true`}, restricted(0)},
	} {
		t.Run(name, func(t *testing.T) {
			r := render(t, test.values...)
			if diff := cmp.Diff(test.want, r.container(test.component).SecurityContext); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
			pod := r.workload(test.component).Spec
			for _, volume := range pod.Volumes {
				if volume.HostPath == nil || *volume.HostPath.Type != corev1.HostPathFile {
					t.Errorf("volume %s is none of a file of the node", volume.Name)
				}
			}
			for _, mount := range pod.Containers[0].VolumeMounts {
				if !mount.ReadOnly {
					t.Errorf("%s can be written", mount.MountPath)
				}
			}
			if pod.HostNetwork != (test.component == "nmi") || pod.HostPID || pod.HostIPC {
				t.Errorf("host network %t, PID %t, IPC %t", pod.HostNetwork, pod.HostPID, pod.HostIPC)
			}
			if pod.HostNetwork && pod.DNSPolicy != corev1.DNSClusterFirstWithHostNet {
				t.Errorf("DNS policy %s: a pod in the host's network would not find the cluster's services", pod.DNSPolicy)
			}
		})
	}
}

// TestNoSecrets: nobody may read Secrets, if that is not wanted, use wildcards,
// or write what users own.
func TestNoSecrets(t *testing.T) {
	for _, mode := range []string{"standard", "managed"} {
		for _, object := range render(t, `operationMode="`+mode+`"`, `rbac.allowAccessToSecrets=false`) {
			if kind := object.GetKind(); kind != "ClusterRole" && kind != "Role" {
				continue
			}
			role := as[rbacv1.ClusterRole](rendering{object}, object.GetKind(), object.GetName())
			for _, rule := range role.Rules {
				for _, resource := range rule.Resources {
					owned := resource == "azureidentities" || resource == "azureidentitybindings" || resource == "pods" || resource == "nodes" || resource == "azurepodidentityexceptions"
					reads := []string{"list", "watch"}
					if resource == "nodes" {
						reads = append(reads, "get")
					}
					for _, verb := range rule.Verbs {
						if resource == "secrets" || resource == "*" || verb == "*" || owned && !slices.Contains(reads, verb) {
							t.Errorf("%s mode: %s may %s %s", mode, object.GetName(), verb, resource)
						}
					}
				}
			}
		}
	}
}

// TestFlags: the programs know every flag that their pods pass, and none of them
// is one that does nothing.
func TestFlags(t *testing.T) {
	for name, values := range accepted() {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r := render(t, values...)
			var usage bytes.Buffer
			if pod := r.workload("mic"); pod != nil {
				if _, err := mic.ParseOptions(pod.Spec.Containers[0].Args, &usage); err != nil {
					t.Errorf("%v: %s", err, usage.String())
				}
			}
			options, flags := nmi.NewOptions(), pflag.NewFlagSet("nmi", pflag.ContinueOnError)
			options.AddFlags(flags)
			if err := flags.Parse(r.container("nmi").Args); err != nil {
				t.Error(err)
			}
			if ignored := options.Ignored(); len(ignored) > 0 {
				t.Errorf("NMI ignores %v", ignored)
			}
			if options.Node != "$(NODE_NAME)" || r.container("nmi").Env[0].ValueFrom.FieldRef.FieldPath != "spec.nodeName" {
				t.Errorf("--node is %q, and its variable %v", options.Node, r.container("nmi").Env[0])
			}
		})
	}
}

// TestManagedMode: the agent is told so, and that it is namespaced.
func TestManagedMode(t *testing.T) {
	options, flags := nmi.NewOptions(), pflag.NewFlagSet("nmi", pflag.ContinueOnError)
	options.AddFlags(flags)
	if err := flags.Parse(render(t, `operationMode="managed"`).container("nmi").Args); err != nil {
		t.Fatal(err)
	}
	if options.Mode != "managed" || !options.Namespaced {
		t.Errorf("mode %q, namespaced %t", options.Mode, options.Namespaced)
	}
}

// TestProbes: both programs answer where the kubelet asks, also by default.
func TestProbes(t *testing.T) {
	r := render(t, `nmi.probePort=""`)
	mics, err := mic.ParseOptions(r.container("mic").Args, &bytes.Buffer{})
	if err != nil {
		t.Fatal(err)
	}
	if nmi.NewOptions().ProbePort != "8080" || mics.ProbePort != 8080 {
		t.Errorf("default ports %s and %d: mend the templates", nmi.NewOptions().ProbePort, mics.ProbePort)
	}
	for _, component := range []string{"mic", "nmi"} {
		c := r.container(component)
		if c.LivenessProbe.HTTPGet.Path != "/healthz" || c.ReadinessProbe.HTTPGet.Path != "/readyz" || c.LivenessProbe.HTTPGet.Port.IntVal != 8080 || c.ReadinessProbe.HTTPGet.Port.IntVal != 8080 {
			t.Errorf("%s: liveness %v, readiness %v", component, c.LivenessProbe.HTTPGet, c.ReadinessProbe.HTTPGet)
		}
	}
}

// TestSecretRollsThePods: a changed credential starts MIC again.
func TestSecretRollsThePods(t *testing.T) {
	sum := func(secret string) string {
		return render(t, `adminsecret={"cloud":"c","tenantID":"t","clientID":"c","clientSecret":"`+secret+`"}`).workload("mic").Annotations["checksum/config"]
	}
	if one, again, other := sum("a"), sum("a"), sum("b"); one == "" || one != again || one == other {
		t.Errorf("checksums %q, %q of the same, %q of another", one, again, other)
	}
}
