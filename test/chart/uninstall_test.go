package chart_test

import (
	"bytes"
	"context"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	appsv1 "k8s.io/api/apps/v1"
	authenticationv1 "k8s.io/api/authentication/v1"
	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	clientcmdapi "k8s.io/client-go/tools/clientcmd/api"
	"sigs.k8s.io/controller-runtime/pkg/client"

	v1 "github.com/aad-pod-identity/aad-pod-identity/api/v1"
	"github.com/aad-pod-identity/aad-pod-identity/internal/nmi"
	"github.com/aad-pod-identity/aad-pod-identity/test/objects"
)

const (
	uninstallJob  = "aad-pod-identity-nmi-uninstall"
	uninstallNode = "uninstalled"
)

// TestUninstallHooks: what uninstalls NMI is made before helm deletes anything, its
// rights before itself, and goes if all went well.
func TestUninstallHooks(t *testing.T) {
	for _, object := range render(t) {
		annotations := object.GetAnnotations()
		ours := object.GetName() == uninstallJob
		if hook := annotations["helm.sh/hook"]; (hook == "pre-delete") != ours || hook != "" && !ours {
			t.Errorf("%s %s is a hook %q", object.GetKind(), object.GetName(), hook)
		}
		weight := map[bool]string{true: "0", false: "-1"}[object.GetKind() == "Job"]
		if ours && (annotations["helm.sh/hook-weight"] != weight || annotations["helm.sh/hook-delete-policy"] != "before-hook-creation,hook-succeeded") {
			t.Errorf("%s %s has the annotations %v", object.GetKind(), object.GetName(), annotations)
		}
		if job := object.GetKind() == "Job"; job != (annotations["helm.sh/hook-output-log-policy"] == "hook-failed") {
			t.Errorf("%s %s: helm prints what it says of a failure %t, want %t", object.GetKind(), object.GetName(), !job, job)
		}
	}
}

// TestUninstallJob: it names NMI's DaemonSet, is none of its pods, and is not
// repeated where that mends nothing.
func TestUninstallJob(t *testing.T) {
	long := strings.Repeat("n", 59)
	for name, values := range map[string][]string{"by default": nil, "with a long name": {`nameOverride="` + long + `"`}} {
		t.Run(name, func(t *testing.T) {
			r := render(t, values...)
			names := r.names("Job")
			if len(names) != 1 {
				t.Fatalf("jobs %v", names)
			}
			_, own, _ := strings.Cut(names[0], "/")
			job, set := as[batchv1.Job](r, "Job", own), r.names("DaemonSet")[0]
			_, setName, _ := strings.Cut(set, "/")
			if len(own) > 63 {
				t.Errorf("the name %s is too long for a job's pods", own)
			}
			want := []string{"uninstall", "--namespace=" + namespace, "--daemonset=" + setName, "--report-namespace=" + namespace}
			if got := job.Spec.Template.Spec.Containers[0].Args; !slices.Equal(got, want) {
				t.Errorf("arguments %q, want %q", got, want)
			}
			if labels := job.Spec.Template.Labels; labels["app.kubernetes.io/component"] == "nmi" {
				t.Errorf("the DaemonSet selects the job's pod by %v", labels)
			}
			if rule := job.Spec.PodFailurePolicy.Rules[0]; *job.Spec.BackoffLimit > 3 || rule.Action != batchv1.PodFailurePolicyActionFailJob || !slices.Equal(rule.OnExitCodes.Values, []int32{2, 3}) {
				t.Errorf("repeated %d times, but for %+v", *job.Spec.BackoffLimit, rule)
			}
		})
	}
	if got := render(t, `nmi.extraArgs=["--report-namespace="]`).flag("uninstall", "report-namespace"); got != "" {
		t.Errorf("reads reports of %v, which are not written", got)
	}
}

// uninstalls lets the real helm uninstall. The test plays the job's controller and
// kubelet, which run the program with the job's own arguments and token, the
// garbage collector, and an agent that does not end at first.
func (c cluster) uninstalls(t *testing.T) {
	kubeconfig := c.kubeconfig(t)
	if out, err := helm(t, "install", "aad-pod-identity", chart(), "--kubeconfig="+kubeconfig, "--set=nmi.uninstallJob.timeout=2s"); err != nil {
		t.Fatal(err, out)
	}
	c.node(t, uninstallNode)
	agent := c.uninstalledAgent(t)

	done := c.playJob(t)
	out, err := helm(t, "uninstall", "aad-pod-identity", "--kubeconfig="+kubeconfig)
	if words := <-done; err == nil || !strings.Contains(words, uninstallNode+": pod "+agent.Name+" has not ended") {
		t.Errorf("an agent did not end, and helm says %s, %v; the job says\n%s", out, err, words)
	}
	if !c.exists(t, &batchv1.Job{}, "default", uninstallJob) || !c.exists(t, &appsv1.Deployment{}, "default", "aad-pod-identity-mic") || !c.exists(t, &rbacv1.ClusterRole{}, "", "aad-pod-identity-nmi") {
		t.Error("the job that failed, MIC, or what the agent needs to end is gone")
	}

	c.ends(t, agent)
	done = c.playJob(t)
	out, err = helm(t, "uninstall", "aad-pod-identity", "--kubeconfig="+kubeconfig)
	if words := <-done; err != nil || !strings.Contains(words, "1 node is known to have no rules of NMI's") {
		t.Errorf("all agents ended, and helm says %s, %v; the job says\n%s", out, err, words)
	}
	c.expect(t, false, false)
	for kind, object := range map[string]client.Object{"Job": &batchv1.Job{}, "ServiceAccount": &corev1.ServiceAccount{}, "Role": &rbacv1.Role{}} {
		if c.exists(t, object, "default", uninstallJob) {
			t.Errorf("%s %s is left", kind, uninstallJob)
		}
	}
}

// uninstalledAgent makes an agent's pod as the DaemonSet's controller does, and its
// report.
func (c cluster) uninstalledAgent(t *testing.T) *corev1.Pod {
	t.Helper()
	set := &appsv1.DaemonSet{}
	if err := c.kube.Get(t.Context(), client.ObjectKey{Namespace: "default", Name: "aad-pod-identity-nmi"}, set); err != nil {
		t.Fatal(err)
	}
	pod := &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: set.Name + "-x", OwnerReferences: []metav1.OwnerReference{*metav1.NewControllerRef(set, appsv1.SchemeGroupVersion.WithKind("DaemonSet"))}},
		Spec:       corev1.PodSpec{NodeName: uninstallNode, Containers: []corev1.Container{{Name: "nmi", Image: "nmi"}}},
	}
	for _, object := range []client.Object{pod, &v1.AzureIdentityNodeReport{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: uninstallNode}}} {
		if err := c.kube.Create(t.Context(), object); err != nil {
			t.Fatal(err)
		}
	}
	return pod
}

// ends has an agent say that it removed its rules, and lets its pod and the
// DaemonSet go.
func (c cluster) ends(t *testing.T, agent *corev1.Pod) {
	t.Helper()
	report := &v1.AzureIdentityNodeReport{}
	steps := []func() error{
		func() error {
			return c.kube.Get(t.Context(), client.ObjectKey{Namespace: "default", Name: uninstallNode}, report)
		},
		func() error {
			report.Status = v1.AzureIdentityNodeReportStatus{Pod: agent.Name, Conditions: []metav1.Condition{{
				Type: v1.ConditionRulesOnNode, Status: metav1.ConditionFalse, Reason: string(v1.ReasonRulesRemoved), LastTransitionTime: metav1.Now(),
			}}}
			return c.kube.Status().Update(t.Context(), report)
		},
		func() error { return c.kube.Delete(t.Context(), agent, client.GracePeriodSeconds(0)) },
		func() error {
			set := &appsv1.DaemonSet{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "aad-pod-identity-nmi"}}
			return c.kube.Patch(t.Context(), set, client.RawPatch("application/merge-patch+json", []byte(`{"metadata":{"finalizers":null}}`)))
		},
	}
	for _, step := range steps {
		if err := step(); err != nil {
			t.Fatal(err)
		}
	}
}

// playJob waits for a job that has not run yet, runs it, and says how it ended. The
// channel gets all that the job printed.
func (c cluster) playJob(t *testing.T) <-chan string {
	t.Helper()
	said := make(chan string, 1)
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	go func() {
		defer cancel()
		job, err := objects.Await(ctx, c.kube, &batchv1.JobList{}, func(j *batchv1.Job) bool {
			return j.Name == uninstallJob && len(j.Status.Conditions) == 0
		}, client.InNamespace("default"))
		if err != nil {
			said <- fmt.Sprintf("there is no job: %v", err)
			return
		}
		said <- c.runJob(ctx, t, job)
	}()
	return said
}

func (c cluster) runJob(ctx context.Context, t *testing.T, job *batchv1.Job) string {
	pod := job.Spec.Template.Spec
	config, err := c.accountFile(ctx, t, pod.ServiceAccountName)
	if err != nil {
		return err.Error()
	}
	var out bytes.Buffer
	code := nmi.Execute(ctx, append(slices.Clone(pod.Containers[0].Args), "--kubeconfig="+config), &out, &out)
	now := metav1.Now()
	condition := func(kind batchv1.JobConditionType) batchv1.JobCondition {
		return batchv1.JobCondition{Type: kind, Status: corev1.ConditionTrue, Reason: "Played", LastTransitionTime: now}
	}
	job.Status.StartTime = &now
	if code == 0 {
		job.Status.Succeeded, job.Status.CompletionTime = 1, &now
		job.Status.Conditions = []batchv1.JobCondition{condition(batchv1.JobSuccessCriteriaMet), condition(batchv1.JobComplete)}
	} else {
		job.Status.Failed = 1
		job.Status.Conditions = []batchv1.JobCondition{condition(batchv1.JobFailureTarget), condition(batchv1.JobFailed)}
	}
	if err := c.kube.Status().Update(ctx, job); err != nil {
		fmt.Fprintln(&out, err)
	}
	return out.String()
}

// accountFile writes a kubeconfig with a token of a ServiceAccount of the namespace
// default.
func (c cluster) accountFile(ctx context.Context, t *testing.T, name string) (string, error) {
	request := &authenticationv1.TokenRequest{}
	account := &corev1.ServiceAccount{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: name}}
	if err := c.kube.SubResource("token").Create(ctx, account, request); err != nil {
		return "", err
	}
	file := filepath.Join(t.TempDir(), "kubeconfig")
	return file, c.writeConfig(file, &clientcmdapi.AuthInfo{Token: request.Status.Token})
}
