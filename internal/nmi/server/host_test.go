package server

import (
	"net/http"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	v1 "github.com/aad-pod-identity/aad-pod-identity/api/v1"
	"github.com/aad-pod-identity/aad-pod-identity/internal/audit"
	"github.com/aad-pod-identity/aad-pod-identity/internal/azure/imds"
)

const node = "127.0.0.1"

// hostRequest is as a volume driver sends it: without the header Metadata.
func hostRequest(target string, headers ...string) string {
	return "GET " + target + " HTTP/1.1\r\nHost: 127.0.0.1:2579\r\nConnection: close\r\n" + strings.Join(append(headers, "\r\n"), "\r\n")
}

func TestProgramsOfTheNodeAskForAPod(t *testing.T) {
	for name, request := range map[string]string{
		"canonical":          hostRequest("/host/token?resource=r&client_id=c1", "podname: pod", "podns: ns"),
		"a trailing slash":   hostRequest("/host/token/?resource=r&client_id=c1", "podname: pod", "podns: ns"),
		"headers in capital": hostRequest("/host/token/?resource=r&client_id=c1", "PODNAME: pod", "PodNS: ns"),
	} {
		t.Run(name, func(t *testing.T) {
			b := newBench(t, nil)
			response, body := b.send(node, request)
			want := `{"token":{"access_token":"token-for-c1","client_id":"c1","expires_in":"3600","expires_on":"1700003600","ext_expires_in":"3600","not_before":"1700000000","resource":"r","token_type":"Bearer"},"clientid":"c1"}`
			if diff := cmp.Diff(want, body); diff != "" || response.StatusCode != http.StatusOK {
				t.Errorf("%s: %s", response.Status, diff)
			}
			if got := b.last(); got.Reason != v1.ReasonIssued || got.Route != audit.RouteHost || got.Pod.String() != "ns/pod" {
				t.Errorf("recorded %+v", got)
			}
		})
	}
}

func TestTheNodesRouteRefuses(t *testing.T) {
	for name, test := range map[string]struct {
		from, request string
		status        int
		reason        v1.Reason
		words         string
	}{
		"a pod":                  {plainPod, hostRequest("/host/token?resource=r", "podname: pod", "podns: ns"), 404, v1.ReasonNotServed, "not served to pods"},
		"a pod with all headers": {plainPod, hostRequest("/host/token?resource=r", "podname: pod", "podns: ns", "Metadata: true"), 404, v1.ReasonNotServed, "not served to pods"},
		"an excepted pod":        {exceptedPod, hostRequest("/host/token?resource=r", "podname: pod", "podns: ns"), 404, v1.ReasonNotServed, "not served to pods"},
		"no names":               {node, hostRequest("/host/token?resource=r"), 400, v1.ReasonInvalidRequest, "missing 'podname' and 'podns' from request header"},
		"no namespace":           {node, hostRequest("/host/token?resource=r", "podname: pod"), 400, v1.ReasonInvalidRequest, "missing 'podname' and 'podns'"},
		"two names":              {node, hostRequest("/host/token?resource=r", "podname: pod", "podname: other", "podns: ns"), 400, v1.ReasonInvalidRequest, "each once"},
		"no resource":            {node, hostRequest("/host/token", "podname: pod", "podns: ns"), 400, v1.ReasonInvalidRequest, "'resource' is missing"},
		"forwarded":              {node, hostRequest("/host/token?resource=r", "podname: pod", "podns: ns", "X-Forwarded-For: 10.0.0.1"), 400, v1.ReasonForbiddenHeader, "X-Forwarded-For"},
		"another method":         {node, strings.Replace(hostRequest("/host/token?resource=r", "podname: pod", "podns: ns"), "GET", "DELETE", 1), 405, v1.ReasonMethodNotAllowed, "DELETE"},
		"a pod of another node":  {node, hostRequest("/host/token?resource=r", "podname: far", "podns: ns"), 404, v1.ReasonCallerUnknown, "no pod ns/far on this node"},
	} {
		t.Run(name, func(t *testing.T) {
			// Compatibility mode changes nothing here.
			b := newBench(t, func(o *Options) { o.RetryAfter = true })
			response, body := b.send(test.from, test.request)
			if response.StatusCode != test.status || response.Header.Get("Retry-After") != "" {
				t.Errorf("%s, Retry-After %q: %s", response.Status, response.Header.Get("Retry-After"), body)
			}
			if _, description := errorOf(t, body); !strings.Contains(description, test.words) {
				t.Errorf("body %s does not say %q", body, test.words)
			}
			if got := b.last(); got.Reason != test.reason {
				t.Errorf("recorded %+v", got)
			}
			if len(b.forwarded()) > 0 {
				t.Error("reached upstream")
			}
		})
	}
}

func TestAuxiliaryTenantsAreAnArray(t *testing.T) {
	b := newBench(t, func(o *Options) {
		o.Agent = pods{func(request imds.TokenRequest) (imds.Answer, error) {
			answer, err := issue(request)
			answer.Auxiliary = []imds.Token{answer.Token, answer.Token}
			return answer, err
		}}
	})
	_, single := newBench(t, nil).send(plainPod, get("/metadata/identity/oauth2/token?resource=r"))
	if _, body := b.send(plainPod, get("/metadata/identity/oauth2/token?resource=r")); body != "["+single+","+single+","+single+"]" {
		t.Errorf("got %s", body)
	}
	if _, body := b.send(node, hostRequest("/host/token?resource=r", "podname: pod", "podns: ns")); body != `{"token":`+single+`,"clientid":""}` {
		t.Errorf("the node got %s", body)
	}
}
