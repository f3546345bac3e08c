// Package mic is the controller: it gives every pod that a binding selects its
// AzureAssignedIdentities, and puts their managed identities on the virtual
// machines and scale sets of the pods' nodes.
//
// It reads the options and wires the parts; it must not hold a rule of its own.
package mic

import (
	"context"
	"errors"
	"fmt"

	"github.com/go-logr/logr"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/util/uuid"
	"k8s.io/utils/clock"
	ctrlconfig "sigs.k8s.io/controller-runtime/pkg/config"
	ctrllog "sigs.k8s.io/controller-runtime/pkg/log"
	"sigs.k8s.io/controller-runtime/pkg/manager"
	metricsserver "sigs.k8s.io/controller-runtime/pkg/metrics/server"

	v1 "github.com/aad-pod-identity/aad-pod-identity/api/v1"
	"github.com/aad-pod-identity/aad-pod-identity/internal/azure/armclient"
	"github.com/aad-pod-identity/aad-pod-identity/internal/mic/assignment"
	"github.com/aad-pod-identity/aad-pod-identity/internal/mic/attachment"
	"github.com/aad-pod-identity/aad-pod-identity/internal/mic/attachment/plan"
	"github.com/aad-pod-identity/aad-pod-identity/internal/mic/election"
	"github.com/aad-pod-identity/aad-pod-identity/internal/mic/events"
	"github.com/aad-pod-identity/aad-pod-identity/internal/mic/kube"
	"github.com/aad-pod-identity/aad-pod-identity/internal/mic/refusal"
	"github.com/aad-pod-identity/aad-pod-identity/internal/mic/untaint"
	"github.com/aad-pod-identity/aad-pod-identity/internal/mic/validity"
	"github.com/aad-pod-identity/aad-pod-identity/internal/obs"
	"github.com/aad-pod-identity/aad-pod-identity/internal/obs/watchdog"
)

// Run runs the controller until ctx ends, which is a clean end, or leadership is
// lost, which is an error: another replica acts then. Mistakes in the options
// are found before anything is sent. ARM need not be there: that is reported on
// the objects that wait for it.
func Run(ctx context.Context, o Options) error {
	c, err := o.validate()
	if err != nil {
		return fmt.Errorf("reading the configuration: %w", err)
	}
	for _, flag := range c.Ignored {
		c.Logger.Warn("flag has no effect any more and can go", "flag", "--"+flag.Name, "instead", flag.Instead)
	}
	ports, err := c.listen(ctx)
	if err != nil {
		return err
	}
	defer ports.close()
	scheme, err := kube.NewScheme()
	if err != nil {
		return err
	}
	recorder, err := events.New(ctx, c.kube, scheme)
	if err != nil {
		return err
	}
	mgr, err := c.manager(recorder, scheme)
	if err != nil {
		return err
	}
	if err := c.register(ctx, mgr, recorder, ports); err != nil {
		return err
	}
	c.Logger.Info("starting", "version", o.Version, "namespace", c.namespace, "namespaced", c.namespaced)
	if err := mgr.Start(ctx); err != nil {
		return fmt.Errorf("running the controllers: %w", err)
	}
	return nil
}

func (c config) manager(recorder *events.Recorder, scheme *runtime.Scheme) (manager.Manager, error) {
	scope, errScope := kube.Scope(c.namespace)
	informers, errInformers := kube.Informers(c.kube, scheme)
	timing := election.TimingFor(c.ElectionDuration)
	lock, errLock := c.lock(recorder, timing)
	if err := errors.Join(errScope, errInformers, errLock); err != nil {
		return nil, err
	}
	scope.NewInformer = informers
	logger := logr.FromSlogHandler(c.Logger.Handler())
	ctrllog.SetLogger(logger)
	mgr, err := manager.New(c.kube, manager.Options{
		Scheme: scheme, Cache: scope, Logger: logger,
		Metrics:        metricsserver.Options{BindAddress: "0"}, // served beside our own
		LeaderElection: true, LeaderElectionResourceLockInterface: lock, LeaderElectionReleaseOnCancel: true,
		LeaseDuration: &timing.Lease, RenewDeadline: &timing.Renew, RetryPeriod: &timing.Retry,
		// The caches, which are asked for before the start, follow the cluster on every
		// replica. The queues do not: who waits to lead for weeks would gather the key of
		// every pod that has ever been.
		Controller: ctrlconfig.Controller{SkipNameValidation: new(true)}, // names are unique in a manager, not in a process
	})
	if err != nil {
		return nil, fmt.Errorf("preparing the controllers: %w", err)
	}
	return mgr, nil
}

// lock is what makes one replica act at a time. Two replicas that were given one
// name must not both take themselves for its holder, so that a random part is
// added.
func (c config) lock(recorder *events.Recorder, timing election.Timing) (*election.Lock, error) {
	return election.New(c.kube, election.Options{
		Namespace: c.ElectionNS, Name: c.ElectionName, Identity: c.ElectionInstance + "_" + string(uuid.NewUUID()),
		Timing: timing, Legacy: c.LegacyLock, Say: recorder.Normal,
		Waiting: func(lease *corev1.ObjectReference, holder string) {
			message := fmt.Sprintf("%s waits for %s to end, which leads by Endpoints %s/%s: scale the controller of AAD Pod Identity to none", c.ElectionInstance, holder, c.ElectionNS, c.ElectionName)
			recorder.Warn(lease, holder, string(v1.ReasonOldController), message)
			c.Logger.Warn("waiting for an old controller to end", "holder", holder, "endpoints", c.ElectionNS+"/"+c.ElectionName)
		},
	})
}

// register adds every part of the controller to the manager.
func (c config) register(ctx context.Context, mgr manager.Manager, recorder *events.Recorder, ports ports) error {
	state, metrics := &state{}, newMetrics(c.Version)
	dog := watchdog.New(clock.RealClock{}, metrics.ended)
	metrics.watch(state, dog)
	state.stuck = dog.Check
	if err := c.openCloud(recorder, metrics); err != nil {
		return err
	}
	shared, err := kube.NewShared(ctx, mgr.GetCache())
	if err != nil {
		return err
	}
	lookup := kube.Lookup{Reader: mgr.GetClient(), Shared: shared}
	attached := newAttachmentMetrics(ctx, metrics.registry, mgr.GetClient())
	attachments := attachment.NewReconciler(attachment.Options{
		Client: statusWriter{mgr.GetClient(), recorder, metrics.statusFailed}, Shared: shared, Live: mgr.GetAPIReader(), Events: recorder, ARM: c.cloud.arm, Namespace: c.namespace,
		Policy: func() plan.Policy { return *c.cloud.policy.Load() }, GatherWindow: c.GatherWindow, RetryMin: c.RetryMin, RetryMax: c.RetryMax,
		PollInterval: c.ARM.PollInterval, OperationTimeout: c.ARM.OperationTimeout,
		QuarantineMin: c.QuarantineMin, QuarantineMax: c.QuarantineMax,
		ReconcileInterval: c.ReconcileInterval, Adopt: c.AdoptAssigned, Assigned: attached.assigned, Watchdog: dog,
	})
	assignments := assignment.NewReconciler(assignment.Options{
		Client: mgr.GetClient(), Shared: shared, Live: mgr.GetAPIReader(), Events: recorder, Namespaced: c.namespaced, Observe: metrics.write,
		Begin: attachments.WaitAdopted, Watchdog: dog,
	})
	return errors.Join(
		kube.AddIndexes(ctx, mgr.GetFieldIndexer(), shared),
		assignments.Register(mgr),
		attachments.Register(mgr),
		validity.Register(mgr, lookup, recorder, dog),
		refusal.Register(mgr, lookup, recorder),
		c.untaint(ctx, mgr, dog),
		mgr.Add(always(c.cloud.follow)),
		c.serve(mgr, state, metrics, ports),
	)
}

// untaint adds what takes the startup taint away, if there is one.
func (c config) untaint(ctx context.Context, mgr manager.Manager, dog *watchdog.Watchdog) error {
	if c.StartupTaintKey == "" {
		return nil
	}
	return untaint.Register(ctx, mgr, untaint.Options{Key: c.StartupTaintKey, Namespace: c.namespace, Watchdog: dog, Log: c.Logger})
}

// openCloud prepares the way to ARM.
func (c config) openCloud(recorder *events.Recorder, metrics *metrics) error {
	arm, err := armclient.New(c.azure, armclient.Options{
		Version: c.Version, UserAgent: c.CustomUserAgent, Transport: c.Transport, Observe: metrics.arm,
		Limits: c.ARM.Limits, RequestTimeout: c.ARM.RequestTimeout, Traffic: newARMTraffic(metrics.registry).sent,
	})
	if err != nil {
		return fmt.Errorf("preparing the client of ARM: %w", err)
	}
	metrics.registry.MustRegister(newBudgets(arm.Budgets))
	c.cloud.arm, c.cloud.reported = arm, c.reporter(recorder, metrics)
	return c.cloud.use(c.azure)
}

// serve adds what runs on every replica: probes, metrics, and what keeps them
// true.
func (c config) serve(mgr manager.Manager, state *state, metrics *metrics, ports ports) error {
	watch := always(func(ctx context.Context) error {
		state.ready.Store(mgr.GetCache().WaitForCacheSync(ctx))
		select {
		case <-mgr.Elected():
			metrics.elections.Inc()
			state.leader.Store(true)
			c.Logger.Info("leading", "lease", c.ElectionNS+"/"+c.ElectionName)
		case <-ctx.Done():
		}
		return nil
	})
	parts := []manager.Runnable{serving(ports.probes, state.handler()), serving(ports.metrics, metrics.handler()), watch}
	if ports.profile != nil {
		parts = append(parts, serving(ports.profile, obs.Profile()))
	}
	var failures []error
	for _, part := range parts {
		failures = append(failures, mgr.Add(part))
	}
	return errors.Join(failures...)
}
