package chart_test

import (
	"fmt"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	policyv1 "k8s.io/api/policy/v1"
	rbacv1 "k8s.io/api/rbac/v1"

	v1 "github.com/aad-pod-identity/aad-pod-identity/api/v1"
)

// effect is what a value must come to: the value, where to look, and what is
// there.
type effect struct {
	set  string
	got  func(rendering) any
	want any
	// with are values without which this one has nothing to act on.
	with []string
}

func flagOf(component, name string) func(rendering) any {
	return func(r rendering) any { return r.flag(component, name) }
}

func spec(component string, field func(corev1.PodSpec) any) func(rendering) any {
	return func(r rendering) any {
		if workload := r.workload(component); workload != nil {
			return field(workload.Spec)
		}
		return nil
	}
}

func names(kind string) func(rendering) any {
	return func(r rendering) any { return fmt.Sprint(r.names(kind)) }
}

func image(component string) func(rendering) any {
	return spec(component, func(s corev1.PodSpec) any { return s.Containers[0].Image })
}

const digest = "sha256:0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef"

// effects are all values that do something.
func effects() map[string]effect {
	out := map[string]effect{
		"nameOverride":     {set: `"x"`, got: names("DaemonSet"), want: "[pod-identity/x-nmi]"},
		"fullnameOverride": {set: `"x"`, got: names("ClusterRole"), want: "[/aad-pod-identity-mic /aad-pod-identity-nmi /aad-pod-identity-nmi-uninstall /x-edit /x-view]", with: []string{`rbac.createUserFacingClusterRoles=true`}},
		"image.repository": {set: `"registry.example/a/b/"`, got: image("mic"), want: "registry.example/a/b/mic:" + version("appVersion")},
		"forceNamespaced": {set: `"true"`, got: func(r rendering) any {
			return [2]any{r.variable("mic", "FORCENAMESPACED"), r.variable("nmi", "FORCENAMESPACED")}
		}, want: [2]any{"true", "true"}},
		"installMICException": {set: `"false"`, got: names("AzurePodIdentityException"), want: "[]"},
		"adminsecret": {set: `{"cloud":"AzurePublicCloud","tenantID":"t","clientID":"c","clientSecret":"s"}`, got: func(r rendering) any {
			if secret := as[corev1.Secret](r, "Secret", "aad-pod-identity-mic"); secret != nil {
				return secret.Data
			}
			return nil
		}, want: map[string][]byte{"Cloud": []byte("AzurePublicCloud"), "TenantID": []byte("t"), "ClientID": []byte("c"), "ClientSecret": []byte("s")}},
		"operationMode": {set: `"managed"`, got: flagOf("nmi", "operation-mode"), want: "managed"},
		"azureIdentities": {set: `{"a":{"resourceID":"/r","clientID":"c","binding":{"selector":"s"}}}`, got: func(r rendering) any {
			if binding := as[v1.AzureIdentityBinding](r, "AzureIdentityBinding", "a-binding"); binding != nil {
				return binding.Spec.AzureIdentity + "/" + binding.Spec.Selector
			}
			return nil
		}, want: "a/s"},
		"image.imagePullPolicy": {set: `"Always"`, got: spec("nmi", func(s corev1.PodSpec) any { return s.Containers[0].ImagePullPolicy }), want: corev1.PullAlways},
		"imagePullSecrets":      {set: `[{"name":"x"}]`, got: spec("nmi", func(s corev1.PodSpec) any { return s.ImagePullSecrets }), want: []corev1.LocalObjectReference{{Name: "x"}}},
		"customUserAgent": {set: `"a, \"b\""`, got: func(r rendering) any {
			return [2]any{r.flag("mic", "custom-user-agent"), r.flag("nmi", "custom-user-agent")}
		}, want: [2]any{`a, "b"`, `a, "b"`}},
		"startupTaintKey": {set: `"example.com/agent"`, got: func(r rendering) any {
			return []any{r.flag("mic", "startup-taint-key"), r.flag("nmi", "startup-taint-key"), r.workload("mic").Spec.Tolerations, r.names("ValidatingAdmissionPolicy"), r.names("ValidatingAdmissionPolicyBinding")}
		}, want: []any{"example.com/agent", nil, []corev1.Toleration{{Key: "example.com/agent", Operator: corev1.TolerationOpExists}}, []string{"/aad-pod-identity-nmi-node-report", "/aad-pod-identity-startup-taint"}, []string{"/aad-pod-identity-nmi-node-report", "/aad-pod-identity-startup-taint"}}},

		"rbac.enabled": {set: `false`, got: names("ServiceAccount"), want: "[]"},
		"rbac.allowAccessToSecrets": {set: `"false"`, got: func(r rendering) any {
			return slices.ContainsFunc(as[rbacv1.ClusterRole](r, "ClusterRole", "aad-pod-identity-nmi").Rules, func(rule rbacv1.PolicyRule) bool { return slices.Contains(rule.Resources, "secrets") })
		}, want: false},
		"rbac.createUserFacingClusterRoles": {set: `true`, got: names("ClusterRole"), want: "[/aad-pod-identity-mic /aad-pod-identity-nmi /aad-pod-identity-nmi-uninstall /rel-aad-pod-identity-edit /rel-aad-pod-identity-view]"},
	}
	for _, component := range []string{"mic", "nmi"} {
		ofBoth(out, component)
	}
	ofMIC(out)
	ofNMI(out)
	ofUninstall(out)
	return out
}

// ofBoth are the values that both components have.
func ofBoth(out map[string]effect, component string) {
	pod := func(field func(corev1.PodSpec) any) func(rendering) any { return spec(component, field) }
	add := func(name string, e effect) { out[component+"."+name] = e }
	add("image", effect{set: `"other"`, got: image(component), want: "localhost/aad-pod-identity/other:" + version("appVersion")})
	add("tag", effect{set: `"` + digest + `"`, got: image(component), want: "localhost/aad-pod-identity/" + component + "@" + digest})
	add("priorityClassName", effect{set: `"high"`, got: pod(func(s corev1.PodSpec) any { return s.PriorityClassName }), want: "high"})
	add("logVerbosity", effect{set: `5`, got: flagOf(component, "v"), want: "5"})
	add("loggingFormat", effect{set: `"json"`, got: flagOf(component, "log-format"), want: "json"})
	add("resources", effect{set: `{"limits":{"cpu":"3"}}`, got: pod(func(s corev1.PodSpec) any { return s.Containers[0].Resources.Limits.Cpu().String() }), want: "3"})
	add("podAnnotations", effect{set: `{"a/b":"c"}`, got: func(r rendering) any { return r.workload(component).Annotations["a/b"] }, want: "c"})
	add("podLabels", effect{set: `{"a":"c"}`, got: func(r rendering) any { return r.workload(component).Labels["a"] }, want: "c"})
	add("nodeSelector", effect{set: `{"a":"b"}`, got: pod(func(s corev1.PodSpec) any { return s.NodeSelector }), want: map[string]string{"a": "b", "kubernetes.io/os": "linux"}})
	add("tolerations", effect{set: `[{"key":"k","operator":"Exists"}]`, got: pod(func(s corev1.PodSpec) any { return s.Tolerations }), want: []corev1.Toleration{{Key: "k", Operator: corev1.TolerationOpExists}}})
	add("affinity", effect{set: `{"podAntiAffinity":null,"nodeAffinity":{"requiredDuringSchedulingIgnoredDuringExecution":{"nodeSelectorTerms":[{"matchExpressions":[{"key":"k","operator":"Exists"}]}]}}}`,
		got: pod(func(s corev1.PodSpec) any {
			return s.Affinity != nil && s.Affinity.NodeAffinity != nil && s.Affinity.PodAntiAffinity == nil
		}), want: true})
	add("probePort", effect{set: `9999`, got: func(r rendering) any {
		c := r.container(component)
		return fmt.Sprint([]any{r.flag(component, "http-probe-port"), c.LivenessProbe.HTTPGet.Port.IntVal, c.ReadinessProbe.HTTPGet.Port.IntVal})
	}, want: "[9999 9999 9999]"})
	add("prometheusPort", effect{set: `"9998"`, got: func(r rendering) any {
		return fmt.Sprint(r.flag(component, "prometheus-port"), r.container(component).Ports)
	}, want: fmt.Sprint("9998", []corev1.ContainerPort{{Name: "metrics", ContainerPort: 9998, Protocol: corev1.ProtocolTCP}})})
	add("extraArgs", effect{set: `["--v=9"]`, got: func(r rendering) any { args := r.container(component).Args; return args[len(args)-1] }, want: "--v=9"})
}

// trustedRoots reports whether a component trusts the ConfigMap "roots".
func trustedRoots(component string) func(rendering) any {
	return func(r rendering) any {
		mounts, volumes := r.container(component).VolumeMounts, r.workload(component).Spec.Volumes
		if len(mounts) == 0 || len(volumes) == 0 {
			return false
		}
		mount, volume := mounts[len(mounts)-1], volumes[len(volumes)-1]
		return volume.Name == mount.Name && volume.ConfigMap != nil && volume.ConfigMap.Name == "roots" && r.variable(component, "SSL_CERT_DIR") == mount.MountPath
	}
}

func ofMIC(out map[string]effect) {
	for path, e := range map[string]effect{
		"replicas": {set: `3`, got: func(r rendering) any {
			return *as[appsv1.Deployment](r, "Deployment", "aad-pod-identity-mic").Spec.Replicas
		}, want: int32(3)},
		"topologySpreadConstraints": {set: `[{"maxSkew":1,"topologyKey":"zone","whenUnsatisfiable":"ScheduleAnyway"}]`, got: spec("mic", func(s corev1.PodSpec) any { return len(s.TopologySpreadConstraints) }), want: 1},
		"podDisruptionBudget": {set: `{"minAvailable":1}`, got: func(r rendering) any {
			if budget := as[policyv1.PodDisruptionBudget](r, "PodDisruptionBudget", "mic-pdb"); budget != nil {
				return budget.Spec.MinAvailable.String() + budget.Spec.Selector.MatchLabels["app.kubernetes.io/component"]
			}
			return nil
		}, want: "1mic"},
		"trustedCAConfigMap":       {set: `"roots"`, got: trustedRoots("mic"), want: true},
		"leaderElection.instance":  {set: `"x"`, got: flagOf("mic", "leader-election-instance"), want: "x"},
		"leaderElection.namespace": {set: `"ns"`, got: func(r rendering) any { return fmt.Sprint(r.flag("mic", "leader-election-namespace"), r.names("Role")) }, want: "ns[ns/aad-pod-identity-mic-leader pod-identity/aad-pod-identity-mic pod-identity/aad-pod-identity-nmi pod-identity/aad-pod-identity-nmi-uninstall]"},
		"leaderElection.name": {set: `"lock"`, got: func(r rendering) any {
			return fmt.Sprint(r.flag("mic", "leader-election-name"), as[rbacv1.Role](r, "Role", "aad-pod-identity-mic-leader").Rules[1].ResourceNames, as[rbacv1.Role](r, "Role", "aad-pod-identity-mic-leader").Rules[3].ResourceNames)
		}, want: "lock[lock] [lock]"},
		"leaderElection.legacyLock": {set: `false`, got: func(r rendering) any {
			return fmt.Sprint(r.flag("mic", "legacy-lock"), len(as[rbacv1.Role](r, "Role", "aad-pod-identity-mic-leader").Rules))
		}, want: "false2"},
		"leaderElection.duration":             {set: `"30s"`, got: flagOf("mic", "leader-election-duration"), want: "30s"},
		"immutableUserMSIs":                   {set: `["a","b"]`, got: flagOf("mic", "immutable-user-msis"), want: "a,b"},
		"adoptAssigned":                       {set: `false`, got: flagOf("mic", "adopt-assigned"), want: "false"},
		"quarantineMin":                       {set: `"5s"`, got: flagOf("mic", "quarantine-min"), want: "5s"},
		"quarantineMax":                       {set: `"1h"`, got: flagOf("mic", "quarantine-max"), want: "1h"},
		"identityAssignmentReconcileInterval": {set: `"5m"`, got: flagOf("mic", "identity-assignment-reconcile-interval"), want: "5m"},
		"clientQps":                           {set: `12.5`, got: flagOf("mic", "clientQps"), want: "12.5"},
		"cloudConfig": {set: `"/etc/other.json"`, got: func(r rendering) any {
			return []any{r.flag("mic", "cloudconfig"), r.container("mic").VolumeMounts[0].MountPath, r.workload("mic").Spec.Volumes[0].HostPath.Path}
		}, want: []any{"/etc/other.json", "/etc/other.json", "/etc/other.json"}},
		"credentialsSecret": {set: `"mine"`, got: func(r rendering) any { return fmt.Sprint(r.credentials(), r.names("Secret")) }, want: "map[CLIENT_ID:mine/ClientID CLIENT_SECRET:mine/ClientSecret CLOUD:mine/Cloud TENANT_ID:mine/TenantID USER_ASSIGNED_MSI_CLIENT_ID:mine/UserAssignedMSIClientID USE_MSI:mine/UseMSI] []"},
		"customCloud.enabled": {set: `true`, got: func(r rendering) any {
			return [2]any{r.variable("mic", "AZURE_ENVIRONMENT_FILEPATH"), r.variable("nmi", "AZURE_ENVIRONMENT_FILEPATH")}
		}, want: [2]any{"/etc/kubernetes/akscustom.json", "/etc/kubernetes/akscustom.json"}},
		"customCloud.configPath": {set: `"/etc/cloud.json"`, with: []string{"mic.customCloud.enabled=true"}, got: func(r rendering) any {
			if len(r.container("mic").VolumeMounts) < 2 {
				return nil
			}
			return []any{
				r.variable("mic", "AZURE_ENVIRONMENT_FILEPATH"), r.container("mic").VolumeMounts[1].MountPath, r.workload("mic").Spec.Volumes[1].HostPath.Path,
				r.variable("nmi", "AZURE_ENVIRONMENT_FILEPATH"), r.container("nmi").VolumeMounts[0].MountPath, r.workload("nmi").Spec.Volumes[0].HostPath.Path,
			}
		}, want: []any{"/etc/cloud.json", "/etc/cloud.json", "/etc/cloud.json", "/etc/cloud.json", "/etc/cloud.json", "/etc/cloud.json"}},
	} {
		out["mic."+path] = e
	}
}

func ofNMI(out map[string]effect) {
	for path, e := range map[string]effect{
		"updateStrategy": {set: `{"type":"OnDelete","rollingUpdate":null}`, got: func(r rendering) any {
			return as[appsv1.DaemonSet](r, "DaemonSet", "aad-pod-identity-nmi").Spec.UpdateStrategy.Type
		}, want: appsv1.OnDeleteDaemonSetStrategyType},
		"ipTableUpdateTimeIntervalInSeconds": {set: `30`, got: flagOf("nmi", "ipt-update-interval-sec"), want: "30"},
		"retryAttemptsForCreated":            {set: `1`, got: flagOf("nmi", "retry-attempts-for-created"), want: "1"},
		"retryAttemptsForAssigned":           {set: `"2"`, got: flagOf("nmi", "retry-attempts-for-assigned"), want: "2"},
		"findIdentityRetryIntervalInSeconds": {set: `3`, got: flagOf("nmi", "find-identity-retry-interval"), want: "3"},
		"enableScaleFeatures":                {set: `false`, got: flagOf("nmi", "enableScaleFeatures"), want: "false"},
		"blockInstanceMetadata":              {set: `"true"`, got: flagOf("nmi", "block-instance-metadata"), want: "true"},
		"metadataHeaderRequired":             {set: `false`, got: flagOf("nmi", "metadata-header-required"), want: "false"},
		"setRetryAfterHeader":                {set: `true`, got: flagOf("nmi", "set-retry-after-header"), want: "true"},
		"allowedMetadata":                    {set: `["attested","scheduledevents"]`, got: flagOf("nmi", "allowed-metadata"), want: "attested,scheduledevents"},
		"authorityHosts":                     {set: `["login.microsoftonline.us","https://adfs.local/adfs"]`, got: flagOf("nmi", "authority-hosts"), want: "login.microsoftonline.us,https://adfs.local/adfs"},
		"allowCrossNamespaceSecrets":         {set: `"true"`, got: flagOf("nmi", "allow-cross-namespace-secrets"), want: "true"},
		"podRequestRate":                     {set: `"50"`, got: flagOf("nmi", "pod-request-rate"), want: "50"},
		"imdsTokenRate":                      {set: `"10"`, got: flagOf("nmi", "imds-token-rate"), want: "10"},
		"imdsTokenConcurrency":               {set: `"3"`, got: flagOf("nmi", "imds-token-concurrency"), want: "3"},
		"auditRepeatInterval":                {set: `"1m"`, got: flagOf("nmi", "audit-repeat-interval"), want: "1m"},
		"extraEnv": {set: `[{"name":"OTEL_EXPORTER_OTLP_ENDPOINT","value":"http://collector:4318"}]`, got: func(r rendering) any {
			return r.variable("nmi", "OTEL_EXPORTER_OTLP_ENDPOINT")
		}, want: "http://collector:4318"},
		"maxCacheStaleness":         {set: `"1h"`, got: flagOf("nmi", "max-cache-staleness"), want: "1h"},
		"secretMaxAge":              {set: `"30s"`, got: flagOf("nmi", "secret-max-age"), want: "30s"},
		"trustedCAConfigMap":        {set: `"roots"`, got: trustedRoots("nmi"), want: true},
		"allowNetworkPluginKubenet": {set: `true`, got: flagOf("nmi", "allow-network-plugin-kubenet"), want: "true"},
		"redirectTarget":            {set: `"link"`, got: flagOf("nmi", "redirect-target"), want: "link"},
		"redirectProbeInterval":     {set: `"30s"`, got: flagOf("nmi", "redirect-probe-interval"), want: "30s"},
	} {
		out["nmi."+path] = e
	}
}

// ofUninstall are the values of what uninstalls NMI.
func ofUninstall(out map[string]effect) {
	pod := func(field func(corev1.PodSpec) any) func(rendering) any { return spec("uninstall", field) }
	for path, e := range map[string]effect{
		"enabled":           {set: `"false"`, got: func(r rendering) any { return fmt.Sprint(r.names("Job"), r.names("ServiceAccount")) }, want: "[] [pod-identity/aad-pod-identity-mic pod-identity/aad-pod-identity-nmi]"},
		"timeout":           {set: `"10m"`, got: flagOf("uninstall", "timeout"), want: "10m"},
		"priorityClassName": {set: `"high"`, got: pod(func(s corev1.PodSpec) any { return s.PriorityClassName }), want: "high"},
		"resources":         {set: `{"limits":{"cpu":"3"}}`, got: pod(func(s corev1.PodSpec) any { return s.Containers[0].Resources.Limits.Cpu().String() }), want: "3"},
		"nodeSelector":      {set: `{"a":"b"}`, got: pod(func(s corev1.PodSpec) any { return s.NodeSelector }), want: map[string]string{"a": "b", "kubernetes.io/os": "linux"}},
		"tolerations":       {set: `[{"key":"k","operator":"Exists"}]`, got: pod(func(s corev1.PodSpec) any { return s.Tolerations }), want: []corev1.Toleration{{Key: "k", Operator: corev1.TolerationOpExists}}},
		"affinity": {set: `{"nodeAffinity":{"requiredDuringSchedulingIgnoredDuringExecution":{"nodeSelectorTerms":[{"matchExpressions":[{"key":"k","operator":"Exists"}]}]}}}`,
			got: pod(func(s corev1.PodSpec) any { return s.Affinity != nil && s.Affinity.NodeAffinity != nil }), want: true},
	} {
		out["nmi.uninstallJob."+path] = e
	}
}

// unused are all values that are accepted and change nothing.
func unused() map[string]string {
	return map[string]string{
		"mic.syncRetryDuration":          `"1h"`,
		"mic.createDeleteBatch":          `40`,
		"mic.updateUserMSIMaxRetry":      `3`,
		"mic.updateUserMSIRetryInterval": `"2s"`,
		"nmi.micNamespace":               `"default"`,
		"nmi.kubeletConfig":              `"/etc/sysconfig/kubelet"`,
		"nmi.enableConntrackDeletion":    `true`,
		"rbac.pspEnabled":                `true`,
	}
}

// credentials maps MIC's environment variables to the keys of Secrets.
func (r rendering) credentials() map[string]string {
	out := map[string]string{}
	for _, variable := range r.container("mic").Env {
		if from := variable.ValueFrom; from != nil && from.SecretKeyRef != nil {
			out[variable.Name] = from.SecretKeyRef.Name + "/" + from.SecretKeyRef.Key
		}
	}
	return out
}

func TestEffects(t *testing.T) {
	defaults := render(t)
	for path, e := range effects() {
		t.Run(path, func(t *testing.T) {
			t.Parallel()
			before := defaults
			if len(e.with) > 0 {
				before = render(t, e.with...)
			}
			if cmp.Equal(e.want, e.got(before)) {
				t.Errorf("without the value it is %v, too: the test would show nothing", e.want)
			}
			if diff := cmp.Diff(e.want, e.got(render(t, append(e.with, path+"="+e.set)...))); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
		})
	}
}

func TestValuesWithoutEffect(t *testing.T) {
	defaults := render(t)
	for path, value := range unused() {
		t.Run(path, func(t *testing.T) {
			t.Parallel()
			if diff := cmp.Diff(defaults, render(t, path+"="+value)); diff != "" {
				t.Errorf("it has an effect (-default +got):\n%s", diff)
			}
		})
	}
}
