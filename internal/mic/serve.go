package mic

import (
	"context"
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
	ready  atomic.Bool  // the caches are filled
	leader atomic.Bool  // this replica writes
	stuck  func() error // what hangs
}

// handler answers the probes. /healthz says Active for the leader and Not Active
// for others, as the old controller's; both are healthy. It is 503 if a worker
// hangs, and asks nobody: that Azure or the API server answers is no condition of
// being alive. /readyz is 503 until this replica could take over.
func (s *state) handler() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, _ *http.Request) {
		if err := s.stuck(); err != nil {
			http.Error(w, err.Error(), http.StatusServiceUnavailable)
			return
		}
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

// ports are the listeners of probes and metrics, and of pprof if it is asked for.
type ports struct {
	probes, metrics, profile net.Listener
}

// listen opens the ports, so that a taken one is said at the very start.
func (c config) listen(ctx context.Context) (ports, error) {
	var out ports
	for _, port := range []struct {
		wanted        bool
		address, flag string
		into          *net.Listener
	}{
		{true, net.JoinHostPort("", strconv.Itoa(c.ProbePort)), "http-probe-port", &out.probes},
		{true, net.JoinHostPort("", strconv.Itoa(c.PrometheusPort)), "prometheus-port", &out.metrics},
		{c.Profile, c.ProfileAddress, "enableProfile=false", &out.profile},
	} {
		if !port.wanted {
			continue
		}
		var err error
		if *port.into, err = obs.Listen(ctx, port.address, port.flag); err != nil {
			out.close()
			return ports{}, err
		}
	}
	return out, nil
}

// close frees the ports where nothing serves them.
func (p ports) close() {
	for _, listener := range []net.Listener{p.probes, p.metrics, p.profile} {
		if listener != nil {
			_ = listener.Close() // closed before, where it was served
		}
	}
}

// serving is the part that answers on a port.
func serving(l net.Listener, handler http.Handler) always {
	return func(ctx context.Context) error { return obs.Serve(ctx, l, handler, drain) }
}
