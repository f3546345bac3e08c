package report_test

import (
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	v1 "github.com/aad-pod-identity/aad-pod-identity/api/v1"
	"github.com/aad-pod-identity/aad-pod-identity/internal/azure/armclient"
	"github.com/aad-pod-identity/aad-pod-identity/internal/mic/attachment/report"
)

func TestExplain(t *testing.T) {
	for name, test := range map[string]struct {
		err    error
		reason v1.Reason
		words  string
		after  time.Duration
	}{
		"not found":              {&armclient.NotFoundError{Message: "x"}, v1.ReasonResourceNotFound, "providerID", 0},
		"deleting":               {&armclient.DeletingError{}, v1.ReasonResourceDeleting, "being deleted", 0},
		"throttled":              {&armclient.ThrottledError{After: time.Minute, Message: "slow"}, v1.ReasonThrottled, "slow", time.Minute},
		"busy":                   {&armclient.ConflictError{Message: "x"}, v1.ReasonConflict, "tries again", 0},
		"overtaken":              {&armclient.PreconditionFailedError{}, v1.ReasonConflict, "tries again", 0},
		"one of very many":       {&armclient.BadIdentitiesError{Code: "FailedIdentityOperation", Message: strings.Repeat("ä", 5000)}, v1.ReasonIdentityRefused, "ä…)", 0},
		"a bad identity":         {&armclient.BadIdentitiesError{Code: "FailedIdentityOperation", Message: "gone"}, v1.ReasonIdentityRefused, "az identity show", 0},
		"one not to be assigned": {&armclient.BadIdentitiesError{Code: "LinkedAuthorizationFailed", Message: "no"}, v1.ReasonIdentityRefused, "Managed Identity Operator", 0},
		"no right":               {&armclient.DeniedError{Action: "act", Scope: "there"}, v1.ReasonPermissionDenied, "may not act on there: give it a role that grants that, there", 0},
		"a role is missing":      {&armclient.DeniedError{Action: "act", Scope: "there", Role: "Network Contributor"}, v1.ReasonPermissionDenied, "the role Network Contributor, there", 0},
		"no right, at length":    {&armclient.DeniedError{Scope: "there", Message: strings.Repeat("ä", 5000)}, v1.ReasonPermissionDenied, "ä…)", 0},
		"down":                   {&armclient.UnavailableError{Err: errors.New("no route"), After: time.Second}, v1.ReasonARMUnavailable, "no route", time.Second},
		"something else":         {errors.New("odd"), v1.ReasonARMUnavailable, "odd", 0},
	} {
		t.Run(name, func(t *testing.T) {
			for _, err := range []error{test.err, fmt.Errorf("patching: %w", test.err), &armclient.NotStartedError{Err: test.err}} {
				reason, message := report.Explain(err)
				if reason != test.reason || !strings.Contains(message, test.words) {
					t.Errorf("%v is %s: %s", err, reason, message)
				}
				if len(message) > 1000 || !utf8.ValidString(message) {
					t.Errorf("%d bytes do not fit into an Event", len(message))
				}
				if after := report.RetryAfter(err); after != test.after {
					t.Errorf("%v asks to wait %s", err, after)
				}
			}
		})
	}
}
