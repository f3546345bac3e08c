// Package cgroup gives a node a directory of its own at the top of every cgroup
// hierarchy of the machine, and takes it away.
//
// It never mounts, remounts or configures a hierarchy, and touches no directory
// but those named to it.
package cgroup

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"
)

// Hierarchies are the mount points of the machine's cgroup hierarchies, version
// 1, 2 or both.
type Hierarchies []string

// Find reads where the hierarchies are mounted.
func Find() (Hierarchies, error) {
	f, err := os.Open("/proc/self/mountinfo")
	if err != nil {
		return nil, fmt.Errorf("finding cgroups: %w", err)
	}
	defer f.Close() // only read
	return parse(f)
}

// parse reads proc_pid_mountinfo(5). A hierarchy mounted twice counts once.
func parse(mountinfo io.Reader) (Hierarchies, error) {
	var found Hierarchies
	seen := map[string]bool{}
	lines := bufio.NewScanner(mountinfo)
	for lines.Scan() {
		mount, fsInfo, ok := strings.Cut(lines.Text(), " - ")
		fields, fsFields := strings.Fields(mount), strings.Fields(fsInfo)
		if !ok || len(fields) < 5 || len(fsFields) < 3 || !strings.HasPrefix(fsFields[0], "cgroup") {
			continue
		}
		if device := fields[2]; fields[3] == "/" && !seen[device] {
			seen[device] = true
			found = append(found, fields[4])
		}
	}
	if err := lines.Err(); err != nil {
		return nil, fmt.Errorf("finding cgroups: %w", err)
	}
	if len(found) == 0 {
		return nil, errors.New("finding cgroups: no hierarchy is mounted: mount cgroup2 at /sys/fs/cgroup")
	}
	slices.Sort(found)
	return found, nil
}

// system is the directory of a node's own programs below the node's: a cgroup of
// version 2 that has children must hold no process itself.
const system = "system"

// Create makes the directory name in every hierarchy. One that is there already
// is taken over.
func (h Hierarchies) Create(name string) error {
	for _, root := range h {
		dir := filepath.Join(root, name)
		if err := os.MkdirAll(dir, 0o755); err != nil { //nolint:gosec // as every cgroup
			return fmt.Errorf("making cgroup: %w", err)
		}
		if err := delegate(root, dir); err != nil {
			return err
		}
		if err := os.MkdirAll(filepath.Join(dir, system), 0o755); err != nil { //nolint:gosec // as every cgroup
			return fmt.Errorf("making cgroup: %w", err)
		}
		if err := inherit(dir, filepath.Join(dir, system)); err != nil {
			return err
		}
	}
	return nil
}

// delegate makes a new directory usable: version 1's cpuset begins empty, and
// version 2 hands controllers down only when asked.
func delegate(root, dir string) error {
	if err := inherit(root, dir); err != nil {
		return err
	}
	available, err := os.ReadFile(filepath.Join(dir, "cgroup.controllers")) //nolint:gosec // a path of the lab or of the kernel
	if errors.Is(err, fs.ErrNotExist) || len(strings.Fields(string(available))) == 0 {
		return nil
	}
	if err != nil {
		return fmt.Errorf("reading controllers: %w", err)
	}
	enable := "+" + strings.Join(strings.Fields(string(available)), " +")
	if err := os.WriteFile(filepath.Join(dir, "cgroup.subtree_control"), []byte(enable), 0); err != nil { //nolint:gosec // a path of the lab or of the kernel
		return fmt.Errorf("handing controllers down to %s: %w", dir, err)
	}
	return nil
}

// inherit copies the CPUs and memory nodes of version 1's cpuset.
func inherit(from, to string) error {
	for _, file := range []string{"cpuset.cpus", "cpuset.mems"} {
		if _, err := os.Stat(filepath.Join(to, "cgroup.controllers")); err == nil {
			return nil // version 2 inherits by itself
		}
		own, err := os.ReadFile(filepath.Join(to, file)) //nolint:gosec // a path of the lab or of the kernel
		if errors.Is(err, fs.ErrNotExist) || strings.TrimSpace(string(own)) != "" {
			continue
		}
		value, err := os.ReadFile(filepath.Join(from, file)) //nolint:gosec // a path of the lab or of the kernel
		if err != nil {
			return fmt.Errorf("reading a cpuset: %w", err)
		}
		if err := os.WriteFile(filepath.Join(to, file), value, 0); err != nil { //nolint:gosec // a path of the lab or of the kernel
			return fmt.Errorf("filling a cpuset: %w", err)
		}
	}
	return nil
}

// Join moves a process into the node's cgroup, in every hierarchy.
func (h Hierarchies) Join(name string, pid int) error {
	for _, root := range h {
		file := filepath.Join(root, name, system, "cgroup.procs")
		if err := os.WriteFile(file, []byte(strconv.Itoa(pid)), 0); err != nil {
			return fmt.Errorf("moving process %d into its cgroup: %w", pid, err)
		}
	}
	return nil
}

// Exists returns the directories of that name that are there.
func (h Hierarchies) Exists(name string) []string {
	var dirs []string
	for _, root := range h {
		if dir := filepath.Join(root, name); isDir(dir) {
			dirs = append(dirs, dir)
		}
	}
	return dirs
}

// Remove takes away the directory name and all below it. The kernel frees a
// cgroup shortly after its last process is gone, so this tries until ctx is
// done.
func (h Hierarchies) Remove(ctx context.Context, name string) error {
	ticker := time.NewTicker(50 * time.Millisecond)
	defer ticker.Stop()
	for {
		var errs []error
		for _, dir := range h.Exists(name) {
			errs = append(errs, removeTree(dir))
		}
		err := errors.Join(errs...)
		if err == nil {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("removing cgroup %s: %w", name, err)
		case <-ticker.C:
		}
	}
}

func removeTree(dir string) error {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return ignoreMissing(err)
	}
	var errs []error
	for _, e := range entries {
		if e.IsDir() {
			errs = append(errs, removeTree(filepath.Join(dir, e.Name())))
		}
	}
	return errors.Join(append(errs, ignoreMissing(os.Remove(dir)))...)
}

// Processes returns the processes, by their numbers on the machine, in cgroups
// below name whose own name match accepts.
func (h Hierarchies) Processes(name string, match func(dir string) bool) ([]int, error) {
	dirs := h.Exists(name)
	if len(dirs) == 0 {
		return nil, fmt.Errorf("finding processes: there is no cgroup %s", name)
	}
	var pids []int
	err := filepath.WalkDir(dirs[0], func(path string, d fs.DirEntry, err error) error {
		if err != nil || !d.IsDir() || !match(d.Name()) {
			return ignoreMissing(err)
		}
		more, err := processesBelow(path)
		if err != nil {
			return err
		}
		pids = append(pids, more...)
		return fs.SkipDir
	})
	return pids, err
}

func processesBelow(dir string) ([]int, error) {
	var pids []int
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.Name() != "cgroup.procs" {
			return ignoreMissing(err)
		}
		text, err := os.ReadFile(path) //nolint:gosec // a path of the lab or of the kernel
		if err != nil {
			return ignoreMissing(err)
		}
		for field := range strings.FieldsSeq(string(text)) {
			pid, err := strconv.Atoi(field)
			if err != nil {
				return fmt.Errorf("reading %s: %w", path, err)
			}
			pids = append(pids, pid)
		}
		return nil
	})
	return pids, err
}

// Memory returns the bytes of memory, page cache included, that the node's
// programs and pods use.
func (h Hierarchies) Memory(name string) (uint64, error) {
	for _, root := range h {
		for _, file := range []string{"memory.usage_in_bytes", "memory.current"} {
			text, err := os.ReadFile(filepath.Join(root, name, file)) //nolint:gosec // a path of the lab or of the kernel
			if err == nil {
				return strconv.ParseUint(strings.TrimSpace(string(text)), 10, 64)
			}
		}
	}
	return 0, fmt.Errorf("reading memory: no cgroup %s counts it", name)
}

func isDir(path string) bool {
	info, err := os.Stat(path)
	return err == nil && info.IsDir()
}

func ignoreMissing(err error) error {
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}
