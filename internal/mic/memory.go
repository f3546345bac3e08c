package mic

import "runtime/debug"

// By how many percent memory may grow between two collections, and, in bytes, the
// total from which on it may grow by less. What is kept is small beside what the
// chart grants, and with half as many collections an event costs less.
const (
	gcPercent   = 200
	memoryLimit = 448 << 20
)

// collectRarely leaves what the runtime's own variables say as it is.
func (c config) collectRarely() {
	if c.Getenv("GOGC") == "" {
		debug.SetGCPercent(gcPercent)
	}
	if c.Getenv("GOMEMLIMIT") == "" {
		debug.SetMemoryLimit(memoryLimit)
	}
}
