package mic_test

import (
	"fmt"
	"net/http"
	"os"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"sigs.k8s.io/controller-runtime/pkg/client"

	v1 "github.com/aad-pod-identity/aad-pod-identity/api/v1"
	"github.com/aad-pod-identity/aad-pod-identity/internal/azuresim"
)

// azureFile writes azure.json beside itself and renames it over, with a secret.
func (w *world) azureFile(t *testing.T, text string) {
	t.Helper()
	if err := os.WriteFile(w.azure+".new", []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(w.azure+".new", w.azure); err != nil {
		t.Fatal(err)
	}
}

func azureJSON(secret string) string {
	return fmt.Sprintf(`{"cloud":"AzurePublicCloud","tenantId":%q,"aadClientId":%q,"aadClientSecret":%q}`, tenant, micClientID, secret)
}

// TestReload: credentials are replaced while the controller runs: by a file that
// cannot be used, which changes nothing, and by right ones.
func TestReload(t *testing.T) {
	t.Parallel()
	w := newWorld(t, azuresim.Config{})
	s := w.scene(t, "reload", scaleSets)
	s.identity(t, "demo")
	w.azureFile(t, azureJSON("expired"))
	self := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: micNamespace, Name: "mic-0"}, Spec: corev1.PodSpec{Containers: []corev1.Container{{Name: "c", Image: "none"}}}}
	w.create(t, self)
	port := freePort(t)
	options := s.options(t, "--prometheus-port="+port)
	options.Getenv = func(name string) string {
		return map[string]string{"MIC_POD_NAMESPACE": micNamespace, "MIC_POD_NAME": self.Name, "MIC_POD_UID": string(self.UID)}[name]
	}
	run(t, options)
	pod := s.pod(t, "web", "demo")
	s.waiting(t, pod, v1.ReasonARMUnavailable)
	metric := func(line string) {
		t.Helper()
		get(t, "http://127.0.0.1:"+port+"/metrics", func(status int, body string) bool {
			return status == http.StatusOK && strings.Contains(body, "\n"+line+"\n")
		})
	}
	metric("mic_cloud_config_current 1")

	w.azureFile(t, `{"cloud":"AzurePubicCloud","useManagedIdentityExtension":true}`)
	w.described(t, self, string(v1.ReasonInvalidConfiguration), "AzurePubicCloud")
	metric("mic_cloud_config_current 0")
	metric(`mic_cloud_config_reloads_total{result="refused"} 1`)

	w.azureFile(t, azureJSON(micSecret))
	s.assigned(t, pod)
	w.described(t, self, string(v1.ReasonReloaded), "is used from now on")
	metric("mic_cloud_config_current 1")
	metric(`mic_cloud_config_reloads_total{result="used"} 1`)
	s.kill(t, pod)
	s.present(t)
}

// described waits for an Event that `kubectl describe` shows of an object: it
// asks the API server for the object's name, namespace, kind and UID.
func (w *world) described(t *testing.T, object client.Object, reason, words string) {
	t.Helper()
	kinds, _, err := w.kube.Scheme().ObjectKinds(object)
	if err != nil {
		t.Fatal(err)
	}
	selector := fields.Set{
		"involvedObject.name": object.GetName(), "involvedObject.namespace": object.GetNamespace(),
		"involvedObject.kind": kinds[0].Kind, "involvedObject.uid": string(object.GetUID()),
	}.AsSelector()
	await(t, w, &corev1.EventList{}, fmt.Sprintf("an event %q that is shown of %s %s and says %q", reason, kinds[0].Kind, object.GetName(), words), func(*corev1.EventList) bool {
		var shown corev1.EventList
		if err := w.kube.List(t.Context(), &shown, &client.ListOptions{Namespace: object.GetNamespace(), FieldSelector: selector}); err != nil {
			t.Fatal(err)
		}
		for _, e := range shown.Items {
			if e.Reason == reason && strings.Contains(e.Message, words) && e.Source.Component == "aadpodidentity.k8s.io" {
				return true
			}
		}
		return false
	})
}
