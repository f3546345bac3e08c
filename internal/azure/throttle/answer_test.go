package throttle_test

import (
	"net/http"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/aad-pod-identity/aad-pod-identity/internal/azure/throttle"
)

func TestLimitText(t *testing.T) {
	for text, want := range map[string]throttle.Limit{"4/12": {4, 12}, "500/1500": {500, 1500}, "1/1": {1, 1}} {
		var got throttle.Limit
		if err := got.UnmarshalText([]byte(text)); err != nil || got != want || got.String() != text {
			t.Errorf("%q is %v, %v", text, got, err)
		}
		if back, err := got.MarshalText(); err != nil || string(back) != text {
			t.Errorf("%v is written %q, %v", got, back, err)
		}
	}
	for _, text := range []string{"", "4", "4/", "/12", "0/12", "4/0", "-4/12", "four/12", "4/12/3", "4.5/12"} {
		var got throttle.Limit
		if err := got.UnmarshalText([]byte(text)); err == nil {
			t.Errorf("%q is %v, want an error", text, got)
		}
	}
}

func TestReadAnswer(t *testing.T) {
	now := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	for name, test := range map[string]struct {
		status int
		header http.Header
		want   throttle.Answer
	}{
		"nothing said": {200, http.Header{}, throttle.Answer{}},
		"what is left": {200, http.Header{"X-Ms-Ratelimit-Remaining-Resource": {"Microsoft.Compute/UpdateVMScaleSetSubscriptionMaximum;1499,Microsoft.Compute/UpdateVMScaleSetResource;11"}},
			throttle.Answer{Left: map[throttle.Scope]int{throttle.Subscription: 1499, throttle.Resource: 11}}},
		"what is left, in several headers": {200, http.Header{"X-Ms-Ratelimit-Remaining-Resource": {"Microsoft.Compute/LowCostGetResource;35", " Microsoft.Compute/LowCostGetSubscriptionMaximum;23999"}},
			throttle.Answer{Left: map[throttle.Scope]int{throttle.Subscription: 23999, throttle.Resource: 35}}},
		"a policy of an unknown name is the subscription's": {200, http.Header{"X-Ms-Ratelimit-Remaining-Resource": {"Microsoft.Compute/HighCostGet3Min;159,Microsoft.Compute/HighCostGet30Min;12"}},
			throttle.Answer{Left: map[throttle.Scope]int{throttle.Subscription: 12}}},
		"ARM's own": {200, http.Header{"X-Ms-Ratelimit-Remaining-Subscription-Reads": {"249"}}, throttle.Answer{Left: map[throttle.Scope]int{throttle.Principal: 249}}},
		"the last one": {200, http.Header{"X-Ms-Ratelimit-Remaining-Resource": {"Microsoft.Compute/UpdateVMResource;0"}},
			throttle.Answer{Left: map[throttle.Scope]int{throttle.Resource: 0}, Empty: []throttle.Scope{throttle.Resource}}},
		"refused, per resource": {429, http.Header{"Retry-After": {"15"}, "X-Ms-Ratelimit-Remaining-Resource": {"Microsoft.Compute/UpdateVMScaleSetSubscriptionMaximum;1400,Microsoft.Compute/UpdateVMScaleSetResource;0"}},
			throttle.Answer{Refused: true, After: 15 * time.Second, Left: map[throttle.Scope]int{throttle.Subscription: 1400, throttle.Resource: 0}, Empty: []throttle.Scope{throttle.Resource}}},
		"refused at ARM's door": {429, http.Header{"Retry-After": {"1"}, "X-Ms-Ratelimit-Remaining-Subscription-Writes": {"0"}},
			throttle.Answer{Refused: true, After: time.Second, Left: map[throttle.Scope]int{throttle.Principal: 0}, Empty: []throttle.Scope{throttle.Principal}}},
		"refused, by date":            {429, http.Header{"Retry-After": {"Fri, 02 Jan 2026 03:05:05 GMT"}}, throttle.Answer{Refused: true, After: time.Minute}},
		"refused, by a date gone by":  {429, http.Header{"Retry-After": {"Thu, 01 Jan 2026 03:05:05 GMT"}}, throttle.Answer{Refused: true}},
		"refused, in milliseconds":    {429, http.Header{"X-Ms-Retry-After-Ms": {"1500"}, "Retry-After": {"2"}}, throttle.Answer{Refused: true, After: 1500 * time.Millisecond}},
		"refused, in no known way":    {429, http.Header{"Retry-After": {"soon"}}, throttle.Answer{Refused: true}},
		"refused, by a negative time": {429, http.Header{"Retry-After": {"-5"}}, throttle.Answer{Refused: true}},
		"down, and says when":         {503, http.Header{"Retry-After": {"30"}}, throttle.Answer{After: 30 * time.Second}},
		"when to poll is no refusal":  {202, http.Header{"Retry-After": {"30"}}, throttle.Answer{}},
		"no number":                   {200, http.Header{"X-Ms-Ratelimit-Remaining-Resource": {"Microsoft.Compute/UpdateVMResource;many,,;,x"}}, throttle.Answer{}},
	} {
		t.Run(name, func(t *testing.T) {
			got := throttle.ReadAnswer(test.status, test.header, now)
			if diff := cmp.Diff(test.want, got, cmpopts.EquateEmpty()); diff != "" {
				t.Errorf("answer (-want +got):\n%s", diff)
			}
		})
	}
}

// FuzzReadAnswer: whatever a server sends, nothing below zero is waited for, and
// only what is refused or down makes anyone wait.
func FuzzReadAnswer(f *testing.F) {
	f.Add(429, "15", "Microsoft.Compute/UpdateVMResource;0", "12")
	f.Add(503, "Fri, 02 Jan 2026 03:05:05 GMT", ";;;", "")
	f.Fuzz(func(t *testing.T, status int, after, compute, door string) {
		header := http.Header{"Retry-After": {after}, "X-Ms-Ratelimit-Remaining-Resource": {compute}, "X-Ms-Ratelimit-Remaining-Subscription-Reads": {door}}
		a := throttle.ReadAnswer(status, header, time.Unix(0, 0))
		if a.After < 0 || a.After > 0 && status < 429 {
			t.Errorf("%d with %q asks to wait %s", status, after, a.After)
		}
		for _, scope := range a.Empty {
			if a.Left[scope] > 0 {
				t.Errorf("%s is empty and holds %d", scope, a.Left[scope])
			}
		}
	})
}
