package world

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/aad-pod-identity/aad-pod-identity/test/netns"
)

// command is a program to run in a namespace.
type command struct {
	name string
	ns   *netns.NS
	path string
	args []string
	env  []string
}

// Process is a running program of the world.
type Process struct {
	Name string
	cmd  *exec.Cmd
	log  string
	done chan struct{} // closed when the program has ended
	err  error         // of Wait; valid once done is closed
}

// inSandbox gives a program a mount namespace of its own in which /etc/hosts
// names the simulator, then becomes it.
const inSandbox = `mount --make-rprivate / && mount --bind "$0" /etc/hosts && exec "$@"`

func (w *World) command(ctx context.Context, c command) *exec.Cmd {
	args := append([]string{"-c", inSandbox, w.path("hosts"), c.path}, c.args...)
	cmd := exec.CommandContext(ctx, "/bin/sh", args...) //nolint:gosec // programs of this project
	cmd.Env = append([]string{"PATH=/usr/sbin:/usr/bin:/sbin:/bin", "SSL_CERT_FILE=" + w.caFile(), "CURL_CA_BUNDLE=" + w.caFile()}, c.env...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Unshareflags: syscall.CLONE_NEWNS, Setpgid: true}
	cmd.WaitDelay = time.Second
	return cmd
}

// start runs a program whose output goes to a log of its name. It outlives ctx
// and ends with the world.
func (w *World) start(ctx context.Context, c command) (*Process, error) {
	if err := w.writeHosts(); err != nil {
		return nil, err
	}
	logFile := filepath.Join(w.Logs(), c.name+".log")
	out, err := os.OpenFile(logFile, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600) //nolint:gosec // in the world's own folder
	if err != nil {
		return nil, fmt.Errorf("opening the log of %s: %w", c.name, err)
	}
	defer out.Close()
	cmd := w.command(context.WithoutCancel(ctx), c)
	cmd.Stdout, cmd.Stderr = out, out
	if err := c.ns.Start(cmd); err != nil {
		return nil, fmt.Errorf("starting %s: %w", c.name, err)
	}
	p := &Process{Name: c.name, cmd: cmd, log: logFile, done: make(chan struct{})}
	go func() {
		p.err = cmd.Wait()
		close(p.done)
	}()
	w.keep(p)
	return p, nil
}

func (w *World) writeHosts() error {
	if err := os.MkdirAll(w.Logs(), 0o700); err != nil {
		return fmt.Errorf("making the log folder: %w", err)
	}
	lines := []string{"127.0.0.1 localhost", azureAddr.String() + " " + strings.Join(azureHosts(), " "), ""}
	if err := os.WriteFile(w.path("hosts"), []byte(strings.Join(lines, "\n")), 0o600); err != nil {
		return fmt.Errorf("writing the hosts file: %w", err)
	}
	return nil
}

// Signal sends a signal to the program and waits for its end.
func (p *Process) Signal(ctx context.Context, signal syscall.Signal) error {
	if err := p.cmd.Process.Signal(signal); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return fmt.Errorf("signalling %s: %w", p.Name, err)
	}
	return p.Wait(ctx)
}

// Wait waits for the program's end, whatever its exit code.
func (p *Process) Wait(ctx context.Context) error {
	select {
	case <-p.done:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("waiting for the end of %s: %w", p.Name, ctx.Err())
	}
}

// PID returns the program's process ID.
func (p *Process) PID() int { return p.cmd.Process.Pid }

// ExitCode returns the exit code of a program that has ended.
func (p *Process) ExitCode() int { return p.cmd.ProcessState.ExitCode() }

// Log returns what the program has written so far.
func (p *Process) Log() string {
	text, err := os.ReadFile(p.log)
	if err != nil {
		return err.Error()
	}
	return string(text)
}

// Close kills the program.
func (p *Process) Close() error {
	if err := p.cmd.Process.Kill(); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return fmt.Errorf("killing %s: %w", p.Name, err)
	}
	<-p.done
	return nil
}

// whileRunning makes check fail for good once the program has ended.
func (p *Process) whileRunning(check func() error) func() error {
	return func() error {
		select {
		case <-p.done:
			return &fatal{fmt.Errorf("%s ended: %w; its log ends:\n%s", p.Name, p.err, tail(p.Log(), 2000))}
		default:
			return check()
		}
	}
}

// fatal is an error that waiting does not mend.
type fatal struct{ err error }

func (f *fatal) Error() string { return f.err.Error() }
func (f *fatal) Unwrap() error { return f.err }

func tail(s string, n int) string { return s[max(0, len(s)-n):] }

// await asks check every 20 ms until it returns nil, for a minute at most. It is
// for processes that offer no event to wait for.
func await(ctx context.Context, what string, check func() error) error {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	ticker := time.NewTicker(20 * time.Millisecond)
	defer ticker.Stop()
	for {
		err := check()
		var end *fatal
		if err == nil || errors.As(err, &end) {
			return err
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("waiting for %s: %w", what, err)
		case <-ticker.C:
		}
	}
}

func expectOK(ctx context.Context, client *http.Client, url string) error {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return err
	}
	response, err := client.Do(request)
	if err != nil {
		return err
	}
	defer response.Body.Close()
	if response.StatusCode != http.StatusOK {
		return fmt.Errorf("%s answered %s", url, response.Status)
	}
	return nil
}
