package mic

import (
	"context"
	"fmt"
	"slices"
	"sync/atomic"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	v1 "github.com/aad-pod-identity/aad-pod-identity/api/v1"
	"github.com/aad-pod-identity/aad-pod-identity/internal/azure/armclient"
	"github.com/aad-pod-identity/aad-pod-identity/internal/mic/attachment/plan"
	"github.com/aad-pod-identity/aad-pod-identity/internal/mic/events"
	"github.com/aad-pod-identity/aad-pod-identity/internal/mic/follow"
)

// lookEvery is how often the files of the cloud configuration are looked at. A
// new content is used when two looks in a row saw it.
const lookEvery = 2 * time.Second

// The environment variables that name the controller's own pod, for Events.
const (
	podNameVariable = "MIC_POD_NAME"
	podUIDVariable  = "MIC_POD_UID"
)

// cloud is what depends on the cloud configuration, which can be replaced while
// the controller runs: who it is in Azure, and which identity is the cluster's.
type cloud struct {
	options  Options
	files    *follow.Follower[armclient.Config] // nil: there are none
	arm      *armclient.Client
	policy   atomic.Pointer[plan.Policy]
	reported func(error)
}

// newCloud follows the files of the configuration, which must be read after that.
func newCloud(o Options) *cloud {
	c := &cloud{options: o}
	files := slices.DeleteFunc([]string{o.CloudConfig, o.Getenv(armclient.EnvironmentFileVariable)}, func(file string) bool { return file == "" })
	if len(files) > 0 {
		c.files = follow.New(follow.Options[armclient.Config]{Files: files, Read: o.azure, Use: c.use, Report: func(err error) { c.reported(err) }})
	}
	return c
}

// use goes on with a configuration. After an error everything is as before.
func (c *cloud) use(azure armclient.Config) error {
	policy, err := protected(c.options.ImmutableMSIs, azure)
	if err != nil {
		return err
	}
	if err := c.arm.Use(azure); err != nil {
		return fmt.Errorf("preparing the client of ARM: %w", err)
	}
	c.policy.Store(&policy)
	return nil
}

// follow uses what the files say until ctx ends.
func (c *cloud) follow(ctx context.Context) error {
	if c.files == nil {
		return nil
	}
	ticker := time.NewTicker(lookEvery)
	defer ticker.Stop()
	c.files.Run(ctx, ticker.C)
	return nil
}

// reporter says what became of a replaced configuration: in the log, as a
// metric, and as an Event on the controller's own pod, where the environment
// names it.
func (c config) reporter(recorder *events.Recorder, metrics *metrics) func(error) {
	var pod *corev1.ObjectReference
	if name := c.Getenv(podNameVariable); name != "" {
		pod = events.Pod(&corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: c.namespace, Name: name, UID: types.UID(c.Getenv(podUIDVariable))}})
	}
	return func(err error) {
		metrics.reloaded(err)
		reason, message := v1.ReasonReloaded, "the cloud configuration was replaced, and is used from now on"
		if err != nil {
			reason, message = v1.ReasonInvalidConfiguration, "the cloud configuration was replaced by one that cannot be used, so that the one before is used on: "+err.Error()
			c.Logger.Error("the new cloud configuration cannot be used", "error", err)
		} else {
			c.Logger.Info("using the new cloud configuration")
		}
		switch {
		case pod == nil:
		case err != nil:
			recorder.Warn(pod, "cloud configuration", string(reason), message)
		default:
			recorder.Forget(pod.UID, "cloud configuration")
			recorder.Normal(pod, string(reason), message)
		}
	}
}
