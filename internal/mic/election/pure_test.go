package election

import (
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"k8s.io/client-go/tools/leaderelection"
	"k8s.io/client-go/tools/leaderelection/resourcelock"
)

// TestTiming: client-go takes it, a record can say it, and a dead leader is
// replaced within the duration and 2 seconds.
func TestTiming(t *testing.T) {
	for duration := time.Second; duration <= 5*time.Minute; duration += 100 * time.Millisecond {
		got := TimingFor(duration)
		heardLate := time.Duration(float64(got.Retry) * (1 + leaderelection.JitterFactor))
		if worst := got.Lease + 2*heardLate; worst > duration+2*time.Second {
			t.Errorf("%s: replaced after %s", duration, worst)
		}
		if got.Lease%time.Second != 0 || got.Renew >= got.Lease*3/4 || got.Renew < 4*got.Retry {
			t.Errorf("%s: %+v", duration, got)
		}
	}
	want := Timing{Lease: 12 * time.Second, Renew: 8 * time.Second, Retry: time.Second}
	if diff := cmp.Diff(want, TimingFor(15*time.Second)); diff != "" {
		t.Errorf("the default (-want +got):\n%s", diff)
	}
}

func TestMerge(t *testing.T) {
	type record = resourcelock.LeaderElectionRecord
	by := func(holder string, seconds, transitions int) record {
		return record{HolderIdentity: holder, LeaseDurationSeconds: seconds, LeaderTransitions: transitions}
	}
	for name, test := range map[string]struct{ lease, old, want record }{
		"nobody has either":                   {record{}, record{}, record{}},
		"both were given up":                  {by("", 1, 3), by("", 1, 3), by("", 1, 3)},
		"self has both":                       {by("me", 12, 2), by("me", 12, 2), by("me", 12, 2)},
		"the old lock was deleted":            {by("me", 12, 2), record{}, by("me", 12, 2)},
		"the lease was deleted":               {record{}, by("me", 12, 2), by("me", 12, 2)},
		"another replica has both":            {by("other", 12, 2), by("other", 12, 2), by("other", 12, 2)},
		"another replica without the old one": {by("other", 12, 2), record{}, by("other", 12, 2)},
		"the same, and the old one given up":  {by("other", 12, 2), by("", 1, 7), by("other", 12, 7)},
		"an old controller alone":             {record{}, by("old", 15, 1), by("old", 15, 1)},
		"an old controller, ours given up":    {by("", 1, 9), by("old", 15, 1), by("old", 15, 9)},
		"an old controller took ours":         {by("me", 12, 2), by("old", 15, 3), by("old", 15, 3)},
		"an old one beside another replica":   {by("other", 20, 2), by("old", 15, 3), by("old", 20, 3)},
		"self has half":                       {by("other", 12, 2), by("me", 12, 3), by("other", 12, 3)},
		"an old one that does not say long":   {record{}, by("old", 0, 0), by("old", 12, 0)},
	} {
		t.Run(name, func(t *testing.T) {
			if diff := cmp.Diff(test.want, merge("me", 12*time.Second, test.lease, test.old)); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
		})
	}
}
