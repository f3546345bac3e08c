package nmi

import (
	"strings"
	"testing"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/rest"
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
}
