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
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/uuid"
	coordinationv1 "k8s.io/client-go/kubernetes/typed/coordination/v1"
	"k8s.io/client-go/tools/leaderelection/resourcelock"
	ctrlconfig "sigs.k8s.io/controller-runtime/pkg/config"
	ctrllog "sigs.k8s.io/controller-runtime/pkg/log"
	"sigs.k8s.io/controller-runtime/pkg/manager"
	metricsserver "sigs.k8s.io/controller-runtime/pkg/metrics/server"

	"github.com/aad-pod-identity/aad-pod-identity/internal/azure/armclient"
	"github.com/aad-pod-identity/aad-pod-identity/internal/mic/assignment"
	"github.com/aad-pod-identity/aad-pod-identity/internal/mic/attachment"
	"github.com/aad-pod-identity/aad-pod-identity/internal/mic/events"
	"github.com/aad-pod-identity/aad-pod-identity/internal/mic/kube"
	"github.com/aad-pod-identity/aad-pod-identity/internal/mic/refusal"
	"github.com/aad-pod-identity/aad-pod-identity/internal/mic/validity"
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
	ports, err := c.listen(ctx)
	if err != nil {
		return err
	}
	defer ports.close()
	mgr, err := c.manager()
	if err != nil {
		return err
	}
	if err := c.register(ctx, mgr, ports); err != nil {
		return err
	}
	c.Logger.Info("starting", "version", o.Version, "namespace", c.namespace, "namespaced", c.namespaced)
	if err := mgr.Start(ctx); err != nil {
		return fmt.Errorf("running the controllers: %w", err)
	}
	return nil
}

func (c config) manager() (manager.Manager, error) {
	scheme, errScheme := kube.NewScheme()
	scope, errScope := kube.Scope(c.namespace)
	lock, errLock := c.lock()
	if err := errors.Join(errScheme, errScope, errLock); err != nil {
		return nil, err
	}
	logger := logr.FromSlogHandler(c.Logger.Handler())
	ctrllog.SetLogger(logger)
	renew, retry := c.ElectionDuration/2, c.ElectionDuration/4
	mgr, err := manager.New(c.kube, manager.Options{
		Scheme: scheme, Cache: scope, Logger: logger,
		Metrics:        metricsserver.Options{BindAddress: "0"}, // served beside our own
		LeaderElection: true, LeaderElectionResourceLockInterface: lock, LeaderElectionReleaseOnCancel: true,
		LeaseDuration: &c.ElectionDuration, RenewDeadline: &renew, RetryPeriod: &retry,
		Controller: ctrlconfig.Controller{
			EnableWarmup:       new(true), // so that another leader needs no start
			SkipNameValidation: new(true), // names are unique in a manager, not in a process
		},
	})
	if err != nil {
		return nil, fmt.Errorf("preparing the controllers: %w", err)
	}
	return mgr, nil
}

// lock is the Lease. Two replicas that were given one name must not both take
// themselves for its holder, so that a random part is added.
func (c config) lock() (resourcelock.Interface, error) {
	clients, err := coordinationv1.NewForConfig(c.kube)
	if err != nil {
		return nil, fmt.Errorf("preparing the election: %w", err)
	}
	return &resourcelock.LeaseLock{
		LeaseMeta:  metav1.ObjectMeta{Namespace: c.ElectionNS, Name: c.ElectionName},
		Client:     clients,
		LockConfig: resourcelock.ResourceLockConfig{Identity: c.ElectionInstance + "_" + string(uuid.NewUUID())},
	}, nil
}

// register adds every part of the controller to the manager.
func (c config) register(ctx context.Context, mgr manager.Manager, ports ports) error {
	metrics := newMetrics()
	recorder, err := events.New(ctx, c.kube, mgr.GetScheme())
	if err != nil {
		return err
	}
	arm, err := armclient.New(c.azure, armclient.Options{
		Version: c.Version, UserAgent: c.CustomUserAgent, Transport: c.Transport, Observe: metrics.arm,
		Limits: c.ARM.Limits, RequestTimeout: c.ARM.RequestTimeout, Traffic: newARMTraffic(metrics.registry).sent,
	})
	if err != nil {
		return fmt.Errorf("preparing the client of ARM: %w", err)
	}
	metrics.registry.MustRegister(newBudgets(arm.Budgets))
	attached := newAttachmentMetrics(ctx, metrics.registry, mgr.GetClient())
	attachments := attachment.NewReconciler(attachment.Options{
		Client: mgr.GetClient(), Live: mgr.GetAPIReader(), Events: recorder, ARM: arm, Namespace: c.namespace,
		Policy: c.policy, GatherWindow: c.GatherWindow, RetryMin: c.RetryMin, RetryMax: c.RetryMax,
		PollInterval: c.ARM.PollInterval, OperationTimeout: c.ARM.OperationTimeout,
		QuarantineMin: c.QuarantineMin, QuarantineMax: c.QuarantineMax,
		ReconcileInterval: c.ReconcileInterval, Adopt: c.AdoptAssigned, Assigned: attached.assigned,
	})
	assignments := assignment.NewReconciler(assignment.Options{
		Client: mgr.GetClient(), Live: mgr.GetAPIReader(), Events: recorder, Namespaced: c.namespaced, Observe: metrics.write, Begin: attachments.WaitAdopted,
	})
	return errors.Join(
		kube.AddIndexes(ctx, mgr.GetFieldIndexer()),
		assignments.Register(mgr),
		attachments.Register(mgr),
		validity.Register(mgr, recorder),
		refusal.Register(mgr, recorder),
		c.serve(mgr, metrics, ports),
	)
}

// serve adds what runs on every replica: probes, metrics, and what keeps them
// true.
func (c config) serve(mgr manager.Manager, metrics *metrics, ports ports) error {
	state := &state{}
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
	return errors.Join(
		mgr.Add(serving(ports.probes, state.handler())),
		mgr.Add(serving(ports.metrics, metrics.handler())),
		mgr.Add(watch),
	)
}
