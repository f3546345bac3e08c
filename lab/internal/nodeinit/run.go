package nodeinit

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// Run reads a spec, makes the node and keeps its programs running until ctx is
// done. It must be process 1 of namespaces made for this node, since what it
// mounts and sets would otherwise be the machine's.
func Run(ctx context.Context, in io.Reader, log *slog.Logger) error {
	if os.Getpid() != 1 {
		return errors.New("refusing to run as anything but process 1 of a node: only `lab up` starts this")
	}
	spec, err := Read(in)
	if err != nil {
		return err
	}
	if err := prepare(spec); err != nil {
		return fmt.Errorf("preparing %s: %w", spec.Hostname, err)
	}
	return newSupervisor(spec.Dir, log).run(ctx, spec.Programs)
}

func prepare(s Spec) error {
	if err := unix.Sethostname([]byte(s.Hostname)); err != nil {
		return fmt.Errorf("setting the host name: %w", err)
	}
	for _, dir := range []string{"log", "run", "covered"} {
		if err := os.MkdirAll(filepath.Join(s.Dir, dir), 0o700); err != nil {
			return fmt.Errorf("making a folder: %w", err)
		}
	}
	if err := mountAll(s.Mounts); err != nil {
		return err
	}
	for key, value := range s.Settings {
		if err := os.WriteFile(filepath.Join("/proc/sys", key), []byte(value), 0); err != nil {
			return fmt.Errorf("setting %s: %w", key, err)
		}
	}
	return cover(s)
}

// mountAll cuts this mount namespace off from the machine's, so that nothing
// travels back, and lets mounts travel between the node and its pods.
func mountAll(mounts []Mount) error {
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("cutting off the machine's mounts: %w", err)
	}
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_SHARED, ""); err != nil {
		return fmt.Errorf("sharing mounts between node and pods: %w", err)
	}
	if err := unix.Mount("proc", "/proc", "proc", 0, ""); err != nil {
		return fmt.Errorf("mounting /proc: %w", err)
	}
	for _, m := range mounts {
		if err := m.mount(); err != nil {
			return fmt.Errorf("mounting %s: %w", m.Target, err)
		}
	}
	return nil
}

func (m Mount) mount() error {
	if err := os.MkdirAll(m.Target, 0o755); err != nil { //nolint:gosec // as on any machine
		return err
	}
	if m.Type == "bind" {
		return unix.Mount(m.Source, m.Target, "", unix.MS_BIND, "")
	}
	return unix.Mount(m.Source, m.Target, m.Type, 0, m.Options)
}

// cover puts plain files over the machine's settings.
func cover(s Spec) error {
	for key, value := range s.Covered {
		file := filepath.Join(s.Dir, "covered", strings.ReplaceAll(key, "/", "_"))
		if err := os.WriteFile(file, []byte(value+"\n"), 0o600); err != nil {
			return fmt.Errorf("writing what covers %s: %w", key, err)
		}
		target := filepath.Join("/proc/sys", key)
		if _, err := os.Stat(target); errors.Is(err, os.ErrNotExist) {
			continue // a kernel without it
		}
		if err := unix.Mount(file, target, "", unix.MS_BIND, ""); err != nil {
			return fmt.Errorf("covering %s: %w", key, err)
		}
	}
	return nil
}
