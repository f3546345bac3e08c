package mic_test

import (
	"bytes"
	"strings"
	"testing"
	"time"

	"github.com/aad-pod-identity/aad-pod-identity/internal/azure/throttle"
	"github.com/aad-pod-identity/aad-pod-identity/internal/mic"
)

func TestARMDefaultsAreTheDocumentedLimits(t *testing.T) {
	o, err := mic.ParseOptions(nil, t.Output())
	if err != nil {
		t.Fatal(err)
	}
	want := mic.ARMOptions{Limits: throttle.Documented(), RequestTimeout: 30 * time.Second, PollInterval: 5 * time.Second, OperationTimeout: 30 * time.Minute}
	if o.ARM != want {
		t.Errorf("got %+v, want %+v", o.ARM, want)
	}
}

func TestARMOptions(t *testing.T) {
	o, err := mic.ParseOptions([]string{"--arm-update-limit-per-resource=2/6", "--arm-read-limit-per-subscription=80/240", "--arm-limit-refill=2s"}, t.Output())
	if err != nil || o.ARM.Limits.ResourceUpdates != (throttle.Limit{PerMinute: 2, Burst: 6}) || o.ARM.Limits.SubscriptionReads != (throttle.Limit{PerMinute: 80, Burst: 240}) || o.ARM.Limits.Refill != 2*time.Second {
		t.Errorf("got %+v, %v", o.ARM, err)
	}
	var said bytes.Buffer
	if _, err := mic.ParseOptions([]string{"--arm-update-limit-per-resource=fast"}, &said); err == nil || !strings.Contains(err.Error(), "want requests per minute and burst") {
		t.Errorf("got %v", err)
	}
}

func TestARMOptionsThatCannotBe(t *testing.T) {
	for arg, words := range map[string]string{
		"--arm-limit-refill=0s":        "--arm-limit-refill is 0s",
		"--arm-request-timeout=-1s":    "--arm-request-timeout is -1s",
		"--arm-poll-interval=0s":       "--arm-poll-interval is 0s",
		"--arm-operation-timeout=0s":   "--arm-operation-timeout is 0s",
		"--arm-operation-timeout=10ms": "is below --arm-poll-interval",
	} {
		t.Run(arg, func(t *testing.T) {
			o, err := mic.ParseOptions([]string{arg}, t.Output())
			if err != nil {
				t.Fatal(err)
			}
			o.Getenv = func(string) string { return "mic" }
			if err := mic.Run(t.Context(), o); err == nil || !strings.Contains(err.Error(), words) {
				t.Errorf("got %v, want one that says %q", err, words)
			}
		})
	}
}
