package mic

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"strconv"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	ctrlmetrics "sigs.k8s.io/controller-runtime/pkg/metrics"

	"github.com/aad-pod-identity/aad-pod-identity/internal/obs"
)

// drain is how long a listener lets requests finish at the end.
const drain = 2 * time.Second

// state is what the probes tell.
type state struct {
	ready  atomic.Bool // the caches are filled
	leader atomic.Bool // this replica writes
}

// handler answers the probes. /healthz says Active for the leader and Not Active
// for others, as the old controller's; both are healthy. /readyz is 503 until
// this replica could take over.
func (s *state) handler() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, _ *http.Request) {
		if s.leader.Load() {
			_, _ = fmt.Fprint(w, "Active")
			return
		}
		_, _ = fmt.Fprint(w, "Not Active")
	})
	mux.HandleFunc("GET /readyz", func(w http.ResponseWriter, _ *http.Request) {
		if !s.ready.Load() {
			http.Error(w, "the caches are not filled yet", http.StatusServiceUnavailable)
			return
		}
		_, _ = fmt.Fprint(w, "ok")
	})
	return mux
}

func (m *metrics) handler() http.Handler {
	mux := http.NewServeMux()
	mux.Handle("GET /metrics", promhttp.HandlerFor(prometheus.Gatherers{m.registry, ctrlmetrics.Registry}, promhttp.HandlerOpts{}))
	return mux
}

// always is a part of the manager that runs on every replica.
type always func(ctx context.Context) error

// Start runs the part until ctx ends.
func (f always) Start(ctx context.Context) error { return f(ctx) }

// NeedLeaderElection is false.
func (always) NeedLeaderElection() bool { return false }

// ports are the listeners of probes and metrics.
type ports struct {
	probes, metrics net.Listener
}

// listen opens the ports, so that a taken one is said at the very start.
func (c config) listen(ctx context.Context) (ports, error) {
	open := func(port int, flag string) (net.Listener, error) {
		return obs.Listen(ctx, net.JoinHostPort("", strconv.Itoa(port)), flag)
	}
	probes, err := open(c.ProbePort, "http-probe-port")
	if err != nil {
		return ports{}, err
	}
	metrics, err := open(c.PrometheusPort, "prometheus-port")
	if err != nil {
		return ports{}, errors.Join(err, probes.Close())
	}
	return ports{probes, metrics}, nil
}

// close frees the ports where nothing serves them.
func (p ports) close() {
	_ = p.probes.Close() // closed before, where they were served
	_ = p.metrics.Close()
}

// serving is the part that answers on a port.
func serving(l net.Listener, handler http.Handler) always {
	return func(ctx context.Context) error { return obs.Serve(ctx, l, handler, drain) }
}
