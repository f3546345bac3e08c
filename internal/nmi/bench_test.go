package nmi

import (
	"context"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"strconv"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	v1 "github.com/aad-pod-identity/aad-pod-identity/api/v1"
	"github.com/aad-pod-identity/aad-pod-identity/internal/audit"
	"github.com/aad-pod-identity/aad-pod-identity/internal/azure/armid"
	"github.com/aad-pod-identity/aad-pod-identity/internal/azure/imds"
	"github.com/aad-pod-identity/aad-pod-identity/internal/identity"
	"github.com/aad-pod-identity/aad-pod-identity/internal/nmi/caller"
	"github.com/aad-pod-identity/aad-pod-identity/internal/nmi/report"
	"github.com/aad-pod-identity/aad-pod-identity/internal/nmi/server"
	"github.com/aad-pod-identity/aad-pod-identity/internal/nmi/tokensource"
	"github.com/aad-pod-identity/aad-pod-identity/internal/nmi/tokensource/supply"
)

// fixed is a set of objects that never changes.
type fixed struct {
	id      *v1.AzureIdentity
	binding *v1.AzureIdentityBinding
}

func (f fixed) Bindings(string) []*v1.AzureIdentityBinding {
	return []*v1.AzureIdentityBinding{f.binding}
}
func (f fixed) Identity(identity.Key) *v1.AzureIdentity           { return f.id }
func (f fixed) HasIdentity(string, armid.ID) bool                 { return true }
func (f fixed) Assigned(identity.Key) []*v1.AzureAssignedIdentity { return nil }
func (f fixed) Exceptions(string) []*v1.AzurePodIdentityException { return nil }
func (f fixed) Changed() <-chan struct{}                          { return nil }
func (fixed) Stale() []string                                     { return nil }

func (f fixed) Unsynced() []string                              { return nil }
func (f fixed) Warn(identity.Key, types.UID, v1.Reason, string) {}
func (f fixed) Token(context.Context, tokensource.Request) (imds.Token, error) {
	return imds.NewToken(strings.Repeat("t", 1800), imds.Token{
		ClientID: clientID(1), Resource: resource, Type: "Bearer", ExpiresOn: time.Now().Add(24 * time.Hour), NotBefore: time.Now(),
	}), nil
}

const benchPod = "127.0.0.2"

// warm is the whole handler as Run wires it, of one node with 100 pods, before a
// source that always answers.
func warm(b testing.TB) http.Handler {
	b.Helper()
	objects := fixed{azureIdentity("ns", 1), azureBinding("ns", 1, "app")}
	callers := caller.NewIndex(nodeName, callerWait)
	for i := range 100 {
		address := netip.AddrFrom4([4]byte{127, 0, 0, byte(2 + i)}).String()
		err := callers.Set(&corev1.Pod{
			ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: "pod-" + strconv.Itoa(i), UID: "uid", Labels: map[string]string{v1.PodLabel: "app"}},
			Spec:       corev1.PodSpec{NodeName: nodeName},
			Status:     corev1.PodStatus{Phase: corev1.PodRunning, PodIPs: []corev1.PodIP{{IP: address}}},
		})
		if err != nil {
			b.Fatal(err)
		}
	}
	o := NewOptions()
	o.Limits.PodPerSecond, o.Limits.NodeAtOnce = 1<<20, 1<<20 // one pod makes all requests
	r := &runner{callers: callers, metrics: report.NewMetrics("v1.2.3"), options: o, log: logTo(io.Discard)}
	r.audit = audit.NewWriter(r.log, r.metrics.AuditDropped)
	go r.audit.Run(b.Context())
	paid := supply.NewOutbound(o.upstreamLimits(), r.metrics)
	return server.New(server.Options{
		Agent: &agent{
			node: nodeName, managed: true, callers: callers, objects: objects, warnings: objects, wait: time.Second,
			tokens: supply.NewCache(tokensource.Sources{Managed: objects}, paid, livePods{callers}, r.metrics),
		},
		Limits: r.newLimiter(), Gate: paid, Done: r.decided(),
	})
}

// quietWriter takes an answer and keeps nothing but its length.
type quietWriter struct {
	header http.Header
	status int
	length int
}

func (w *quietWriter) Header() http.Header    { return w.header }
func (w *quietWriter) WriteHeader(status int) { w.status = status }
func (w *quietWriter) Write(p []byte) (int, error) {
	w.length += len(p)
	return len(p), nil
}
func (w *quietWriter) SetReadDeadline(time.Time) error  { return nil }
func (w *quietWriter) SetWriteDeadline(time.Time) error { return nil }

// maxAllocations is what a warm request may allocate beyond what HTTP does.
const maxAllocations = 17

func TestAWarmRequestAllocatesLittle(t *testing.T) {
	handler := warm(t)
	request := httptest.NewRequestWithContext(t.Context(), http.MethodGet, tokenPath+"?api-version=2018-02-01&resource="+resource+"&client_id="+clientID(1), nil)
	request.Header.Set("Metadata", "true")
	request.RemoteAddr = benchPod + ":40000"
	once := func(handler http.Handler) float64 {
		w := &quietWriter{header: http.Header{}}
		got := testing.AllocsPerRun(1000, func() {
			clear(w.header)
			handler.ServeHTTP(w, request)
		})
		if w.status != http.StatusOK && w.status != 0 || w.length < 1000*1800 {
			t.Fatalf("status %d, %d bytes", w.status, w.length)
		}
		return got
	}
	bare, own := once(bare(make([]byte, 2000))), once(handler)
	t.Logf("%.0f allocations, a bare handler %.0f", own, bare)
	if own-bare > maxAllocations {
		t.Errorf("%.0f allocations, a bare handler %.0f: want at most %d more", own, bare, maxAllocations)
	}
}

// BenchmarkHandler is a warm request without what HTTP costs.
func BenchmarkHandler(b *testing.B) {
	handler := warm(b)
	request := httptest.NewRequestWithContext(b.Context(), http.MethodGet, tokenPath+"?api-version=2018-02-01&resource="+resource+"&client_id="+clientID(1), nil)
	request.Header.Set("Metadata", "true")
	request.RemoteAddr = benchPod + ":40000"
	w := &quietWriter{header: http.Header{}}
	b.ReportAllocs()
	for b.Loop() {
		clear(w.header)
		handler.ServeHTTP(w, request)
	}
}

// bare writes the same bytes and decides nothing.
func bare(body []byte) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "application/json; charset=utf-8")
		w.Header().Set("Content-Length", strconv.Itoa(len(body)))
		_, _ = w.Write(body) // the client of the benchmark reads all
	})
}

// BenchmarkToken compares a warm token request, through every stage, with what
// HTTP alone costs on this machine.
func BenchmarkToken(b *testing.B) {
	handler := warm(b)
	body := ask(b, dial(b, handler))
	for name, handler := range map[string]http.Handler{"nmi": handler, "bare": bare(body)} {
		b.Run(name, func(b *testing.B) {
			client := dial(b, handler)
			ask(b, client)
			b.ReportAllocs()
			for b.Loop() {
				ask(b, client)
			}
		})
	}
}

// dial serves the handler on loopback and returns a client that keeps one
// connection to it from the pod's address.
func dial(b *testing.B, handler http.Handler) *http.Client {
	b.Helper()
	front := httptest.NewServer(handler)
	dialer := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(benchPod)}}
	transport := &http.Transport{DialContext: func(ctx context.Context, network, _ string) (net.Conn, error) {
		return dialer.DialContext(ctx, network, front.Listener.Addr().String())
	}}
	b.Cleanup(func() { transport.CloseIdleConnections(); front.Close() })
	return &http.Client{Transport: transport}
}

func ask(b *testing.B, client *http.Client) []byte {
	request, err := http.NewRequestWithContext(b.Context(), http.MethodGet, "http://agent.invalid"+tokenPath+"?api-version=2018-02-01&resource="+resource+"&client_id="+clientID(1), nil)
	if err != nil {
		b.Fatal(err)
	}
	request.Header.Set("Metadata", "true")
	response, err := client.Do(request)
	if err != nil {
		b.Fatal(err)
	}
	body, err := io.ReadAll(response.Body)
	if err != nil || response.StatusCode != http.StatusOK {
		b.Fatalf("%s: %v", response.Status, err)
	}
	_ = response.Body.Close()
	return body
}
