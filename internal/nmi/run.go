// Package nmi is the agent of a node: it leads the metadata requests of the
// node's pods to itself and answers each with a token of the pod's own identity.
//
// It wires the stages below it and holds the flow of one request through them.
// Rules belong to the stages: whose request it is (caller), which identity
// answers it (resolve), where the token comes from (tokensource), how it looks
// (server), and how it gets here (redirect). The package must not grow a rule of
// its own.
package nmi

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"time"

	"golang.org/x/sync/errgroup"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"

	"github.com/aad-pod-identity/aad-pod-identity/internal/audit"
	"github.com/aad-pod-identity/aad-pod-identity/internal/azure/imds"
	"github.com/aad-pod-identity/aad-pod-identity/internal/binding"
	"github.com/aad-pod-identity/aad-pod-identity/internal/nmi/caller"
	"github.com/aad-pod-identity/aad-pod-identity/internal/nmi/caller/connected"
	"github.com/aad-pod-identity/aad-pod-identity/internal/nmi/caller/link"
	"github.com/aad-pod-identity/aad-pod-identity/internal/nmi/limit"
	"github.com/aad-pod-identity/aad-pod-identity/internal/nmi/redirect"
	"github.com/aad-pod-identity/aad-pod-identity/internal/nmi/report"
	"github.com/aad-pod-identity/aad-pod-identity/internal/nmi/selfprobe"
	"github.com/aad-pod-identity/aad-pod-identity/internal/nmi/server"
	"github.com/aad-pod-identity/aad-pod-identity/internal/nmi/tokensource"
	"github.com/aad-pod-identity/aad-pod-identity/internal/nmi/tokensource/cache"
	imdssource "github.com/aad-pod-identity/aad-pod-identity/internal/nmi/tokensource/imds"
	"github.com/aad-pod-identity/aad-pod-identity/internal/nmi/watch"
	"github.com/aad-pod-identity/aad-pod-identity/internal/obs"
)

const (
	// callerWait bounds the wait for a pod's address to become known.
	callerWait = 2 * time.Second
	// upstreamWait is how long a request waits for its turn and its token, before
	// it is told when to come back; upstreamTime bounds what it waits for.
	upstreamWait = 5 * time.Second
	upstreamTime = 25 * time.Second
	// drain is how long requests in flight may take to end.
	drain = 10 * time.Second
)

// Run serves until ctx ends, then lets requests in flight end. The redirect's
// rules stay: until an agent is back, pods reach nothing. It starts without an
// API server, and is unready until it has read what it needs.
func Run(ctx context.Context, o *Options) error {
	c, err := o.config()
	if err != nil {
		return fmt.Errorf("reading the flags: %w", err)
	}
	log, err := o.logger()
	if err != nil {
		return fmt.Errorf("reading the flags: %w", err)
	}
	log = log.With(obs.KeyNode, c.node)
	if ignored := o.Ignored(); len(ignored) > 0 {
		log.Warn("flags have no effect any more and can go", "flags", ignored)
	}
	r, err := o.prepare(c, log)
	if err != nil {
		return err
	}
	return r.run(ctx)
}

func (o *Options) logger() (*slog.Logger, error) {
	if o.Logger != nil {
		return o.Logger, nil
	}
	return obs.NewLogger(os.Stderr, o.Log)
}

// runner is an agent that is wired and does nothing yet.
type runner struct {
	config   config
	options  *Options
	log      *slog.Logger
	rest     *rest.Config
	redirect redirector
	store    *watch.Store
	callers  *caller.Index
	metrics  *report.Metrics
	health   *report.Health
	tokens   *cache.Cache
	links    *link.Table
	probes   *selfprobe.Keeper // nil if nothing is tried
	kept     chan struct{}     // closed once the rules are in place
	// connections of pods end with what proved them.
	connections connected.Set
}

func (o *Options) prepare(c config, log *slog.Logger) (*runner, error) {
	r := &runner{config: c, options: o, log: log, metrics: report.NewMetrics(), callers: caller.NewIndex(c.node, callerWait), kept: make(chan struct{})}
	var err error
	if r.rest, err = o.kubernetes(); err != nil {
		return nil, fmt.Errorf("reading how to reach the API server: %w", err)
	}
	newRedirect := o.newRedirect
	if newRedirect == nil {
		newRedirect = newNFTables
	}
	r.redirect, err = newRedirect(redirect.Config{Metadata: c.metadata, Target: c.listener, UID: uint32(os.Geteuid())}) //nolint:gosec // a uid is 32 bits wide
	if err != nil {
		return nil, fmt.Errorf("preparing the redirect: %w", err)
	}
	r.store, err = watch.New(r.rest, watch.Options{
		Node: c.node, Assigned: !c.managed, AllNodes: !o.ScaleFeatures,
		Pods: r.callers, PodTransform: caller.Trim, Log: log,
	})
	if err != nil {
		return nil, fmt.Errorf("preparing the watches: %w", err)
	}
	r.health = &report.Health{Rules: r.redirect.Verify, Unsynced: r.store.Unsynced}
	return r, nil
}

func (o *Options) kubernetes() (*rest.Config, error) {
	var out *rest.Config
	var err error
	switch {
	case o.rest != nil:
		out = rest.CopyConfig(o.rest)
	case o.Kubeconfig != "":
		out, err = clientcmd.BuildConfigFromFlags("", o.Kubeconfig)
	default:
		out, err = rest.InClusterConfig()
	}
	if err != nil {
		return nil, err
	}
	out.UserAgent = o.userAgent()
	return out, nil
}

func (o *Options) userAgent() string {
	agent := "aad-pod-identity/NMI/" + obs.Version()
	if o.UserAgent != "" {
		agent += " " + o.UserAgent
	}
	return agent
}

// listeners are open before anything else begins, so that a port that is taken
// is known at once.
type listeners struct {
	api, probes, metrics net.Listener
}

func (r *runner) listen(ctx context.Context) (listeners, error) {
	var out listeners
	for _, l := range []struct {
		address, flag string
		into          *net.Listener
	}{
		{r.config.api, "nmi-port", &out.api},
		{r.config.probes, "http-probe-port", &out.probes},
		{r.config.metrics, "prometheus-port", &out.metrics},
	} {
		listener, err := obs.Listen(ctx, l.address, l.flag)
		if err != nil {
			out.close()
			return listeners{}, err
		}
		*l.into = listener
	}
	return out, nil
}

func (l listeners) close() {
	for _, listener := range []net.Listener{l.api, l.probes, l.metrics} {
		if listener != nil {
			_ = listener.Close() // it served nobody
		}
	}
}

func (r *runner) run(ctx context.Context) error {
	open, err := r.listen(ctx)
	if err != nil {
		return err
	}
	if err := r.prove(); err != nil {
		open.close()
		return err
	}
	defer r.unprove()
	r.prepareProbes()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	limiter := r.newLimiter()
	handler, err := r.handler(ctx, limiter)
	if err != nil {
		open.close()
		return err
	}
	context.AfterFunc(ctx, func() { r.health.Stopping.Store(true) })

	// Probes and metrics answer until pods' requests have ended, so that those
	// can be seen ending.
	watchers, stopWatchers := context.WithCancel(context.WithoutCancel(ctx))
	defer stopWatchers()
	var aside errgroup.Group
	aside.Go(func() error { return obs.Serve(watchers, open.probes, r.health.Handler(), time.Second) })
	aside.Go(func() error { return obs.Serve(watchers, open.metrics, r.metrics.Handler(), time.Second) })

	group, ctx := errgroup.WithContext(ctx)
	group.Go(func() error { return r.keep(ctx) })
	group.Go(func() error { return r.links.Run(ctx, r.callers.Tie) })
	group.Go(func() error { return r.runProbes(ctx) })
	group.Go(func() error { return r.reportNode(ctx) })
	group.Go(func() error { r.store.Run(ctx); return nil })
	group.Go(func() error { r.awaitSync(ctx); return nil })
	group.Go(func() error { r.tokens.Run(ctx); return nil })
	group.Go(func() error {
		r.health.Listening.Store(true)
		return obs.Serve(ctx, limiter.Listener(r.connections.Listener(open.api)), handler, drain)
	})
	r.announce(open)
	err = group.Wait()
	stopWatchers()
	if asideErr := aside.Wait(); err == nil {
		err = asideErr
	}
	if err == nil {
		r.log.Info("ended, the redirect's rules stay")
	}
	return err
}

func (r *runner) awaitSync(ctx context.Context) {
	if !r.store.WaitSynced(ctx) {
		return
	}
	r.log.Info("read what is needed from the API server")
	if r.options.synced != nil {
		r.options.synced()
	}
}

func (r *runner) announce(open listeners) {
	r.log.Info("serving", "api", open.api.Addr().String(), "probes", open.probes.Addr().String(), "metrics", open.metrics.Addr().String(), "upstream", r.config.upstream.String())
	if r.options.listening != nil {
		r.options.listening(addrPort(open.api), addrPort(open.probes), addrPort(open.metrics))
	}
}

func addrPort(listener net.Listener) netip.AddrPort {
	address, _ := listener.Addr().(*net.TCPAddr)
	return address.AddrPort()
}

func (r *runner) keep(ctx context.Context) error {
	err := r.redirect.Keep(ctx, redirectHooks{
		interval: r.config.ruleInterval,
		ready: func() {
			r.health.Kept.Store(true)
			close(r.kept)
			r.log.Info("redirect is in place", "metadata", r.config.metadata.String(), "target", r.config.listener.String())
		},
		changed: func(change redirect.Change) {
			if !change.Rules {
				r.log.Debug("redirect covers a new link", "links", change.Links)
				return
			}
			r.metrics.Repaired()
			r.log.Warn("redirect was put right", "why", change.Reason, "links", change.Links, "flows", change.Flows)
		},
		failed: func(err error) { r.log.Error("redirect is not in place", "error", err) },
	})
	if err != nil {
		return fmt.Errorf("putting the redirect in place: %w", err)
	}
	return nil
}

func (r *runner) handler(ctx context.Context, limiter *limit.Limiter) (*server.Server, error) {
	events, err := report.NewEvents(ctx, r.rest, r.config.node)
	if err != nil {
		return nil, err
	}
	principals, err := r.newPrincipals()
	if err != nil {
		return nil, err
	}
	transport := imds.NewTransport()
	client := imds.NewClient(imds.Options{Address: r.config.upstream, UserAgent: r.options.userAgent(), Transport: transport})
	sources := tokensource.Sources{Managed: imdssource.New(client, r.metrics.AskedIMDS), Principal: principals}
	paid := newOutbound(r.options.Limits, r.metrics)
	r.tokens = r.newCache(sources, paid)
	return server.New(server.Options{
		Agent: &agent{
			node: r.config.node, managed: r.config.managed,
			policy:  binding.Policy{Namespaced: r.options.Namespaced},
			callers: r.callers, objects: r.store,
			tokens:      r.tokens,
			credentials: principals, warnings: events, wait: r.config.wait,
		},
		Upstream: r.config.upstream, Transport: transport, Gate: paid, Limits: limiter,
		NoMetadataHeader:      !r.options.MetadataHeader,
		BlockInstanceMetadata: r.options.BlockInstanceMetadata,
		Listed:                r.options.AllowedMetadata,
		RetryAfter:            r.options.RetryAfterHeader,
		Timeout:               callerWait + r.config.wait + upstreamTime,
		Done:                  r.decided(audit.NewSampler(r.options.AuditEvery)),
	}), nil
}

// decided counts and logs decisions.
func (r *runner) decided(sample *audit.Sampler) func(context.Context, *audit.Record) {
	return func(ctx context.Context, record *audit.Record) {
		r.metrics.Decided(record)
		if sample.Worth(record) {
			record.Log(ctx, r.log)
		}
	}
}
