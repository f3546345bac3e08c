package nodeinit

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func TestRead(t *testing.T) {
	for name, c := range map[string]struct{ text, want string }{
		"a whole spec": {text: `{"Hostname":"n","Dir":"/d","Settings":{"net/ipv4/ip_forward":"1"},"Covered":{"vm/panic_on_oom":"0"},
			"Programs":[{"Name":"a","Path":"/a","After":[{"Socket":"/s"},{"URL":"https://x"}]}]}`},
		"a writer that died at once":      {text: "", want: "reading the node's spec: EOF"},
		"a writer that died half-way":     {text: `{"Hostname":"n","Dir":`, want: "unexpected EOF"},
		"a field of another version":      {text: `{"Hostnames":"n"}`, want: `unknown field "Hostnames"`},
		"a setting of the whole machine":  {text: `{"Settings":{"vm/panic_on_oom":"1"}}`, want: "only net/… belongs to a node"},
		"a setting that climbs out":       {text: `{"Settings":{"net/../vm/panic_on_oom":"1"}}`, want: "only net/… belongs to a node"},
		"covering what is the node's own": {text: `{"Covered":{"net/ipv4/ip_forward":"1"}}`, want: "want a setting of the machine"},
		"covering that climbs out":        {text: `{"Covered":{"../../etc/passwd":"1"}}`, want: "want a setting of the machine"},
		"two programs of one name":        {text: `{"Programs":[{"Name":"a","Path":"/a"},{"Name":"a","Path":"/b"}]}`, want: "want a name of its own"},
		"a program without name":          {text: `{"Programs":[{"Path":"/a"}]}`, want: "want a name without a slash"},
		"a name that climbs out":          {text: `{"Programs":[{"Name":"../a","Path":"/a"}]}`, want: "without a slash"},
		"a condition on nothing":          {text: `{"Programs":[{"Name":"a","Path":"/a","After":[{}]}]}`, want: "either a socket or a URL"},
		"a condition on two things":       {text: `{"Programs":[{"Name":"a","Path":"/a","After":[{"Socket":"/s","URL":"https://x"}]}]}`, want: "either a socket or a URL"},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := Read(strings.NewReader(c.text))
			if c.want == "" && err != nil {
				t.Fatal(err)
			}
			if c.want != "" && (err == nil || !strings.Contains(err.Error(), c.want)) {
				t.Errorf("got %v, want %s", err, c.want)
			}
		})
	}
}

// TestRunOutsideOfANode is what keeps the machine's own mounts from being
// changed by a command typed by hand.
func TestRunOutsideOfANode(t *testing.T) {
	err := Run(t.Context(), strings.NewReader(`{"Hostname":"oops"}`), slog.New(slog.DiscardHandler))
	if err == nil || !strings.Contains(err.Error(), "process 1") {
		t.Errorf("got %v", err)
	}
}

// world is a supervisor's folder, with a fifo on which programs report.
type world struct {
	dir, fifo string
	reports   *bufio.Reader
}

// newWorld makes this process the one that orphans come to, as they would come
// to the first one of a node.
func newWorld(t *testing.T) *world {
	t.Helper()
	if err := unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0); err != nil {
		t.Fatal(err)
	}
	w := &world{dir: t.TempDir()}
	t.Cleanup(func() { endNode(t) }) // before the folder goes that programs write to
	w.fifo = filepath.Join(w.dir, "fifo")
	for _, dir := range []string{"log", "run"} {
		if err := os.Mkdir(filepath.Join(w.dir, dir), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	if err := unix.Mkfifo(w.fifo, 0o600); err != nil {
		t.Fatal(err)
	}
	f, err := os.OpenFile(w.fifo, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() }) // a fifo
	w.reports = bufio.NewReader(f)
	return w
}

// start runs a supervisor for as long as the test.
func (w *world) start(t *testing.T, programs ...Program) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- newSupervisor(w.dir, slog.New(slog.DiscardHandler)).run(ctx, programs) }()
	t.Cleanup(func() {
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
}

// endNode does what the kernel does when the first process of a node has ended:
// it ends everything that the programs left.
func endNode(t *testing.T) {
	t.Helper()
	for pids := children(t); len(pids) > 0; pids = children(t) {
		for _, pid := range pids {
			if err := unix.Kill(pid, unix.SIGKILL); err != nil {
				t.Fatal(err)
			}
			if _, err := unix.Wait4(pid, nil, 0, nil); err != nil {
				t.Fatal(err)
			}
		}
	}
}

// children returns the processes whose parent is this one, ended or not.
func children(t *testing.T) []int {
	t.Helper()
	files, err := filepath.Glob("/proc/[0-9]*/stat")
	if err != nil {
		t.Fatal(err)
	}
	var pids []int
	for _, file := range files {
		text, err := os.ReadFile(file)
		if err != nil {
			continue // it has ended, and so is no child of this process
		}
		behind := string(text[strings.LastIndexByte(string(text), ')')+1:]) // a name may hold spaces
		var state string
		var parent int
		if _, err := fmt.Sscan(behind, &state, &parent); err != nil {
			t.Fatal(err)
		}
		pid, err := strconv.Atoi(filepath.Base(filepath.Dir(file)))
		if err != nil {
			t.Fatal(err)
		}
		if parent == os.Getpid() {
			pids = append(pids, pid)
		}
	}
	return pids
}

func (w *world) next(t *testing.T) string {
	t.Helper()
	line, err := w.reports.ReadString('\n')
	if err != nil {
		t.Fatal(err)
	}
	return strings.TrimSpace(line)
}

func (w *world) script(name, text string) Program {
	return Program{Name: name, Path: "/bin/sh", Args: []string{"-c", strings.ReplaceAll(text, "FIFO", w.fifo)}, Env: []string{"GREETING=hello"}}
}

func TestSupervisorStartsAgainWhatEnds(t *testing.T) {
	w := newWorld(t)
	w.start(t, w.script("short", `echo "$GREETING"; echo up >FIFO; exit 3`))
	for range 2 {
		if got := w.next(t); got != "up" {
			t.Fatalf("got %q", got)
		}
	}
	text, err := os.ReadFile(StateFile(w.dir, "short"))
	if err != nil {
		t.Fatal(err)
	}
	var state State
	if err := json.Unmarshal(text, &state); err != nil {
		t.Fatal(err)
	}
	if state.Ended != "exit code 3" || state.Starts < 1 {
		t.Errorf("state %+v: want how it last ended", state)
	}
	log, err := os.ReadFile(LogFile(w.dir, "short"))
	if err != nil || !strings.HasPrefix(string(log), "hello\nhello\n") {
		t.Errorf("log %q %v: want the output of both runs", log, err)
	}
}

func TestSupervisorSaysBySignal(t *testing.T) {
	w := newWorld(t)
	w.start(t, w.script("victim", `echo $$ >FIFO; [ -e FIFO.again ] || { touch FIFO.again; exec sleep 60; }`))
	pid, err := strconv.Atoi(w.next(t))
	if err != nil {
		t.Fatal(err)
	}
	if err := unix.Kill(pid, unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	if again := w.next(t); again == strconv.Itoa(pid) {
		t.Error("not started again")
	}
}

// TestSupervisorReapsOrphans has a program leave a child behind.
func TestSupervisorReapsOrphans(t *testing.T) {
	w := newWorld(t)
	gate := filepath.Join(w.dir, "gate")
	if err := unix.Mkfifo(gate, 0o600); err != nil {
		t.Fatal(err)
	}
	w.start(t, w.script("parent", `(read x <`+gate+`) & echo $! >FIFO; exit 0`))
	orphan := w.next(t)
	w.next(t) // the parent has ended and was started again
	if err := os.WriteFile(gate, []byte("go\ngo\ngo\n"), 0); err != nil {
		t.Fatal(err)
	}
	for deadline := time.Now().Add(10 * time.Second); ; {
		if _, err := os.Stat("/proc/" + orphan); os.IsNotExist(err) {
			return
		}
		if time.Now().After(deadline) {
			t.Fatal("the orphan was not reaped")
		}
		sleep(t.Context(), time.Millisecond)
	}
}

func TestSupervisorGivesUpOnWhatIsMissing(t *testing.T) {
	w := newWorld(t)
	err := newSupervisor(w.dir, slog.New(slog.DiscardHandler)).run(t.Context(), []Program{
		{Name: "there", Path: "/bin/sleep", Args: []string{"1"}}, {Name: "missing", Path: "/no/such/program"},
	})
	if err == nil || !strings.Contains(err.Error(), "starting missing: executing /no/such/program") {
		t.Errorf("got %v", err)
	}
}

func TestConditionWaitsForURL(t *testing.T) {
	var asked atomic.Int32
	server := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		if asked.Add(1) < 3 {
			w.WriteHeader(http.StatusInternalServerError)
		}
	}))
	t.Cleanup(server.Close)
	if err := (Condition{URL: server.URL + "/readyz"}).wait(t.Context()); err != nil {
		t.Fatal(err)
	}
	if got := asked.Load(); got != 3 {
		t.Errorf("asked %d times, want until it says 200", got)
	}
}

func TestConditionWaitsForSocket(t *testing.T) {
	c := Condition{Socket: filepath.Join(t.TempDir(), "s")}
	if err := c.check(t.Context()); err == nil {
		t.Error("a socket that is not there accepts")
	}
	l, err := new(net.ListenConfig).Listen(t.Context(), "unix", c.Socket)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() }) // a test's
	if err := c.wait(t.Context()); err != nil {
		t.Error(err)
	}
}

func TestConditionEndsWithItsContext(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := (Condition{Socket: "/no/such/socket"}).wait(ctx); err == nil || !strings.Contains(err.Error(), "waiting for /no/such/socket") {
		t.Errorf("got %v", err)
	}
}
