package nmi

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	apimeta "k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/rest"
	"sigs.k8s.io/controller-runtime/pkg/client"

	v1 "github.com/aad-pod-identity/aad-pod-identity/api/v1"
	"github.com/aad-pod-identity/aad-pod-identity/internal/nmi/redirect"
	testobjects "github.com/aad-pod-identity/aad-pod-identity/test/objects"
)

// daemonSet is the one of which an agent with [rights] may read whether it is
// there.
const daemonSet = "nmi"

// testLeaving ends agents in whatever state their DaemonSet is, with the rights
// of a config.
func testLeaving(t *testing.T, c *cluster, config *rest.Config, ns string) {
	t.Helper()
	_, upstream := azure(t)
	containers := []corev1.Container{{Name: "nmi", Image: "nmi"}}
	labels := map[string]string{"app": "nmi"}
	set := &appsv1.DaemonSet{
		ObjectMeta: metav1.ObjectMeta{Namespace: ns, Name: daemonSet},
		Spec: appsv1.DaemonSetSpec{
			Selector: &metav1.LabelSelector{MatchLabels: labels},
			Template: corev1.PodTemplateSpec{ObjectMeta: metav1.ObjectMeta{Labels: labels}, Spec: corev1.PodSpec{Containers: containers}},
		},
	}
	c.apply(set)
	c.apply(&corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{
			Namespace: ns, Name: "nmi-1",
			OwnerReferences: []metav1.OwnerReference{*metav1.NewControllerRef(set, appsv1.SchemeGroupVersion.WithKind("DaemonSet"))},
		},
		Spec: corev1.PodSpec{Containers: containers},
	})
	ends := func(config *rest.Config, words string, deleted bool, flags ...string) {
		t.Helper()
		r := start(t, config, upstream, flags...)
		if strings.Contains(words, "not all gone") {
			stuck := errors.New("permission denied")
			r.redirect.stuck.Store(&stuck)
		}
		if err := r.stop(); err != nil {
			t.Error(err)
		}
		if log := r.log.String(); !strings.Contains(log, words) || r.redirect.deleted.Load() != deleted {
			t.Errorf("deleted %t, want %t and the words %q in\n%s", r.redirect.deleted.Load(), deleted, words, log)
		}
	}
	mine := "--pod=" + ns + "/nmi-1"
	ends(config, "rules stay\" node=node-a daemonSet="+ns+"/nmi", false, mine)
	ends(nowhere(), "rules stay: it is not known whether", false, mine)
	ends(config, "rules stay: it is not known whether", false, "--pod="+ns+"/nmi-2")
	if err := c.client.Delete(t.Context(), set); err != nil {
		t.Fatal(err)
	}
	ends(config, "rules stay\"", false)
	ends(config, "rules are removed: the DaemonSet is deleted", true, mine)

	heldOpen(t, config, mine)

	// It says so, or that it could not; that it cannot say so changes nothing.
	reporting := "--report-namespace=" + ns
	ends(config, "rules are not all gone", false, mine, reporting)
	c.wantRules(ns, metav1.ConditionTrue, v1.ReasonRulesLeft, "permission denied")
	ends(config, "rules are removed: the DaemonSet is deleted", true, mine, reporting)
	c.wantRules(ns, metav1.ConditionFalse, v1.ReasonRulesRemoved, "removed its rules")
	ends(config, "node report does not say how the node was left", true, mine, "--report-namespace=none-of-that-name")

	// An agent that comes takes it back.
	r := start(t, config, upstream, mine, reporting)
	c.wantRules(ns, metav1.ConditionTrue, v1.ReasonInForce, "has the agent's rules")
	if err := r.stop(); err != nil {
		t.Error(err)
	}

	// One that cannot put its rules in place says whether some are there.
	failsToStart(t, config, mine, reporting)
	c.wantRules(ns, metav1.ConditionFalse, v1.ReasonNoRules, "needs NET_ADMIN")
	failsToStart(t, config, mine, reporting, "aad-pod-identity-fence")
	c.wantRules(ns, metav1.ConditionTrue, v1.ReasonRulesLeft, "needs NET_ADMIN")
}

// heldOpen ends an agent while somebody holds a connection to it, so that it does
// not end well. Its rules go all the same.
func heldOpen(t *testing.T, config *rest.Config, pod string) {
	t.Helper()
	kernel := &fakeRedirect{}
	options := testOptions(t, pod)
	options.rest, options.Logger = config, quiet(t)
	options.newRedirect = func(redirect.Config) (redirector, error) { return kernel, nil }
	listening := make(chan netip.AddrPort, 1)
	options.listening = func(_, probes, _ netip.AddrPort) { listening <- loopback(probes) }
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- Run(ctx, options) }()
	probes := <-listening
	var dialer net.Dialer
	held, err := dialer.DialContext(t.Context(), "tcp", probes.String())
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = held.Close() }()
	probe(t, probes, "/healthz") // which is taken after the one that says nothing
	cancel()
	if err := <-ended; err == nil || !strings.Contains(err.Error(), "draining") {
		t.Errorf("ended with %v, want it to say that a connection was cut off", err)
	}
	if !kernel.deleted.Load() {
		t.Error("the rules stay because a connection was held open")
	}
}

// failsToStart runs an agent that cannot put its rules in place, on a node with some
// tables.
func failsToStart(t *testing.T, config *rest.Config, pod, report string, tables ...string) {
	t.Helper()
	options := testOptions(t, pod, report)
	options.rest, options.Logger = config, quiet(t)
	options.newRedirect = func(redirect.Config) (redirector, error) {
		return &fakeRedirect{tables: tables, keep: func(context.Context, redirectHooks) error { return errors.New("needs NET_ADMIN") }}, nil
	}
	if err := Run(t.Context(), options); err == nil {
		t.Error("an agent without its rules goes on")
	}
}

// wantRules waits until the node's report says this of the rules on it.
func (c *cluster) wantRules(ns string, status metav1.ConditionStatus, reason v1.Reason, words string) {
	c.t.Helper()
	kube, err := client.NewWithWatch(c.config, client.Options{Scheme: c.client.Scheme()})
	if err != nil {
		c.t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(c.t.Context(), 30*time.Second)
	defer cancel()
	_, err = testobjects.Await(ctx, kube, &v1.AzureIdentityNodeReportList{}, func(r *v1.AzureIdentityNodeReport) bool {
		got := apimeta.FindStatusCondition(r.Status.Conditions, v1.ConditionRulesOnNode)
		return r.Name == nodeName && r.Status.Pod == "nmi-1" && got != nil && got.Status == status && got.Reason == string(reason) && strings.Contains(got.Message, words)
	}, client.InNamespace(ns))
	if err != nil {
		c.t.Errorf("want the report to say %s, %s: %v", status, reason, err)
	}
}
