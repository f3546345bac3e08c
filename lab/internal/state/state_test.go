package state

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

func TestOpenRefusesWhatNodesCover(t *testing.T) {
	for path, refused := range map[string]bool{
		"/var/lib/lab":        true,
		"/etc":                true,
		"/run/user/0/lab":     true,
		"/srv/lab/../../proc": true,
		"/var/library":        false,
		"/srv/lab":            false,
	} {
		t.Run(path, func(t *testing.T) {
			_, err := Open(path)
			if (err != nil) != refused {
				t.Errorf("got %v", err)
			}
			if err != nil && !strings.Contains(err.Error(), "--dir") {
				t.Errorf("%v does not say what to do", err)
			}
		})
	}
}

func TestParseStat(t *testing.T) {
	tail := " S 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 777 20 21"
	for name, c := range map[string]struct {
		text  string
		start uint64
		bad   bool
	}{
		"plain":                              {text: "42 (sh)" + tail, start: 777},
		"a name with spaces and parentheses": {text: "42 (a) S 9 (b))" + tail, start: 777},
		"cut off":                            {text: "42 (sh) S 1 2", bad: true},
		"empty":                              {bad: true},
	} {
		t.Run(name, func(t *testing.T) {
			state, start, err := parseStat(c.text)
			if (err != nil) != c.bad {
				t.Fatalf("got error %v", err)
			}
			if err == nil && (start != c.start || state != "S") {
				t.Errorf("got %s %d, want S %d", state, start, c.start)
			}
		})
	}
}

func sleeper(t *testing.T) (*exec.Cmd, Process) {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), "sleep", "60")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = cmd.Wait() }) // killed by the test or by its context
	p, err := Identify(cmd.Process.Pid)
	if err != nil {
		t.Fatal(err)
	}
	return cmd, p
}

func TestKillEndsTheProcessItself(t *testing.T) {
	_, p := sleeper(t)
	if !p.Alive() {
		t.Fatal("not alive")
	}
	if err := p.Kill(t.Context()); err != nil {
		t.Fatal(err)
	}
	if p.Alive() {
		t.Error("alive after Kill")
	}
	if err := p.Kill(t.Context()); err != nil {
		t.Errorf("killed twice: %v", err)
	}
}

func TestKillSparesAnotherProcessOfTheNumber(t *testing.T) {
	_, p := sleeper(t)
	for name, other := range map[string]Process{
		"started at another time": {PID: p.PID, Start: p.Start - 1, Boot: p.Boot},
		"of another boot":         {PID: p.PID, Start: p.Start, Boot: "other"},
	} {
		t.Run(name, func(t *testing.T) {
			if err := other.Kill(t.Context()); err != nil {
				t.Fatal(err)
			}
			if !p.Alive() {
				t.Error("killed a process that was not recorded")
			}
		})
	}
}

func TestRecordAndLabSurvive(t *testing.T) {
	dir, err := Open(filepath.Join(t.TempDir(), "lab"))
	if err != nil {
		t.Fatal(err)
	}
	if _, ok, err := dir.Load(); ok || err != nil {
		t.Fatalf("an empty folder holds a lab: %v %v", ok, err)
	}
	want := Process{PID: 3, Start: 4, Boot: "b"}
	for _, step := range []error{dir.Record("node1", want), dir.Record("azure", want), dir.Save(Lab{Number: 5, Nodes: 2, Kubernetes: "v1.35.4"})} {
		if step != nil {
			t.Fatal(step)
		}
	}
	got, ok, err := dir.Recorded("node1")
	if err != nil || !ok || got != want {
		t.Errorf("got %v %v %v", got, ok, err)
	}
	names, err := dir.Names()
	if diff := cmp.Diff([]string{"azure", "node1"}, names); diff != "" || err != nil {
		t.Errorf("names %v (-want +got):\n%s", err, diff)
	}
	lab, ok, err := dir.Load()
	if err != nil || !ok || lab != (Lab{Number: 5, Nodes: 2, Kubernetes: "v1.35.4"}) {
		t.Errorf("got %v %v %v", lab, ok, err)
	}
}

func TestForget(t *testing.T) {
	dir := Dir(filepath.Join(t.TempDir(), "lab"))
	for _, step := range []error{dir.Record("a", Process{}), dir.Forget("a"), dir.Forget("a")} {
		if step != nil {
			t.Fatal(step)
		}
	}
	if names, err := dir.Names(); err != nil || len(names) > 0 {
		t.Errorf("remembered %v %v", names, err)
	}
}

func TestLockIsForOne(t *testing.T) {
	dir := Dir(filepath.Join(t.TempDir(), "lab"))
	unlock, err := dir.Lock(t.Context(), func() { t.Error("waited for nobody") })
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	if _, err := dir.Lock(ctx, cancel); !errors.Is(err, context.Canceled) {
		t.Errorf("the second got %v", err)
	}
	waits, got := make(chan struct{}), make(chan error)
	go func() {
		second, err := dir.Lock(t.Context(), func() { close(waits) })
		if err == nil {
			second()
		}
		got <- err
	}()
	<-waits
	unlock()
	select {
	case err := <-got:
		if err != nil {
			t.Error(err)
		}
	case <-time.After(10 * time.Second):
		t.Error("the lock was not handed over")
	}
}

func TestRemoveLeavesNothing(t *testing.T) {
	parent := t.TempDir()
	dir := Dir(filepath.Join(parent, "lab"))
	unlock, err := dir.Lock(t.Context(), func() {})
	if err != nil {
		t.Fatal(err)
	}
	defer unlock()
	if err := errors.Join(dir.Save(Lab{}), dir.Remove()); err != nil {
		t.Fatal(err)
	}
	if left, err := os.ReadDir(parent); err != nil || len(left) > 0 {
		t.Errorf("left %v %v", left, err)
	}
}
