//go:build e2e

package lab_test

import (
	"strings"
	"testing"

	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	apimeta "k8s.io/apimachinery/pkg/api/meta"
	"sigs.k8s.io/controller-runtime/pkg/client"

	v1 "github.com/aad-pod-identity/aad-pod-identity/api/v1"
	"github.com/aad-pod-identity/aad-pod-identity/internal/azuresim/model"
	"github.com/aad-pod-identity/aad-pod-identity/test/labcli"
)

// TestUninstall: `helm uninstall` alone leaves no node with rules of NMI's. What is
// attached stays attached, and what users wrote stays. Installed again, all works
// as before.
func TestUninstall(t *testing.T) {
	quiet(t) // what earlier tests leave may still be taken off meanwhile
	namespace := newNamespace(t)
	identity := newIdentity(t, namespace, "asker")
	asking := runAskers(t, namespace, identity)
	wantTables(t, true)

	before := lastEntry(t)
	must(t, lab.UninstallChart(t.Context()))
	wantTables(t, false)
	wantReports(t, v1.ReasonRulesRemoved)
	for _, node := range disrupted() {
		wantAttached(t, node, identity)
	}
	entries, err := lab.Sim.Journal(t.Context(), before)
	must(t, err)
	for _, e := range entries {
		if changed(e) {
			t.Errorf("Azure was asked for a change: %s", e)
		}
	}
	for _, a := range asking {
		if kind := a.ask(t.Context()); kind == unreachable {
			t.Errorf("without NMI and its rules a pod is kept from the node's metadata service: %s", a.pages[kind])
		}
	}
	for _, object := range []client.Object{&v1.AzureIdentity{}, &v1.AzureIdentityBinding{}} {
		must(t, lab.Kube.Get(t.Context(), client.ObjectKey{Namespace: namespace, Name: "asker"}, object))
	}
	wantNoPods(t)

	must(t, lab.install(t.Context()))
	wantTables(t, true)
	for _, a := range asking {
		a.wantToken(t)
	}
	wantReports(t, v1.ReasonInForce)
}

// wantTables checks on every node whether all of NMI's tables are there, or none.
func wantTables(t *testing.T, there bool) {
	t.Helper()
	for _, node := range []string{"node1", "node2", "node3"} {
		tables := onNode(t, node, "nft", "list", "tables")
		for _, table := range agentTables() {
			if strings.Contains(tables, "table ip "+table+"\n") != there {
				t.Errorf("table %s on %s: want it there %t, of\n%s", table, node, there, tables)
			}
		}
	}
}

// wantReports waits until every node's report gives the reason for whether it has
// rules.
func wantReports(t *testing.T, reason v1.Reason) {
	t.Helper()
	for _, node := range []string{"node1", "node2", "node3"} {
		await(t, &v1.AzureIdentityNodeReportList{}, "the report of "+node+" says "+string(reason), func(r *v1.AzureIdentityNodeReport) bool {
			condition := apimeta.FindStatusCondition(r.Status.Conditions, v1.ConditionRulesOnNode)
			return r.Name == node && condition != nil && condition.Reason == string(reason)
		}, client.InNamespace(labcli.SystemNamespace))
	}
}

// wantAttached checks that Azure has the identity on the scale set of a node.
func wantAttached(t *testing.T, node string, identity model.Identity) {
	t.Helper()
	state, err := lab.Sim.State(t.Context())
	must(t, err)
	scaleSet := azureNode(t, node).ScaleSet
	for _, s := range state.ScaleSets {
		if strings.EqualFold(s.ID, scaleSet) && names(s.UserAssigned, identity) {
			return
		}
	}
	t.Errorf("%s is not on the scale set of %s any more", identity.ID, node)
}

// wantNoPods checks that neither an agent nor what ended it is there.
func wantNoPods(t *testing.T) {
	t.Helper()
	in := client.InNamespace(labcli.SystemNamespace)
	var pods corev1.PodList
	must(t, lab.Kube.List(t.Context(), &pods, in, client.MatchingLabels{"app.kubernetes.io/component": "nmi"}))
	var jobs batchv1.JobList
	must(t, lab.Kube.List(t.Context(), &jobs, in, client.MatchingLabels{"app.kubernetes.io/component": "nmi-uninstall"}))
	if len(pods.Items)+len(jobs.Items) > 0 {
		t.Errorf("%d agents and %d jobs are left", len(pods.Items), len(jobs.Items))
	}
}
