package cluster

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/aad-pod-identity/aad-pod-identity/lab/internal/network"
	"github.com/aad-pod-identity/aad-pod-identity/lab/internal/topology"
)

// Down removes the lab and looks whether anything of it is left. Without a lab
// there is nothing to do.
func (l *Lab) Down(ctx context.Context) error {
	if _, err := os.Stat(string(l.dir)); errors.Is(err, os.ErrNotExist) {
		l.progress("no lab runs here")
		return nil
	}
	unlock, err := l.lock(ctx)
	if err != nil {
		return err
	}
	defer unlock()
	if err := l.teardown(ctx); err != nil {
		return err
	}
	if err := l.dir.Remove(); err != nil {
		return fmt.Errorf("removing the lab's folder: %w", err)
	}
	l.progress("the lab is gone, and so is everything that it made")
	return nil
}

// teardown takes away everything but the folder itself. The records go last, so
// that a second try knows what to look for.
func (l *Lab) teardown(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	if err := l.killAll(ctx); err != nil {
		return err
	}
	saved, ok, err := l.dir.Load()
	if err != nil {
		return err
	}
	if ok {
		lab, err := topology.New(saved.Number, saved.Nodes)
		if err != nil {
			return err
		}
		if err := l.removeKernelObjects(ctx, lab); err != nil {
			return err
		}
	}
	return l.clearFolder()
}

// killAll kills the recorded processes. Each takes all processes of its
// namespaces with it, and the namespaces their mounts and links.
func (l *Lab) killAll(ctx context.Context) error {
	names, err := l.dir.Names()
	if err != nil {
		return err
	}
	group, ctx := errgroup.WithContext(ctx)
	for _, name := range names {
		p, ok, err := l.dir.Recorded(name)
		if err != nil {
			return err
		}
		if ok && p.Alive() {
			l.progress("stopping %s", name)
			group.Go(func() error { return p.Kill(ctx) })
		}
	}
	return group.Wait()
}

func (l *Lab) removeKernelObjects(ctx context.Context, lab topology.Lab) error {
	errs := []error{network.Disconnect(lab.Number)}
	for _, m := range members(lab) {
		errs = append(errs, l.cgroups.Remove(ctx, cgroupOf(lab, m)))
	}
	if err := errors.Join(errs...); err != nil {
		return err
	}
	left, err := l.left(lab)
	if err != nil {
		return err
	}
	if len(left) > 0 {
		return fmt.Errorf("the lab left behind: %s", strings.Join(left, ", "))
	}
	return nil
}

// left looks for anything that a lab may have made on this machine.
func (l *Lab) left(lab topology.Lab) ([]string, error) {
	left, err := network.Left(lab.Number)
	if err != nil {
		return nil, err
	}
	for _, m := range members(lab) {
		for _, dir := range l.cgroups.Exists(cgroupOf(lab, m)) {
			left = append(left, "cgroup "+dir)
		}
		if p, ok, err := l.dir.Recorded(m); err != nil || (ok && p.Alive()) {
			left = append(left, fmt.Sprintf("process %d (%s)", p.PID, m))
		}
	}
	mounts, err := mountsBelow(string(l.dir))
	return append(left, mounts...), err
}

// mountsBelow lists mounts of this mount namespace that a folder takes part in.
func mountsBelow(dir string) ([]string, error) {
	f, err := os.Open("/proc/self/mountinfo")
	if err != nil {
		return nil, fmt.Errorf("looking for mounts: %w", err)
	}
	defer f.Close() // only read
	var found []string
	lines := bufio.NewScanner(f)
	for lines.Scan() {
		if strings.Contains(lines.Text(), dir+"/") {
			found = append(found, "mount "+strings.Fields(lines.Text())[4])
		}
	}
	return found, lines.Err()
}

func (l *Lab) clearFolder() error {
	entries, err := os.ReadDir(string(l.dir))
	if err != nil {
		return fmt.Errorf("clearing the lab's folder: %w", err)
	}
	var errs []error
	for _, e := range entries {
		errs = append(errs, os.RemoveAll(l.dir.Path(e.Name())))
	}
	return errors.Join(errs...)
}
