package refusal_test

import (
	"errors"
	"fmt"
	"strings"
	"testing"

	v1 "github.com/aad-pod-identity/aad-pod-identity/api/v1"
	"github.com/aad-pod-identity/aad-pod-identity/internal/refusal"
)

func TestOf(t *testing.T) {
	own := refusal.New(v1.ReasonNotBound, "identity %s", "a")
	cause := errors.New("secret detail")
	for name, test := range map[string]struct {
		err    error
		reason v1.Reason
	}{
		"a refusal":         {own, v1.ReasonNotBound},
		"a wrapped refusal": {fmt.Errorf("resolving: %w", own), v1.ReasonNotBound},
		"anything else":     {cause, v1.ReasonInternalError},
	} {
		t.Run(name, func(t *testing.T) {
			got := refusal.Of(test.err)
			if got.Reason != test.reason {
				t.Errorf("got %s, want %s", got.Reason, test.reason)
			}
			if strings.Contains(got.Message, cause.Error()) {
				t.Errorf("the message tells the cause: %s", got.Message)
			}
		})
	}
	if !errors.Is(refusal.Of(cause), cause) {
		t.Error("the cause is lost for the log")
	}
}
