package nodeinit

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"os"
	"os/signal"
	"path/filepath"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"
)

// pause is how long a program that ended stays away.
const pause = 500 * time.Millisecond

// supervisor keeps programs running and reaps every orphan of its process
// namespace, for there is nobody else to do it.
type supervisor struct {
	dir string
	log *slog.Logger

	mu    sync.Mutex                      // protects ended, and holds off reaping while a program starts
	ended map[int]chan syscall.WaitStatus // by process
}

func newSupervisor(dir string, log *slog.Logger) *supervisor {
	return &supervisor{dir: dir, log: log, ended: map[int]chan syscall.WaitStatus{}}
}

func (s *supervisor) run(ctx context.Context, programs []Program) error {
	children := make(chan os.Signal, 1) // one is enough: each reaping takes all
	signal.Notify(children, unix.SIGCHLD)
	defer signal.Stop(children)
	group, ctx := errgroup.WithContext(ctx)
	group.Go(func() error {
		for {
			select {
			case <-children:
				s.reap()
			case <-ctx.Done():
				return nil
			}
		}
	})
	for _, p := range programs {
		group.Go(func() error { return s.keep(ctx, p) })
	}
	return group.Wait()
}

// keep starts a program whenever it does not run, until ctx is done. A program
// that cannot be started at all ends the node: something is missing.
func (s *supervisor) keep(ctx context.Context, p Program) error {
	log := s.log.With("program", p.Name)
	for state := (State{}); ; {
		for _, c := range p.After {
			if err := c.wait(ctx); err != nil {
				return nil //nolint:nilerr // ctx is done: the node ends
			}
		}
		pid, end, err := s.start(p)
		if err != nil {
			return fmt.Errorf("starting %s: %w", p.Name, err)
		}
		state.PID, state.Starts = pid, state.Starts+1
		log.Info("program started", "pid", pid, "starts", state.Starts)
		s.note(p, state)
		select {
		case status := <-end:
			state.PID, state.Ended = 0, describe(status)
			log.Warn("program ended", "pid", pid, "how", state.Ended)
			s.note(p, state)
		case <-ctx.Done():
			return nil
		}
		if !sleep(ctx, pause) {
			return nil
		}
	}
}

func (s *supervisor) start(p Program) (int, <-chan syscall.WaitStatus, error) {
	out, err := os.OpenFile(LogFile(s.dir, p.Name), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return 0, nil, fmt.Errorf("opening its log: %w", err)
	}
	defer out.Close() // the program has its own descriptor
	null, err := os.Open(os.DevNull)
	if err != nil {
		return 0, nil, err
	}
	defer null.Close() // as above
	s.mu.Lock()
	defer s.mu.Unlock()
	pid, err := syscall.ForkExec(p.Path, append([]string{p.Path}, p.Args...), &syscall.ProcAttr{ //nolint:gosec // the lab names its programs
		Dir: "/", Env: append([]string{"PATH=" + os.Getenv("PATH")}, p.Env...),
		Files: []uintptr{null.Fd(), out.Fd(), out.Fd()},
		Sys:   &syscall.SysProcAttr{Setsid: true},
	})
	if err != nil {
		return 0, nil, fmt.Errorf("executing %s: %w", p.Path, err)
	}
	end := make(chan syscall.WaitStatus, 1)
	s.ended[pid] = end
	return pid, end, nil
}

// reap takes every child that has ended.
func (s *supervisor) reap() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for {
		var status syscall.WaitStatus
		pid, err := syscall.Wait4(-1, &status, syscall.WNOHANG, nil)
		if err == syscall.EINTR {
			continue
		}
		if err != nil || pid <= 0 {
			return
		}
		if end, ours := s.ended[pid]; ours {
			end <- status
			delete(s.ended, pid)
		}
	}
}

// note writes how a program is doing. Its reader is a person who asks for the
// lab's status, so that a full disk must not end the node.
func (s *supervisor) note(p Program, state State) {
	text, err := json.Marshal(state)
	if err == nil {
		file := StateFile(s.dir, p.Name)
		next := filepath.Join(filepath.Dir(file), "."+filepath.Base(file))
		if err = os.WriteFile(next, text, 0o600); err == nil {
			err = os.Rename(next, file)
		}
	}
	if err != nil {
		s.log.Error("a program's state was not written", "program", p.Name, "error", err)
	}
}

func describe(status syscall.WaitStatus) string {
	if status.Signaled() {
		return "killed by " + unix.SignalName(status.Signal())
	}
	return fmt.Sprintf("exit code %d", status.ExitStatus())
}

func sleep(ctx context.Context, d time.Duration) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-ctx.Done():
		return false
	}
}
