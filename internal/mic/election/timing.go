package election

import "time"

// Timing is how often a leader must say that it is alive, and when it is taken
// for dead.
type Timing struct {
	// Lease is how long others wait for the next word; whole seconds, since a
	// record cannot say more.
	Lease time.Duration
	// Renew is when a leader that cannot get its word out stops by itself. It is
	// well before Lease, so that it has stopped when another one begins.
	Renew time.Duration
	// Retry is between two words, and between two looks of the others.
	Retry time.Duration
}

// maxRetry bounds how long a word goes unheard.
const maxRetry = time.Second

// TimingFor returns the timing with which a leader that dies is replaced within
// the duration and 2 seconds, in the worst case: it dies just after a word, which
// is heard late, and the end of its time is noticed late. A look comes up to 2.2
// × Retry after the one before it (the election's own jitter). Durations under a
// second have no timing.
func TimingFor(duration time.Duration) Timing {
	lease := max(time.Second, (duration * 4 / 5).Truncate(time.Second))
	return Timing{Lease: lease, Renew: lease * 2 / 3, Retry: min(duration/15, maxRetry)}
}
