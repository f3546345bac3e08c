package uninstall

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/rest"
	"sigs.k8s.io/controller-runtime/pkg/client"

	v1 "github.com/aad-pod-identity/aad-pod-identity/api/v1"
	"github.com/aad-pod-identity/aad-pod-identity/internal/nmi/command"
	"github.com/aad-pod-identity/aad-pod-identity/test/env"
)

const setName = "nmi"

// stage is a namespace of a real API server, in which the test plays the
// controllers, the kubelets and the agents.
type stage struct {
	*testing.T
	admin  client.WithWatch
	config *rest.Config // with the command's own rights
	ns     string

	playing *sync.WaitGroup // what the test plays while the command runs
}

// rights are all that the command needs, by what they are for.
func rights() map[string]rbacv1.PolicyRule {
	return map[string]rbacv1.PolicyRule{
		"daemonsets": {APIGroups: []string{"apps"}, Resources: []string{"daemonsets"}, ResourceNames: []string{setName}, Verbs: []string{"get", "delete"}},
		"pods":       {APIGroups: []string{""}, Resources: []string{"pods"}, Verbs: []string{"list", "watch"}},
		"reports":    {APIGroups: []string{v1.Group}, Resources: []string{"azureidentitynodereports"}, Verbs: []string{"list"}},
		"nodes":      {APIGroups: []string{""}, Resources: []string{"nodes"}, Verbs: []string{"get"}},
	}
}

// newStage makes a namespace whose user has the rights but for those without.
func newStage(t *testing.T, admin client.WithWatch, config *rest.Config, ns string, without ...string) stage {
	t.Helper()
	s := stage{T: t, admin: admin, config: rest.CopyConfig(config), ns: ns, playing: &sync.WaitGroup{}}
	s.config.Impersonate = rest.ImpersonationConfig{UserName: "uninstaller-" + ns}
	s.create(&corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: ns}})
	given := rights()
	for _, name := range without {
		delete(given, name)
	}
	meta := metav1.ObjectMeta{Namespace: ns, Name: ns}
	role, everywhere := &rbacv1.Role{ObjectMeta: meta}, &rbacv1.ClusterRole{ObjectMeta: metav1.ObjectMeta{Name: ns}}
	for name, rule := range given {
		if name == "nodes" {
			everywhere.Rules = append(everywhere.Rules, rule)
		} else {
			role.Rules = append(role.Rules, rule)
		}
	}
	subjects := []rbacv1.Subject{{APIGroup: rbacv1.GroupName, Kind: rbacv1.UserKind, Name: s.config.Impersonate.UserName}}
	s.create(role, everywhere,
		&rbacv1.RoleBinding{ObjectMeta: meta, RoleRef: rbacv1.RoleRef{APIGroup: rbacv1.GroupName, Kind: "Role", Name: ns}, Subjects: subjects},
		&rbacv1.ClusterRoleBinding{ObjectMeta: metav1.ObjectMeta{Name: ns}, RoleRef: rbacv1.RoleRef{APIGroup: rbacv1.GroupName, Kind: "ClusterRole", Name: ns}, Subjects: subjects})
	return s
}

func (s stage) must(err error) {
	s.Helper()
	if err != nil {
		s.Fatal(err)
	}
}

func (s stage) create(objects ...client.Object) {
	s.Helper()
	for _, object := range objects {
		s.must(s.admin.Create(s.Context(), object))
	}
}

// node returns the name of one of the stage's own nodes.
func (s stage) node(name string) string { return s.ns + "-" + name }

// makeNode makes a node that is ready, or not.
func (s stage) makeNode(name string, status corev1.ConditionStatus) {
	s.Helper()
	node := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: s.node(name)}}
	s.create(node)
	node.Status.Conditions = []corev1.NodeCondition{{Type: corev1.NodeReady, Status: status}}
	s.must(s.admin.Status().Update(s.Context(), node))
}

func (s stage) daemonSet() *appsv1.DaemonSet {
	s.Helper()
	labels := map[string]string{"app": "nmi"}
	set := &appsv1.DaemonSet{
		ObjectMeta: metav1.ObjectMeta{Namespace: s.ns, Name: setName},
		Spec: appsv1.DaemonSetSpec{Selector: &metav1.LabelSelector{MatchLabels: labels}, Template: corev1.PodTemplateSpec{
			ObjectMeta: metav1.ObjectMeta{Labels: labels}, Spec: corev1.PodSpec{Containers: []corev1.Container{{Name: "nmi", Image: "nmi"}}},
		}},
	}
	s.create(set)
	return set
}

// agent runs an agent on a node, which has reported that its rules are in place.
func (s stage) agent(set *appsv1.DaemonSet, node string) *corev1.Pod {
	s.Helper()
	pod := &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{
			Namespace: s.ns, Name: "nmi-" + node,
			OwnerReferences: []metav1.OwnerReference{*metav1.NewControllerRef(set, appsv1.SchemeGroupVersion.WithKind("DaemonSet"))},
		},
		Spec: corev1.PodSpec{NodeName: s.node(node), Containers: []corev1.Container{{Name: "nmi", Image: "nmi"}}},
	}
	s.create(pod)
	pod.Status = corev1.PodStatus{Phase: corev1.PodRunning, ContainerStatuses: []corev1.ContainerStatus{{
		Name: "nmi", State: corev1.ContainerState{Running: &corev1.ContainerStateRunning{StartedAt: metav1.Now()}},
	}}}
	s.must(s.admin.Status().Update(s.Context(), pod))
	report := &v1.AzureIdentityNodeReport{ObjectMeta: metav1.ObjectMeta{Namespace: s.ns, Name: s.node(node)}}
	s.create(report)
	s.report(pod, metav1.ConditionTrue, v1.ReasonInForce)
	return pod
}

// report has an agent say whether its rules are on its node.
func (s stage) report(pod *corev1.Pod, status metav1.ConditionStatus, reason v1.Reason) {
	s.Helper()
	report := &v1.AzureIdentityNodeReport{}
	s.must(s.admin.Get(s.Context(), client.ObjectKey{Namespace: s.ns, Name: pod.Spec.NodeName}, report))
	report.Status.Pod = pod.Name
	report.Status.Conditions = []metav1.Condition{{
		Type: v1.ConditionRulesOnNode, Status: status, Reason: string(reason), Message: "as the agent says", LastTransitionTime: metav1.Now(),
	}}
	s.must(s.admin.Status().Update(s.Context(), report))
}

// ends ends an agent that has removed its rules, as a kubelet does.
func (s stage) ends(pod *corev1.Pod) {
	s.Helper()
	s.report(pod, metav1.ConditionFalse, v1.ReasonRulesRemoved)
	s.vanishes(pod)
}

func (s stage) vanishes(pod *corev1.Pod) {
	s.Helper()
	s.must(s.admin.Delete(s.Context(), pod, client.GracePeriodSeconds(0)))
}

// sticks tells a pod to end on a node where nobody hears it.
func (s stage) sticks(pod *corev1.Pod) {
	s.Helper()
	s.must(s.admin.Delete(s.Context(), pod))
}

// onDelete calls f when the DaemonSet is being deleted, and then, unless agents are
// left, lets it go, as the garbage collector does.
func (s stage) onDelete(set *appsv1.DaemonSet, f func()) {
	s.Helper()
	ctx, cancel := context.WithTimeout(s.Context(), time.Minute)
	watcher, err := s.admin.Watch(ctx, &appsv1.DaemonSetList{}, client.InNamespace(s.ns))
	s.must(err)
	s.playing.Go(func() {
		defer cancel()
		defer watcher.Stop()
		for event := range watcher.ResultChan() {
			now, ok := event.Object.(*appsv1.DaemonSet)
			if !ok || now.DeletionTimestamp == nil {
				continue
			}
			if len(now.Finalizers) != 1 || now.Finalizers[0] != metav1.FinalizerDeleteDependents {
				s.Errorf("the DaemonSet is deleted with the finalizers %v: its agents would find it gone", now.Finalizers)
			}
			f()
			pods := &corev1.PodList{}
			if err := s.admin.List(s.Context(), pods, client.InNamespace(s.ns)); err != nil {
				s.Error(err)
			}
			if len(pods.Items) == 0 {
				s.collect(set)
			}
			return
		}
	})
}

func (s stage) collect(set *appsv1.DaemonSet) {
	patch := client.RawPatch("application/merge-patch+json", []byte(`{"metadata":{"finalizers":null}}`))
	if err := s.admin.Patch(s.Context(), set.DeepCopy(), patch); err != nil {
		s.Error(err)
	}
}

// uninstall runs the command and fails the test unless it ends with the code and
// says the words, on either stream.
func (s stage) uninstall(code int, words string, args ...string) string {
	s.Helper()
	return s.uninstallWith(s.config, code, words, args...)
}

func (s stage) uninstallWith(config *rest.Config, code int, words string, args ...string) string {
	s.Helper()
	ctx, cancel := context.WithTimeout(s.Context(), time.Minute)
	defer cancel()
	var out bytes.Buffer
	base := []string{"--namespace=" + s.ns, "--daemonset=" + setName, "--report-namespace=" + s.ns}
	got := execute(ctx, &Options{rest: config}, append(base, args...), world{&out, &out})
	s.playing.Wait()
	if got != code || !strings.Contains(out.String(), words) {
		s.Errorf("exit code %d, want %d and the words %q in\n%s", got, code, words, out.String())
	}
	return out.String()
}

func (s stage) wantNot(text, words string) {
	s.Helper()
	if strings.Contains(text, words) {
		s.Errorf("it says %q:\n%s", words, text)
	}
}

func TestUninstall(t *testing.T) {
	config := env.Start(t)
	admin, err := client.NewWithWatch(config, client.Options{Scheme: env.Scheme()})
	if err != nil {
		t.Fatal(err)
	}
	for name, play := range map[string]func(stage){
		"all-end":              allEnd,
		"one-sticks":           oneSticks,
		"one-is-silent":        oneIsSilent,
		"node-is-gone":         nodeIsGone,
		"agent-comes-late":     agentComesLate,
		"nothing-there":        nothingThere,
		"made-anew":            madeAnew,
		"watch-expires":        watchExpires,
		"no-reports":           noReports,
		"told-to-end":          toldToEnd,
		"could-not-be-removed": couldNotBeRemoved,
	} {
		t.Run(name, func(t *testing.T) { play(newStage(t, admin, config, name)) })
	}
	t.Run("without a right", func(t *testing.T) { testForbidden(t, admin, config) })
	// The last one: it takes the kind away.
	t.Run("the kind is not defined", func(t *testing.T) {
		s := newStage(t, admin, config, "undefined")
		undefine(s)
		noReportsIn(s)
	})
}

// allEnd: each agent removes its rules and says so; a second run only looks.
func allEnd(s stage) {
	set := s.daemonSet()
	var pods []*corev1.Pod
	for _, name := range []string{"a", "b", "c"} {
		s.makeNode(name, corev1.ConditionTrue)
		pods = append(pods, s.agent(set, name))
	}
	s.create(&corev1.Pod{ // a neighbour, of which nobody waits for the end
		ObjectMeta: metav1.ObjectMeta{Namespace: s.ns, Name: "other"}, Spec: pods[0].Spec,
	})
	s.onDelete(set, func() {
		for _, pod := range pods {
			s.ends(pod)
		}
	})
	text := s.uninstall(command.CodeDone, "3 nodes are known to have no rules of NMI's")
	for _, words := range []string{"deleted DaemonSet " + s.ns + "/nmi", "waiting for 3 agents to end, 4m0s at most"} {
		if !strings.Contains(text, words) {
			s.Errorf("it does not say %q:\n%s", words, text)
		}
	}
	s.collect(set)
	s.uninstall(command.CodeDone, "DaemonSet "+s.ns+"/nmi is gone already\n3 nodes are known")
}

// oneSticks: nobody hears one agent. It is named, now and again, and no more once
// it has ended.
func oneSticks(s stage) {
	set := s.daemonSet()
	s.makeNode("well", corev1.ConditionTrue)
	s.makeNode("away", corev1.ConditionUnknown)
	well, away := s.agent(set, "well"), s.agent(set, "away")
	s.onDelete(set, func() { s.ends(well); s.sticks(away) })
	text := s.uninstall(command.CodeLeft, "  "+s.node("away")+": pod nmi-away has not ended, and the node is not ready\n", "--timeout=2s")
	s.wantNot(text, "  "+s.node("well"))
	for _, words := range []string{"1 node is known", "1 node may have NMI's rules still", "nmi cleanup", "kubectl delete azureidentitynodereport --namespace " + s.ns + " NODE", "--no-hooks"} {
		if !strings.Contains(text, words) {
			s.Errorf("it does not say %q:\n%s", words, text)
		}
	}
	// The DaemonSet is being deleted, and waits for it, too.
	s.uninstall(command.CodeLeft, "nmi-away has not ended", "--timeout=1s")
	s.ends(away)
	s.collect(set)
	s.uninstall(command.CodeDone, "2 nodes are known")
}

// oneIsSilent: an agent is killed. Its node is named until somebody deletes the
// report, as the remedy says.
func oneIsSilent(s stage) {
	set := s.daemonSet()
	s.makeNode("killed", corev1.ConditionTrue)
	pod := s.agent(set, "killed")
	s.onDelete(set, func() { s.vanishes(pod) })
	const silent = ": the agent has ended without removing its rules, or without saying so\n"
	s.uninstall(command.CodeLeft, s.node("killed")+silent)
	s.uninstall(command.CodeLeft, s.node("killed")+silent)
	s.must(s.admin.Delete(s.Context(), &v1.AzureIdentityNodeReport{ObjectMeta: metav1.ObjectMeta{Namespace: s.ns, Name: s.node("killed")}}))
	s.uninstall(command.CodeDone, "gone already")
}

// nodeIsGone: what has no Node object any more is not named.
func nodeIsGone(s stage) {
	set := s.daemonSet()
	s.makeNode("there", corev1.ConditionTrue)
	there, stuck, silent := s.agent(set, "there"), s.agent(set, "gone"), s.agent(set, "forgotten")
	s.onDelete(set, func() { s.ends(there); s.sticks(stuck); s.vanishes(silent) })
	text := s.uninstall(command.CodeDone, "1 node is known", "--timeout=2s")
	s.wantNot(text, "may have")
}

// agentComesLate: the DaemonSet's controller had just made a pod.
func agentComesLate(s stage) {
	set := s.daemonSet()
	s.makeNode("early", corev1.ConditionTrue)
	s.makeNode("late", corev1.ConditionTrue)
	early := s.agent(set, "early")
	s.onDelete(set, func() {
		late := s.agent(set, "late")
		s.ends(early)
		s.ends(late)
	})
	s.uninstall(command.CodeDone, "2 nodes are known")
}

func nothingThere(s stage) {
	s.uninstall(command.CodeDone, "DaemonSet "+s.ns+"/nmi is gone already\n0 nodes are known")
}

// tapped is a transport that calls on before it sends a request; what on returns is
// the answer, unless it is nil.
type tapped struct {
	next http.RoundTripper
	on   func(*http.Request) *http.Response
}

func (t tapped) RoundTrip(r *http.Request) (*http.Response, error) {
	if answer := t.on(r); answer != nil {
		return answer, nil
	}
	return t.next.RoundTrip(r)
}

func (s stage) tap(on func(*http.Request) *http.Response) *rest.Config {
	config := rest.CopyConfig(s.config)
	config.Wrap(func(next http.RoundTripper) http.RoundTripper { return tapped{next, on} })
	return config
}

func madeAnew(s stage) {
	set := s.daemonSet()
	config := s.tap(func(r *http.Request) *http.Response {
		if r.Method == http.MethodDelete {
			if err := s.admin.Delete(s.Context(), set); err != nil {
				s.Error(err)
			}
			s.daemonSet()
		}
		return nil
	})
	s.uninstallWith(config, command.CodeError, "stop what installs it, and repeat")
	if err := s.admin.Get(s.Context(), client.ObjectKeyFromObject(set), &appsv1.DaemonSet{}); err != nil {
		s.Errorf("somebody else's DaemonSet: %v", err)
	}
}

// watchExpires: the API server has forgotten from where to go on.
func watchExpires(s stage) {
	set := s.daemonSet()
	s.makeNode("a", corev1.ConditionTrue)
	pod := s.agent(set, "a")
	s.onDelete(set, func() {})
	var watched atomic.Int32
	config := s.tap(func(r *http.Request) *http.Response {
		if r.URL.Query().Get("watch") == "" || watched.Add(1) > 1 {
			return nil
		}
		s.ends(pod) // and no event tells of it
		const expired = `{"type":"ERROR","object":{"kind":"Status","apiVersion":"v1","status":"Failure","reason":"Expired","code":410}}`
		return &http.Response{
			StatusCode: http.StatusOK, Header: http.Header{"Content-Type": {"application/json"}}, Request: r, Body: io.NopCloser(strings.NewReader(expired)),
		}
	})
	s.uninstallWith(config, command.CodeDone, "1 node is known")
}

func noReports(s stage) { noReportsIn(s, "--report-namespace=") }

func noReportsIn(s stage, args ...string) {
	set := s.daemonSet()
	s.makeNode("a", corev1.ConditionTrue)
	pod := &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{
			Namespace: s.ns, Name: "nmi-a",
			OwnerReferences: []metav1.OwnerReference{*metav1.NewControllerRef(set, appsv1.SchemeGroupVersion.WithKind("DaemonSet"))},
		},
		Spec: corev1.PodSpec{NodeName: s.node("a"), Containers: []corev1.Container{{Name: "nmi", Image: "nmi"}}},
	}
	s.create(pod)
	s.onDelete(set, func() { s.sticks(pod) })
	s.uninstall(command.CodeLeft, "pod nmi-a has not ended", append(args, "--timeout=1s")...)
	s.vanishes(pod)
	s.uninstall(command.CodeDone, "whether they removed NMI's rules is not known", args...)
}

// couldNotBeRemoved: the agent's own words are said.
func couldNotBeRemoved(s stage) {
	set := s.daemonSet()
	s.makeNode("a", corev1.ConditionTrue)
	pod := s.agent(set, "a")
	s.onDelete(set, func() { s.report(pod, metav1.ConditionTrue, v1.ReasonRulesLeft); s.vanishes(pod) })
	s.uninstall(command.CodeLeft, "  "+s.node("a")+": as the agent says\n")
}

func toldToEnd(s stage) {
	s.agent(s.daemonSet(), "a")
	ctx, cancel := context.WithCancelCause(s.Context())
	config := s.tap(func(r *http.Request) *http.Response {
		if r.URL.Query().Get("watch") != "" {
			cancel(errors.New("told to end"))
		}
		return nil
	})
	var out bytes.Buffer
	if code := execute(ctx, &Options{rest: config}, []string{"--namespace=" + s.ns, "--daemonset=nmi"}, world{&out, &out}); code != command.CodeError || !strings.Contains(out.String(), "told to end") {
		s.Errorf("exit code %d:\n%s", code, out.String())
	}
}

// testForbidden takes one right after the other away: that is an error and says
// which, and nothing is deleted where the command could not have waited.
func testForbidden(t *testing.T, admin client.WithWatch, config *rest.Config) {
	for what, test := range map[string]struct {
		words   string
		deletes bool
	}{
		"daemonsets": {"deleting DaemonSet forbidden-daemonsets/nmi", false},
		"pods":       {"reading the agents' pods", false},
		"reports":    {"reading the nodes' reports", true},
		"nodes":      {"reading node forbidden-nodes-a", true},
	} {
		t.Run(what, func(t *testing.T) {
			s := newStage(t, admin, config, "forbidden-"+what, what)
			set := s.daemonSet()
			pod := s.agent(set, "a")
			if test.deletes {
				s.onDelete(set, func() { s.vanishes(pod) })
			}
			text := s.uninstall(command.CodeError, test.words)
			if !strings.Contains(text, "forbidden") {
				t.Errorf("it does not say that it is forbidden:\n%s", text)
			}
			if err := admin.Get(t.Context(), client.ObjectKeyFromObject(set), set); !test.deletes && (err != nil || set.DeletionTimestamp != nil) {
				t.Errorf("the DaemonSet is deleted: %v", err)
			}
		})
	}
}

// undefine removes the kind of the reports, and waits until the API server does not
// know it any more, of which no event tells.
func undefine(s stage) {
	definition := &unstructured.Unstructured{}
	definition.SetGroupVersionKind(schema.GroupVersionKind{Group: "apiextensions.k8s.io", Version: "v1", Kind: "CustomResourceDefinition"})
	definition.SetName("azureidentitynodereports." + v1.Group)
	s.must(s.admin.Delete(s.Context(), definition))
	ctx, cancel := context.WithTimeout(s.Context(), 30*time.Second)
	defer cancel()
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for !apierrors.IsNotFound(s.admin.List(ctx, &v1.AzureIdentityNodeReportList{})) {
		select {
		case <-tick.C:
		case <-ctx.Done():
			s.Fatal("the kind is still known")
		}
	}
}

func TestCommandLine(t *testing.T) {
	for name, test := range map[string]struct {
		args  string
		code  int
		words string
	}{
		"help":                    {"--help", command.CodeDone, "Exit code: 0 if nothing is left"},
		"no namespace":            {"", command.CodeUsage, "--namespace is \"\" and --daemonset \"aad-pod-identity-nmi\": name NMI's DaemonSet by both"},
		"no daemonset":            {"--namespace=n --daemonset=", command.CodeUsage, "name NMI's DaemonSet by both"},
		"no time":                 {"--namespace=n --timeout=0s", command.CodeUsage, "--timeout is 0s: want more than 0"},
		"an unknown flag":         {"--foo", command.CodeUsage, "unknown flag: --foo"},
		"an argument":             {"--namespace=n now", command.CodeUsage, "unknown argument \"now\""},
		"a kubeconfig of nowhere": {"--namespace=n --kubeconfig=/does/not/exist", command.CodeError, "reading how to reach the API server"},
	} {
		t.Run(name, func(t *testing.T) {
			var out bytes.Buffer
			if code := Execute(t.Context(), strings.Fields(test.args), &out, &out); code != test.code || !strings.Contains(out.String(), test.words) {
				t.Errorf("exit code %d, want %d and %q in\n%s", code, test.code, test.words, out.String())
			}
		})
	}
}
