package chart_test

import (
	"context"
	"crypto/tls"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"

	coordinationv1 "k8s.io/api/coordination/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/watch"
	"sigs.k8s.io/controller-runtime/pkg/client"

	v1 "github.com/aad-pod-identity/aad-pod-identity/api/v1"
	"github.com/aad-pod-identity/aad-pod-identity/internal/azuresim"
	"github.com/aad-pod-identity/aad-pod-identity/internal/azuresim/model"
	"github.com/aad-pod-identity/aad-pod-identity/internal/mic"
)

const (
	subscription = "/subscriptions/11111111-2222-3333-4444-555555555555"
	scaleSet     = subscription + "/resourceGroups/g/providers/Microsoft.Compute/virtualMachineScaleSets/s"
	tenant       = "0a0a0a0a-0000-4000-8000-00000000000a"
	micClientID  = "aaaaaaaa-0000-4000-8000-000000000001"
	micObjectID  = "aaaaaaaa-0000-4000-8000-000000000002"
)

// azure starts a simulated Azure with one scale set and one identity, and returns
// what carries every request to it.
func azure(t *testing.T) *http.Client {
	t.Helper()
	sim, err := azuresim.New(azuresim.Config{State: model.Document{
		Tenant: tenant, Identities: []model.Identity{{ID: resourceID, ClientID: clientID}}, ScaleSets: []model.ScaleSet{{ID: scaleSet}},
		Applications: []model.Application{{Name: "mic", ClientID: micClientID, PrincipalID: micObjectID, Secrets: []model.Secret{"s"}}},
		RoleAssignments: []model.RoleAssignment{
			{Principal: micObjectID, Role: "Virtual Machine Contributor", Scope: subscription},
			{Principal: micObjectID, Role: "Managed Identity Operator", Scope: subscription},
		},
	}})
	if err != nil {
		t.Fatal(err)
	}
	server := httptest.NewUnstartedServer(sim.HTTPS())
	server.TLS = sim.TLSConfig()
	server.StartTLS()
	t.Cleanup(server.Close)
	transport := &http.Transport{
		TLSClientConfig: &tls.Config{RootCAs: sim.Pool(), MinVersion: tls.VersionTLS12},
		DialContext: func(ctx context.Context, network, _ string) (net.Conn, error) {
			var dialer net.Dialer
			return dialer.DialContext(ctx, network, server.Listener.Addr().String())
		},
	}
	t.Cleanup(transport.CloseIdleConnections)
	return &http.Client{Transport: transport}
}

func freePort(t *testing.T) int {
	t.Helper()
	var config net.ListenConfig
	l, err := config.Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = l.Close() }()
	address, _ := l.Addr().(*net.TCPAddr)
	return address.Port
}

// await waits until an object of a kind satisfies want.
func (c cluster) await(t *testing.T, list client.ObjectList, what string, want func(client.Object) bool) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	events, err := c.kube.Watch(ctx, list)
	if err != nil {
		t.Fatal(err)
	}
	defer events.Stop()
	for event := range events.ResultChan() {
		if object, ok := event.Object.(client.Object); ok && event.Type != watch.Deleted && want(object) {
			return
		}
	}
	t.Fatalf("%s: not within %s", what, patience)
}

// runsMIC starts the real MIC with the rendered command line, environment and
// rights, and lets it do its whole job once.
func (c cluster) runsMIC(t *testing.T) {
	file := filepath.Join(t.TempDir(), "azure.json")
	config := fmt.Sprintf(`{"cloud":"AzurePublicCloud","tenantId":%q,"aadClientId":%q,"aadClientSecret":"s"}`, tenant, micClientID)
	if err := os.WriteFile(file, []byte(config), 0o600); err != nil {
		t.Fatal(err)
	}
	r := render(t, fmt.Sprintf(`mic.cloudConfig=%q`, file), fmt.Sprintf(`mic.probePort=%d`, freePort(t)), fmt.Sprintf(`mic.prometheusPort=%d`, freePort(t)))
	c.authorize(t, r)
	c.startMIC(t, r)

	c.await(t, &coordinationv1.LeaseList{}, "a leader", func(o client.Object) bool {
		lease, ok := o.(*coordinationv1.Lease)
		return ok && o.GetNamespace() == "default" && o.GetName() == "aad-pod-identity-mic" && lease.Spec.HolderIdentity != nil
	})
	c.create(t,
		&corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "node"}, Spec: corev1.NodeSpec{ProviderID: "azure://" + scaleSet + "/virtualMachines/0"}},
		&corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: "app", Namespace: namespace, Labels: map[string]string{v1.PodLabel: "app"}}, Spec: corev1.PodSpec{NodeName: "node", Containers: []corev1.Container{{Name: "c", Image: "i"}}}},
		&v1.AzureIdentity{ObjectMeta: metav1.ObjectMeta{Name: "app", Namespace: namespace}, Spec: v1.AzureIdentitySpec{ResourceID: resourceID, ClientID: clientID}},
		&v1.AzureIdentityBinding{ObjectMeta: metav1.ObjectMeta{Name: "app", Namespace: namespace}, Spec: v1.AzureIdentityBindingSpec{AzureIdentity: "app", Selector: "app"}})
	c.await(t, &v1.AzureIdentityList{}, "a judged identity", func(o client.Object) bool {
		judged, ok := o.(*v1.AzureIdentity)
		return ok && o.GetName() == "app" && len(judged.Status.Conditions) > 0
	})
	c.await(t, &v1.AzureAssignedIdentityList{}, "an attached identity", func(o client.Object) bool {
		assigned, ok := o.(*v1.AzureAssignedIdentity)
		return ok && strings.HasPrefix(o.GetName(), "app-"+namespace) && assigned.Status.Status == v1.AssignedIDAssigned
	})
	c.await(t, &v1.AzureIdentityAttachmentList{}, "a record of the scale set", func(o client.Object) bool {
		record, ok := o.(*v1.AzureIdentityAttachment)
		return ok && o.GetNamespace() == namespace && len(record.Status.Conditions) > 0
	})
}

// startMIC runs MIC as its pod would until the test ends. Whatever it may not do,
// it says in its log.
func (c cluster) startMIC(t *testing.T, r rendering) {
	t.Helper()
	var logs lockedBuffer
	options, err := mic.ParseOptions(r.container("mic").Args, &logs)
	if err != nil {
		t.Fatalf("%v: %s", err, logs.String())
	}
	options.Kube, options.Transport, options.Logger = c.account("mic"), azure(t), slog.New(slog.NewTextHandler(&logs, nil))
	options.Getenv = environment(r)
	ctx, cancel := context.WithCancel(context.WithoutCancel(t.Context()))
	ran := make(chan error, 1)
	go func() { ran <- mic.Run(ctx, options) }()
	t.Cleanup(func() {
		cancel()
		if err := <-ran; err != nil {
			t.Errorf("MIC ended: %v", err)
		}
		if strings.Contains(logs.String(), "orbidden") || t.Failed() {
			t.Errorf("MIC's log:\n%s", logs.String())
		}
	})
}

// environment reads the rendered variables as the kubelet would fill them in.
func environment(r rendering) func(string) string {
	values := map[string]string{}
	for _, variable := range r.container("mic").Env {
		values[variable.Name] = variable.Value
		if from := variable.ValueFrom; from != nil && from.FieldRef != nil && from.FieldRef.FieldPath == "metadata.namespace" {
			values[variable.Name] = namespace
		}
	}
	return func(name string) string { return values[name] }
}

func (c cluster) create(t *testing.T, objects ...client.Object) {
	t.Helper()
	for _, object := range objects {
		if err := c.kube.Create(t.Context(), object); err != nil {
			t.Fatal(err)
		}
	}
}
