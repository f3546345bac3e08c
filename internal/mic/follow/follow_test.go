package follow_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/aad-pod-identity/aad-pod-identity/internal/mic/follow"
)

// folder is where a test replaces files.
type folder struct {
	t   *testing.T
	dir string
}

func (f folder) path(name string) string { return filepath.Join(f.dir, name) }

func (f folder) write(name, text string) {
	f.t.Helper()
	if err := os.WriteFile(f.path(name), []byte(text), 0o600); err != nil {
		f.t.Fatal(err)
	}
}

func (f folder) do(err error) {
	f.t.Helper()
	if err != nil {
		f.t.Fatal(err)
	}
}

// volume lays a file out as the kubelet does: file → ..data/file, ..data → a
// folder of its own, and swaps ..data.
func (f folder) volume(generation, text string) {
	f.t.Helper()
	f.do(os.MkdirAll(f.path(generation), 0o700))
	f.write(generation+"/azure.json", text)
	f.do(os.Symlink(generation, f.path("..tmp")))
	f.do(os.Rename(f.path("..tmp"), f.path("..data")))
	if _, err := os.Lstat(f.path("azure.json")); errors.Is(err, os.ErrNotExist) {
		f.do(os.Symlink("..data/azure.json", f.path("azure.json")))
	}
}

// harness runs a follower of one file of words.
type harness struct {
	folder
	follower *follow.Follower[string]
	said     []string
	used     string
	reading  func() // called between a read and its use
}

func start(t *testing.T, prepare func(folder)) *harness {
	t.Helper()
	h := &harness{folder: folder{t, t.TempDir()}}
	prepare(h.folder)
	h.follower = follow.New(follow.Options[string]{
		Files: []string{h.path("azure.json"), h.path("cloud.json")},
		Read: func() (string, error) {
			text, err := os.ReadFile(h.path("azure.json"))
			if err == nil && strings.HasPrefix(string(text), "bad") {
				err = fmt.Errorf("reading %q: no such word", text)
			}
			if h.reading != nil {
				h.reading()
			}
			return string(text), err
		},
		Use: func(text string) error {
			if text == "useless" {
				return errors.New("useless")
			}
			h.used = text
			return nil
		},
		Report: func(err error) { h.said = append(h.said, strings.ReplaceAll(fmt.Sprint(err), h.dir, "")) },
	})
	return h
}

// look lets the follower look n times.
func (h *harness) look(n int) {
	ticks := make(chan time.Time, n)
	for range n {
		ticks <- time.Time{}
	}
	close(ticks)
	h.follower.Run(h.t.Context(), ticks)
}

// want checks what is in use, and what was said since the last time.
func (h *harness) want(used string, said ...string) {
	h.t.Helper()
	if diff := cmp.Diff(append([]string{used}, said...), append([]string{h.used}, h.said...)); diff != "" {
		h.t.Errorf("used, then said (-want +got):\n%s", diff)
	}
	h.said = nil
}

func TestReplacements(t *testing.T) {
	plain := func(f folder) { f.write("azure.json", "first") }
	for name, test := range map[string]struct {
		prepare, replace func(folder)
	}{
		"written in place": {plain, func(f folder) { f.write("azure.json", "second") }},
		"renamed over": {plain, func(f folder) {
			f.write("azure.json.new", "second")
			f.do(os.Rename(f.path("azure.json.new"), f.path("azure.json")))
		}},
		"a volume of the kubelet's": {
			func(f folder) { f.volume("..1", "first") },
			func(f folder) {
				f.volume("..2", "second")
				f.do(os.RemoveAll(f.path("..1")))
			},
		},
		"a link to another file": {
			func(f folder) {
				f.write("one", "first")
				f.do(os.Symlink("one", f.path("azure.json")))
			},
			func(f folder) {
				f.write("two", "second")
				f.do(os.Remove(f.path("azure.json")))
				f.do(os.Symlink("two", f.path("azure.json")))
			},
		},
		"of the same size and time": {plain, func(f folder) {
			before, err := os.Stat(f.path("azure.json"))
			f.do(err)
			f.write("azure.json", "secon")
			f.do(os.Chtimes(f.path("azure.json"), before.ModTime(), before.ModTime()))
		}},
	} {
		t.Run(name, func(t *testing.T) {
			h := start(t, test.prepare)
			h.look(2)
			h.want("")
			test.replace(h.folder)
			h.look(2)
			text, err := os.ReadFile(h.path("azure.json"))
			h.do(err)
			h.want(string(text), "<nil>")
			h.look(2)
			h.want(string(text))
		})
	}
}

// TestAwayForAMoment: a file that is replaced by removing and writing it is never
// missed, one that stays away is, once, and what was used is used on.
func TestAwayForAMoment(t *testing.T) {
	h := start(t, func(f folder) { f.write("azure.json", "first") })
	h.do(os.Remove(h.path("azure.json")))
	h.look(1)
	h.write("azure.json", "second")
	h.look(2)
	h.want("second", "<nil>")
	h.do(os.Remove(h.path("azure.json")))
	h.look(4)
	h.want("second", "open /azure.json: no such file or directory")
	h.write("azure.json", "second")
	h.look(2)
	h.want("second", "<nil>")
}

// TestBadContents: what cannot be used is said once, and the next good one is
// used.
func TestBadContents(t *testing.T) {
	h := start(t, func(f folder) { f.write("azure.json", "first") })
	h.write("azure.json", "bad")
	h.look(5)
	h.want("", `reading "bad": no such word`)
	h.write("azure.json", "useless")
	h.look(5)
	h.want("", "useless")
	h.write("azure.json", "good")
	h.look(5)
	h.want("good", "<nil>")
}

// TestHalfWritten: while a file grows, none of its states is used, whatever they
// look like.
func TestHalfWritten(t *testing.T) {
	h := start(t, func(f folder) { f.write("azure.json", "first") })
	for _, text := range []string{"", "se", "seco", "second"} {
		h.write("azure.json", text)
		h.look(1)
		h.want("")
	}
	h.look(1)
	h.want("second", "<nil>")
}

// TestEnds: with its context.
func TestEnds(t *testing.T) {
	h := start(t, func(folder) {})
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	h.follower.Run(ctx, nil)
}

// TestWrittenWhileRead: what was read while the file changed is not used.
func TestWrittenWhileRead(t *testing.T) {
	h := start(t, func(f folder) { f.write("azure.json", "first") })
	h.write("azure.json", "second")
	h.reading = func() {
		h.reading = nil
		h.write("azure.json", "third")
	}
	h.look(2)
	h.look(2)
	h.want("third", "<nil>")
}

// TestOtherFile: a change of any file of the set is one.
func TestOtherFile(t *testing.T) {
	h := start(t, func(f folder) { f.write("azure.json", "first") })
	h.write("cloud.json", "x")
	h.look(2)
	h.want("first", "<nil>")
}
