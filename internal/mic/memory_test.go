package mic

import (
	"math"
	"runtime/debug"
	"testing"
)

// TestCollectRarely: what an operator sets by the runtime's variables stays.
func TestCollectRarely(t *testing.T) {
	for name, test := range map[string]struct {
		environment map[string]string
		percent     int
		limit       int64
	}{
		"nothing is set": {nil, gcPercent, memoryLimit},
		"the growth is":  {map[string]string{"GOGC": "50"}, 50, memoryLimit},
		"the limit is":   {map[string]string{"GOMEMLIMIT": "1GiB"}, gcPercent, math.MaxInt64},
		"both are":       {map[string]string{"GOGC": "50", "GOMEMLIMIT": "1GiB"}, 50, math.MaxInt64},
	} {
		t.Run(name, func(t *testing.T) {
			percent, limit := debug.SetGCPercent(50), debug.SetMemoryLimit(math.MaxInt64)
			config{Options: Options{Getenv: func(name string) string { return test.environment[name] }}}.collectRarely()
			if got := debug.SetGCPercent(percent); got != test.percent {
				t.Errorf("memory grows by %d %%, want %d", got, test.percent)
			}
			if got := debug.SetMemoryLimit(limit); got != test.limit {
				t.Errorf("the limit is %d, want %d", got, test.limit)
			}
		})
	}
}
