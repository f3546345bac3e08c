package mic

import (
	"errors"
	"flag"
	"fmt"
	"time"

	"github.com/aad-pod-identity/aad-pod-identity/internal/azure/throttle"
)

// ARMOptions say how ARM is asked.
type ARMOptions struct {
	Limits           throttle.Limits
	RequestTimeout   time.Duration // of one request
	PollInterval     time.Duration // where ARM does not say
	OperationTimeout time.Duration
}

func (o *ARMOptions) bind(flags *flag.FlagSet) {
	documented := throttle.Documented()
	limit := func(to *throttle.Limit, name string, value throttle.Limit, of string) {
		flags.TextVar(to, name, value, "ARM's limit of "+of+", in requests per minute and burst; the controller keeps under it, so that a lower one leaves more to others")
	}
	limit(&o.Limits.ResourceUpdates, "arm-update-limit-per-resource", documented.ResourceUpdates, "changes of one virtual machine or scale set")
	limit(&o.Limits.ResourceReads, "arm-read-limit-per-resource", documented.ResourceReads, "reads of one virtual machine or scale set")
	limit(&o.Limits.SubscriptionUpdates, "arm-update-limit-per-subscription", documented.SubscriptionUpdates, "changes in one subscription")
	limit(&o.Limits.SubscriptionReads, "arm-read-limit-per-subscription", documented.SubscriptionReads, "reads in one subscription")
	limit(&o.Limits.PrincipalUpdates, "arm-update-limit-per-principal", documented.PrincipalUpdates, "changes by one client in one subscription")
	limit(&o.Limits.PrincipalReads, "arm-read-limit-per-principal", documented.PrincipalReads, "reads by one client in one subscription")
	flags.DurationVar(&o.Limits.Refill, "arm-limit-refill", documented.Refill, "how often ARM refills the limits per resource and per subscription")
	flags.DurationVar(&o.RequestTimeout, "arm-request-timeout", 30*time.Second, "how long one request to ARM may take; a poll that hangs is cut off and made again")
	flags.DurationVar(&o.PollInterval, "arm-poll-interval", 5*time.Second, "how often a running operation is asked for where ARM does not say")
	flags.DurationVar(&o.OperationTimeout, "arm-operation-timeout", 30*time.Minute, "how long an operation of ARM's is asked for; after that its virtual machine or scale set is looked at instead, until it is at rest")
}

func (o ARMOptions) check() error {
	for name, d := range map[string]time.Duration{
		"arm-limit-refill": o.Limits.Refill, "arm-request-timeout": o.RequestTimeout,
		"arm-poll-interval": o.PollInterval, "arm-operation-timeout": o.OperationTimeout,
	} {
		if d <= 0 {
			return fmt.Errorf("--%s is %s: want more than zero", name, d)
		}
	}
	if o.OperationTimeout < o.PollInterval {
		return errors.New("--arm-operation-timeout is below --arm-poll-interval: want at least as much")
	}
	return nil
}
