// Package follow goes on with what files say while a program runs, however they
// are replaced: written in place, renamed over, moved by a symbolic link as the
// kubelet moves volumes, or away for a moment.
//
// It looks at contents and nothing else, since events of the file system do not
// tell of every kind of replacement. It must not know what the files say.
package follow

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"io"
	"os"
	"strings"
	"time"
)

// Options are what a [Follower] works with; all are needed.
type Options[T any] struct {
	// Files are followed together. One that cannot be read is a content too.
	Files []string
	// Read makes a value of the files.
	Read func() (T, error)
	// Use goes on with a value. After an error everything is as before.
	Use func(T) error
	// Report is told of every new content, once: nil if it is used from now on,
	// else why it is not.
	Report func(error)
}

// Follower follows files. It is not safe for concurrent use.
type Follower[T any] struct {
	Options[T]
	settling settling
}

// New returns a Follower that takes the files for used as they are now: the
// value in use must be read after that.
func New[T any](o Options[T]) *Follower[T] {
	return &Follower[T]{Options: o, settling: settling{judged: contents(o.Files)}}
}

// Run looks at the files at every tick until ctx or the ticks end.
func (f *Follower[T]) Run(ctx context.Context, ticks <-chan time.Time) {
	for {
		select {
		case _, more := <-ticks:
			if !more {
				return
			}
			f.look()
		case <-ctx.Done():
			return
		}
	}
}

func (f *Follower[T]) look() {
	seen := contents(f.Files)
	if !f.settling.judge(seen) {
		return
	}
	value, err := f.Read()
	if now := contents(f.Files); now != seen {
		f.settling = settling{pending: now} // written meanwhile: what was read may be half of it
		return
	}
	if err == nil {
		err = f.Use(value)
	}
	f.Report(err)
}

// settling tells a content that stays from one that is still being written: it
// is judged when two looks in a row see it, and once.
type settling struct {
	judged, pending string
}

func (s *settling) judge(seen string) bool {
	switch seen {
	case s.judged:
		s.pending = ""
		return false
	case s.pending:
		s.judged, s.pending = seen, ""
		return true
	}
	s.pending = seen
	return false
}

// contents is a digest of all files, so that no secret is kept.
func contents(files []string) string {
	var out strings.Builder
	for _, file := range files {
		out.WriteString(digest(file))
	}
	return out.String()
}

func digest(file string) string {
	f, err := os.Open(file) //nolint:gosec // the operator names the file
	if err != nil {
		return "(" + err.Error() + ")"
	}
	defer func() { _ = f.Close() }() // only read
	sum := sha256.New()
	if _, err := io.Copy(sum, f); err != nil {
		return "(" + err.Error() + ")"
	}
	return hex.EncodeToString(sum.Sum(nil))
}
