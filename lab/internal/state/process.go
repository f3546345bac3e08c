package state

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// Process is one process of the machine, beyond doubt.
type Process struct {
	PID int
	// Start is the start time in clock ticks since boot.
	Start uint64
	// Boot is the machine's boot.
	Boot string
}

// Identify returns what tells the running process with a number from any other.
func Identify(pid int) (Process, error) {
	boot, err := bootID()
	if err != nil {
		return Process{}, err
	}
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return Process{}, fmt.Errorf("identifying process %d: %w", pid, err)
	}
	state, start, err := parseStat(string(text))
	if err != nil {
		return Process{}, fmt.Errorf("identifying process %d: %w", pid, err)
	}
	if state == "Z" || state == "X" {
		return Process{}, fmt.Errorf("identifying process %d: %w: it has ended", pid, fs.ErrNotExist)
	}
	return Process{PID: pid, Start: start, Boot: boot}, nil
}

// parseStat reads state and start time from proc_pid_stat(5). The name, in
// parentheses, may hold anything.
func parseStat(stat string) (state string, start uint64, err error) {
	i := strings.LastIndexByte(stat, ')')
	fields := strings.Fields(stat[i+1:])
	if i < 0 || len(fields) < 20 {
		return "", 0, fmt.Errorf("%q is no process status", stat)
	}
	start, err = strconv.ParseUint(fields[19], 10, 64)
	return fields[0], start, err
}

func bootID() (string, error) {
	text, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return "", fmt.Errorf("reading the machine's boot: %w", err)
	}
	return strings.TrimSpace(string(text)), nil
}

// Alive reports whether that very process still runs.
func (p Process) Alive() bool {
	now, err := Identify(p.PID)
	return err == nil && now == p
}

// Kill ends that very process and waits until it is gone. One that is gone
// already is no error.
func (p Process) Kill(ctx context.Context) error {
	fd, err := unix.PidfdOpen(p.PID, 0)
	if errors.Is(err, unix.ESRCH) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("killing process %d: %w", p.PID, err)
	}
	defer unix.Close(fd) // nothing was written
	if !p.Alive() {      // asked behind the open: from here on, fd is the process
		return nil
	}
	if err := unix.PidfdSendSignal(fd, unix.SIGKILL, nil, 0); err != nil && !errors.Is(err, unix.ESRCH) {
		return fmt.Errorf("killing process %d: %w", p.PID, err)
	}
	return awaitEnd(ctx, fd, p.PID)
}

func awaitEnd(ctx context.Context, fd, pid int) error {
	for {
		n, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, int((100 * time.Millisecond).Milliseconds())) //nolint:gosec // a descriptor
		if err != nil && !errors.Is(err, unix.EINTR) {
			return fmt.Errorf("waiting for the end of process %d: %w", pid, err)
		}
		if n > 0 {
			return nil
		}
		if ctx.Err() != nil {
			return fmt.Errorf("waiting for the end of process %d: %w", pid, ctx.Err())
		}
	}
}

// Record writes down a process under a name. Only recorded processes are ever
// killed.
func (d Dir) Record(name string, p Process) error {
	return d.write(filepath.Join("process", name+".json"), p)
}

// Recorded returns the process of a name, whether or not it still runs; false if
// none was recorded.
func (d Dir) Recorded(name string) (Process, bool, error) {
	var p Process
	ok, err := d.read(filepath.Join("process", name+".json"), &p)
	return p, ok, err
}

// Forget takes the record of a process away.
func (d Dir) Forget(name string) error {
	if err := os.Remove(d.Path("process", name+".json")); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("forgetting process %s: %w", name, err)
	}
	return nil
}

// Names returns the names of all recorded processes, sorted.
func (d Dir) Names() ([]string, error) {
	entries, err := os.ReadDir(d.Path("process"))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("listing the lab's processes: %w", err)
	}
	var names []string
	for _, e := range entries {
		if name, ok := strings.CutSuffix(e.Name(), ".json"); ok {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	return names, nil
}
