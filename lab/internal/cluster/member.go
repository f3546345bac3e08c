package cluster

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/aad-pod-identity/aad-pod-identity/lab/internal/nodeinit"
	"github.com/aad-pod-identity/aad-pod-identity/lab/internal/state"
)

// systemPath is where programs of the machine are.
const systemPath = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

// member is the first process of a node, or of the simulated Azure.
type member struct {
	process state.Process
	spec    io.WriteCloser
}

// spawn starts the first process of a member in namespaces of its own. It does
// nothing before [member.begin], and ends if this program ends before that: so
// there never is a working process that is not recorded.
func (l *Lab) spawn(name string) (*member, error) {
	if err := os.MkdirAll(l.dir.Path(name, "log"), 0o700); err != nil {
		return nil, fmt.Errorf("making the folder of %s: %w", name, err)
	}
	log, err := os.OpenFile(nodeinit.LogFile(l.dir.Path(name), "init"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return nil, fmt.Errorf("opening the log of %s: %w", name, err)
	}
	defer log.Close() // the child has its own descriptor
	read, write, err := os.Pipe()
	if err != nil {
		return nil, fmt.Errorf("opening a pipe: %w", err)
	}
	defer read.Close()                       // as above
	cmd := exec.Command(l.self, InitCommand) //nolint:gosec,noctx // this program; it outlives the command
	cmd.Env = []string{"PATH=" + l.builder.Programs() + ":" + l.builder.Kubernetes() + ":" + systemPath}
	cmd.Dir, cmd.Stdin, cmd.Stdout, cmd.Stderr = "/", read, log, log
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Setsid:     true, // no signal of the terminal reaches it
		Cloneflags: unix.CLONE_NEWNS | unix.CLONE_NEWPID | unix.CLONE_NEWNET | unix.CLONE_NEWUTS | unix.CLONE_NEWIPC,
	}
	if err := cmd.Start(); err != nil {
		return nil, errors.Join(fmt.Errorf("starting %s: %w", name, err), write.Close())
	}
	go cmd.Wait() //nolint:errcheck // reaps it, should it end before this program
	m := &member{spec: write}
	if m.process, err = state.Identify(cmd.Process.Pid); err == nil {
		err = l.dir.Record(name, m.process)
	}
	if err != nil {
		return nil, errors.Join(err, write.Close()) // which ends it
	}
	return m, nil
}

// begin tells the member what it is.
func (m *member) begin(spec nodeinit.Spec) error {
	err := json.NewEncoder(m.spec).Encode(spec)
	if err := errors.Join(err, m.spec.Close()); err != nil {
		return fmt.Errorf("telling %s what it is: %w", spec.Hostname, err)
	}
	return nil
}

// enter returns the arguments of nsenter that run a command in all namespaces of
// a member.
func enter(p state.Process, command ...string) []string {
	return append([]string{"nsenter", fmt.Sprintf("--target=%d", p.PID), "--mount", "--net", "--pid", "--uts", "--ipc", "--"}, command...)
}

// run runs a command to its end; what it says is in the error if it fails.
func run(ctx context.Context, args []string, stdin io.Reader) error {
	cmd := exec.CommandContext(ctx, args[0], args[1:]...) //nolint:gosec // programs of the lab and of the machine
	cmd.Stdin = stdin
	out, err := cmd.CombinedOutput()
	if err != nil {
		return fmt.Errorf("running %s: %w: %s", strings.Join(args, " "), err, strings.TrimSpace(string(out)))
	}
	return nil
}

// loadRules puts netfilter rules into a member's network namespace.
func loadRules(ctx context.Context, pid int, rules string) error {
	err := run(ctx, []string{"nsenter", fmt.Sprintf("--net=/proc/%d/ns/net", pid), "nft", "-f", "-"}, strings.NewReader(rules))
	if err != nil {
		return fmt.Errorf("loading netfilter rules: %w", err)
	}
	return nil
}
