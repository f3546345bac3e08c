package mic

import (
	"errors"
	"fmt"
	"log/slog"
	"os"
	"strings"
	"time"

	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"

	"github.com/aad-pod-identity/aad-pod-identity/internal/azure/armclient"
	"github.com/aad-pod-identity/aad-pod-identity/internal/azure/armid"
	"github.com/aad-pod-identity/aad-pod-identity/internal/identity"
	"github.com/aad-pod-identity/aad-pod-identity/internal/mic/attachment/plan"
	"github.com/aad-pod-identity/aad-pod-identity/internal/startuptaint"
)

// The environment variables beside those of the cloud configuration.
const (
	// namespaceVariable is the controller's own namespace, by the downward API.
	namespaceVariable  = "MIC_POD_NAMESPACE"
	namespacedVariable = "FORCENAMESPACED"
)

// config is what Options come to when they are right.
type config struct {
	Options
	kube       *rest.Config
	azure      armclient.Config
	cloud      *cloud
	namespace  string
	namespaced bool
}

// validate reads what the options name. Its errors say what to set.
func (o Options) validate() (config, error) {
	if o.Getenv == nil {
		o.Getenv = os.Getenv
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	c := config{
		Options: o, namespace: o.Getenv(namespaceVariable),
		namespaced: o.ForceNamespaced || o.Getenv(namespacedVariable) == "true",
	}
	if err := o.check(c.namespace); err != nil {
		return config{}, err
	}
	c.cloud = newCloud(o)
	var errAzure, errKube error
	c.azure, errAzure = o.azure()
	_, errPolicy := protected(o.ImmutableMSIs, c.azure)
	c.kube, errKube = o.kubeConfig()
	return c, errors.Join(errAzure, errPolicy, errKube)
}

func (o Options) check(namespace string) error {
	switch {
	case namespace == "":
		return fmt.Errorf("environment variable %s is not set: set it to the controller's own namespace (in a pod: by fieldRef metadata.namespace)", namespaceVariable)
	case o.ElectionDuration < time.Second:
		return fmt.Errorf("--leader-election-duration is %s: want 1s or more", o.ElectionDuration)
	case o.ElectionInstance == "" || o.ElectionNS == "" || o.ElectionName == "":
		return errors.New("--leader-election-instance, -namespace and -name must not be empty")
	case o.ClientQPS < 0:
		return fmt.Errorf("--clientQps is %v: want zero or more", o.ClientQPS)
	}
	return errors.Join(startuptaint.CheckKey(o.StartupTaintKey), o.checkWaits())
}

func (o Options) checkWaits() error {
	switch {
	case o.GatherWindow < 0 || o.RetryMin <= 0 || o.RetryMax < o.RetryMin:
		return fmt.Errorf("--gather-window %s, --retry-min %s and --retry-max %s: want zero or more, more than zero, and at least --retry-min", o.GatherWindow, o.RetryMin, o.RetryMax)
	case o.ReconcileInterval < 0 || o.ReconcileInterval > 0 && o.ReconcileInterval < time.Second:
		return fmt.Errorf("--identity-assignment-reconcile-interval is %s: want 0 for never, or 1s or more", o.ReconcileInterval)
	case o.QuarantineMin <= 0 || o.QuarantineMax < o.QuarantineMin:
		return fmt.Errorf("--quarantine-min %s and --quarantine-max %s: want more than zero, and at least --quarantine-min", o.QuarantineMin, o.QuarantineMax)
	}
	return o.ARM.check()
}

func (o Options) azure() (armclient.Config, error) {
	if o.CloudConfig == "" {
		out, err := armclient.ConfigFromEnvironment(o.Getenv)
		if err != nil {
			return out, fmt.Errorf("%w (or name azure.json with --cloudconfig)", err)
		}
		return out, nil
	}
	return armclient.ReadConfig(o.CloudConfig, o.Getenv)
}

// protected is what is never removed: what the user lists, and the cluster's own
// identity.
func protected(list string, azure armclient.Config) (plan.Policy, error) {
	policy := plan.Policy{IDs: map[armid.ID]bool{}, ClientIDs: map[identity.ClientID]bool{}}
	entries := strings.Split(list, ",")
	if azure.ManagedIdentity {
		entries = append(entries, azure.ManagedIdentityClientID)
	}
	for _, entry := range entries {
		entry = strings.TrimSpace(entry)
		switch {
		case entry == "":
		case strings.HasPrefix(entry, "/"):
			id, err := armid.ParseUserAssigned(entry)
			if err != nil {
				return plan.Policy{}, fmt.Errorf("reading --immutable-user-msis: %w", err)
			}
			policy.IDs[id] = true
		default:
			id, err := identity.ParseClientID(entry)
			if err != nil {
				return plan.Policy{}, fmt.Errorf("reading --immutable-user-msis: %w", err)
			}
			policy.ClientIDs[id] = true
		}
	}
	return policy, nil
}

func (o Options) kubeConfig() (*rest.Config, error) {
	out, err := o.loadKube()
	if err != nil {
		return nil, fmt.Errorf("finding the API server: %w", err)
	}
	out = rest.CopyConfig(out)
	out.UserAgent = "aad-pod-identity/MIC/" + o.Version
	out.QPS = -1
	if o.ClientQPS > 0 {
		out.QPS, out.Burst = float32(o.ClientQPS), max(1, int(o.ClientQPS))
	}
	return out, nil
}

func (o Options) loadKube() (*rest.Config, error) {
	switch {
	case o.Kube != nil:
		return o.Kube, nil
	case o.Kubeconfig != "":
		return clientcmd.BuildConfigFromFlags("", o.Kubeconfig)
	}
	out, err := rest.InClusterConfig()
	if err != nil {
		return nil, fmt.Errorf("%w (outside a cluster, name a kubeconfig with --kubeconfig)", err)
	}
	return out, nil
}
