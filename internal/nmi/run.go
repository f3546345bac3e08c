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
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"

	"github.com/aad-pod-identity/aad-pod-identity/internal/audit"
	"github.com/aad-pod-identity/aad-pod-identity/internal/azure/imds"
	"github.com/aad-pod-identity/aad-pod-identity/internal/binding"
	"github.com/aad-pod-identity/aad-pod-identity/internal/nmi/caller"
	"github.com/aad-pod-identity/aad-pod-identity/internal/nmi/caller/connected"
	"github.com/aad-pod-identity/aad-pod-identity/internal/nmi/caller/link"
	"github.com/aad-pod-identity/aad-pod-identity/internal/nmi/limit"
	"github.com/aad-pod-identity/aad-pod-identity/internal/nmi/options"
	"github.com/aad-pod-identity/aad-pod-identity/internal/nmi/redirect"
	"github.com/aad-pod-identity/aad-pod-identity/internal/nmi/report"
	"github.com/aad-pod-identity/aad-pod-identity/internal/nmi/report/nodereport"
	"github.com/aad-pod-identity/aad-pod-identity/internal/nmi/selfprobe"
	"github.com/aad-pod-identity/aad-pod-identity/internal/nmi/server"
	"github.com/aad-pod-identity/aad-pod-identity/internal/nmi/tokensource"
	"github.com/aad-pod-identity/aad-pod-identity/internal/nmi/tokensource/cache"
	imdssource "github.com/aad-pod-identity/aad-pod-identity/internal/nmi/tokensource/imds"
	"github.com/aad-pod-identity/aad-pod-identity/internal/nmi/tokensource/supply"
	"github.com/aad-pod-identity/aad-pod-identity/internal/nmi/untaint"
	"github.com/aad-pod-identity/aad-pod-identity/internal/nmi/watch"
	"github.com/aad-pod-identity/aad-pod-identity/internal/obs"
	"github.com/aad-pod-identity/aad-pod-identity/internal/obs/tracing"
)

const (
	// callerWait bounds the wait for a pod's address to become known.
	callerWait = 2 * time.Second
	// drain is how long requests in flight may take to end.
	drain = 10 * time.Second
)

// Run serves until ctx ends, then lets requests in flight end. The redirect's
// rules stay: until an agent is back, pods reach nothing. Only if the DaemonSet
// that the agent belongs to is deleted, they go. It starts without an API server,
// and is unready until it has read what it needs.
func Run(ctx context.Context, o *Options) error {
	c, err := o.config()
	if err != nil {
		return fmt.Errorf("reading the flags: %w", err)
	}
	log, err := o.logger()
	if err != nil {
		return fmt.Errorf("reading the flags: %w", err)
	}
	log = log.With(obs.KeyNode, c.Node)
	if ignored := o.Ignored(); len(ignored) > 0 {
		log.Warn("flags have no effect any more and can go", "flags", ignored)
	}
	r, err := o.prepare(c, log)
	if err != nil {
		return err
	}
	if r.tracer, err = tracing.New(ctx, "aad-pod-identity-nmi", obs.Version(), c.Node); err != nil {
		return fmt.Errorf("reading the environment: %w", err)
	}
	err = r.run(ctx)
	if errTraces := r.tracer.Close(ctx); errTraces != nil {
		log.Warn("traces were not sent", "error", errTraces)
	}
	return err
}

func (o *Options) logger() (*slog.Logger, error) {
	if o.Logger != nil {
		return o.Logger, nil
	}
	return obs.NewLogger(os.Stderr, o.Log)
}

// runner is an agent that is wired and does nothing yet.
type runner struct {
	config   options.Config
	options  *Options
	log      *slog.Logger
	rest     *rest.Config
	redirect redirector
	kept     chan struct{} // closed when the redirect is in place
	store    *watch.Store
	callers  *caller.Index
	metrics  *report.Metrics
	health   *report.Health
	tokens   *cache.Cache
	audit    *audit.Writer
	tracer   *tracing.Tracer
	report   *nodereport.Writer // nil if none is written
	links    *link.Table
	probes   *selfprobe.Keeper // nil if nothing is tried
	// connections of pods end with what proved them.
	connections connected.Set
}

func (o *Options) prepare(c options.Config, log *slog.Logger) (*runner, error) {
	r := &runner{config: c, options: o, log: log, kept: make(chan struct{}), metrics: report.NewMetrics(obs.Version()), callers: caller.NewIndex(c.Node, callerWait)}
	r.audit = audit.NewWriter(log, r.metrics.AuditDropped)
	var err error
	if r.rest, err = o.kubernetes(); err != nil {
		return nil, fmt.Errorf("reading how to reach the API server: %w", err)
	}
	newRedirect := o.newRedirect
	if newRedirect == nil {
		newRedirect = newNFTables
	}
	r.redirect, err = newRedirect(redirect.Config{Metadata: c.Metadata, Target: c.Listener, Link: c.Link, UID: uint32(os.Geteuid()), Bound: true}) //nolint:gosec // a uid is 32 bits wide
	if err != nil {
		return nil, fmt.Errorf("preparing the redirect: %w", err)
	}
	r.store, err = watch.New(r.rest, watch.Options{
		Node: c.Node, Assigned: !c.Managed, AllNodes: !o.ScaleFeatures,
		Pods: r.callers, PodTransform: caller.Trim, MaxStaleness: o.MaxStaleness, Now: o.now, Log: log,
	})
	if err != nil {
		return nil, fmt.Errorf("preparing the watches: %w", err)
	}
	r.metrics.WatchAges(r.store.Ages)
	r.health = &report.Health{Rules: r.redirect.Verify, Unsynced: r.store.Unsynced, Stale: r.store.Stale}
	return r, r.prepareReport()
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
	host                 net.Listener // nil if the api serves programs of the node, too
}

// listen opens them, once the address is there that pods are to be led to.
func (r *runner) listen(ctx context.Context) (listeners, error) {
	var out listeners
	made, err := r.redirect.Prepare(ctx)
	if err != nil {
		return out, err
	}
	if made != "" {
		r.log.Info("made what pods are led to", "what", made, "target", r.config.Listener.String())
	}
	for _, l := range []struct {
		address, flag string
		into          *net.Listener
	}{
		{r.config.API, "nmi-port", &out.api},
		{r.config.Host, "nmi-port", &out.host},
		{r.config.Probes, "http-probe-port", &out.probes},
		{r.config.Metrics, "prometheus-port", &out.metrics},
	} {
		if l.address == "" {
			continue
		}
		listener, err := obs.Listen(ctx, l.address, l.flag)
		if err != nil {
			out.close()
			return listeners{}, err
		}
		*l.into = listener
	}
	return out, nil
}

// serving are those that serve tokens.
func (l listeners) serving() []net.Listener {
	if l.host == nil {
		return []net.Listener{l.api}
	}
	return []net.Listener{l.api, l.host}
}

func (l listeners) close() {
	for _, listener := range []net.Listener{l.api, l.host, l.probes, l.metrics} {
		if listener != nil {
			_ = listener.Close() // it served nobody
		}
	}
}

func (r *runner) run(told context.Context) error {
	open, err := r.listen(told)
	if err != nil {
		return err
	}
	if err := r.prove(); err != nil {
		open.close()
		return err
	}
	defer r.unprove()
	r.prepareProbes()
	ctx, cancel := context.WithCancel(told)
	defer cancel()
	limiter := r.newLimiter()
	handler, err := r.handler(ctx, limiter)
	if err != nil {
		open.close()
		return err
	}
	context.AfterFunc(ctx, func() { r.health.Stopping.Store(true) })

	// Probes and metrics answer, and decisions are written, until pods' requests
	// have ended, so that those can be seen ending.
	watchers, stopWatchers := context.WithCancel(context.WithoutCancel(ctx))
	defer stopWatchers()
	var aside errgroup.Group
	aside.Go(func() error { return obs.Serve(watchers, open.probes, r.health.Handler(), time.Second) })
	aside.Go(func() error { return obs.Serve(watchers, open.metrics, r.metrics.Handler(), time.Second) })

	aside.Go(func() error { r.audit.Run(watchers); return nil })

	group, ctx := errgroup.WithContext(ctx)
	// The listener closes after pods are led to it no more, or somebody else
	// could listen there first.
	serving, stopServing := context.WithCancel(context.WithoutCancel(ctx))
	group.Go(func() error { defer stopServing(); return r.keep(ctx) })
	group.Go(func() error { r.survey(ctx); return nil })
	group.Go(func() error { return r.links.Run(ctx, r.callers.Tie) })
	group.Go(func() error { return r.runProbes(ctx) })
	group.Go(func() error { r.reportNode(ctx); return nil })
	group.Go(func() error { r.store.Run(ctx); return nil })
	group.Go(func() error { r.awaitSync(ctx); return nil })
	group.Go(func() error { r.tokens.Run(ctx); return nil })
	group.Go(func() error { return r.untaint(ctx) })
	for _, listener := range open.serving() {
		group.Go(func() error {
			r.health.Listening.Store(true)
			return obs.Serve(serving, limiter.Listener(r.connections.Listener(listener)), handler, drain)
		})
	}
	r.announce(open)
	err = group.Wait()
	stopWatchers()
	if asideErr := aside.Wait(); err == nil {
		err = asideErr
	}
	r.end(told, err)
	return err
}

// end leaves the node. An agent that was told to end may be the last one, whether or
// not all of it has ended well.
func (r *runner) end(told context.Context, err error) {
	if told.Err() != nil {
		r.leave(context.WithoutCancel(told))
	} else if err != nil {
		r.failed(context.WithoutCancel(told), err)
	}
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

// untaint takes the startup taint away, if there is one.
func (r *runner) untaint(ctx context.Context) error {
	if r.options.StartupTaintKey == "" {
		return nil
	}
	client, err := kubernetes.NewForConfig(r.rest)
	if err != nil {
		return fmt.Errorf("making a client for nodes: %w", err)
	}
	untaint.Run(ctx, untaint.Options{
		Nodes: client.CoreV1().Nodes(), Node: r.config.Node, Key: r.options.StartupTaintKey, Ready: r.health.Ready, Log: r.log,
	})
	return nil
}

func (r *runner) announce(open listeners) {
	r.log.Info("serving", "api", open.api.Addr().String(), "probes", open.probes.Addr().String(), "metrics", open.metrics.Addr().String(), "upstream", r.config.Upstream.String())
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
		interval: r.config.RuleInterval,
		ready: func() {
			r.health.Kept.Store(true)
			close(r.kept)
			r.log.Info("redirect is in place", "metadata", r.config.Metadata.String(), "target", r.config.Listener.String())
		},
		changed: func(change redirect.Change) {
			if !change.Rules && change.OwnLink == "" {
				r.log.Debug("redirect covers a new link", "links", change.Links)
				return
			}
			r.metrics.Repaired()
			r.log.Warn("redirect was put right", "why", change.Why(), "links", change.Links, "flows", change.Flows)
		},
		failed: func(err error) { r.log.Error("redirect is not in place", "error", err) },
	})
	if err != nil {
		return fmt.Errorf("putting the redirect in place: %w", err)
	}
	if err := r.redirect.Refuse(); err != nil {
		r.log.Error("new requests still come here while the agent ends", "error", err)
	}
	return nil
}

func (r *runner) handler(ctx context.Context, limiter *limit.Limiter) (*server.Server, error) {
	events, err := report.NewEvents(ctx, r.rest, r.config.Node)
	if err != nil {
		return nil, err
	}
	principals, err := supply.NewPrincipals(supply.PrincipalOptions{
		Kubernetes: r.rest, Authorities: r.config.Authorities, UserAgent: r.options.userAgent(), Transport: r.options.entra,
		CrossNamespace: r.options.Principals.CrossNamespaceSecrets, MaxAge: r.options.Principals.SecretMaxAge, Metrics: r.metrics,
	})
	if err != nil {
		return nil, err
	}
	transport := imds.NewTransport()
	client := imds.NewClient(imds.Options{Address: r.config.Upstream, UserAgent: r.options.userAgent(), Transport: transport})
	sources := tokensource.Sources{Managed: imdssource.New(client, r.metrics.AskedIMDS), Principal: principals}
	paid := supply.NewOutbound(r.options.upstreamLimits(), r.metrics)
	r.tokens = supply.NewCache(supply.Traced(sources, r.tracer), paid, livePods{r.callers}, r.metrics)
	return server.New(server.Options{
		Agent: &agent{
			node: r.config.Node, managed: r.config.Managed,
			policy:  binding.Policy{Namespaced: r.options.Namespaced},
			callers: r.callers, objects: r.store,
			tokens:      r.tokens,
			credentials: principals, warnings: events, wait: r.config.Wait,
		},
		Upstream: r.config.Upstream, Transport: transport, Gate: paid, Limits: limiter,
		NoMetadataHeader:      !r.options.MetadataHeader,
		BlockInstanceMetadata: r.options.BlockInstanceMetadata,
		Listed:                r.options.AllowedMetadata,
		RetryAfter:            r.options.RetryAfterHeader,
		Forwarded:             func(f server.Forwarded) { r.metrics.Forwarded(f.Route, f.Named, f.Status, f.Took) },
		Timeout:               callerWait + r.config.Wait + supply.Timeout,
		Done:                  r.decided(),
		Tracer:                r.tracer,
	}), nil
}
