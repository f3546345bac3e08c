// Package state is what a lab keeps on disk: its folder, the lock on it, which
// lab it is, and which processes it started.
//
// A process counts as the lab's own only by its number together with its start
// time and the machine's boot, so that a reused number is never taken for it.
// The package must not know what the processes are.
package state

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// Dir is the folder of one lab.
type Dir string

// Path returns a path in the folder.
func (d Dir) Path(elements ...string) string {
	return filepath.Join(append([]string{string(d)}, elements...)...)
}

// Open makes the folder ready for use. Nodes cover some folders of the machine
// with their own, so that the lab's must not lie there.
func Open(path string) (Dir, error) {
	abs, err := filepath.Abs(path)
	if err != nil {
		return "", fmt.Errorf("opening the lab's folder: %w", err)
	}
	return Dir(abs), CheckVisible(abs, "--dir")
}

// CheckVisible reports an error if nodes, which have some folders for themselves,
// cannot see a path of the machine. The flag is what to choose another with.
func CheckVisible(path, flag string) error {
	for _, covered := range []string{"/etc", "/proc", "/run", "/sys", "/var/lib", "/var/log"} {
		if path == covered || strings.HasPrefix(path, covered+"/") {
			return fmt.Errorf("%s cannot be used: nodes have a %s of their own: choose another place with %s", path, covered, flag)
		}
	}
	return nil
}

// Lock holds the folder for one command at a time, and makes it if need be. It
// waits for whoever holds it until ctx is done; waiting is told once. The kernel
// lets go of it when the holder dies.
func (d Dir) Lock(ctx context.Context, waiting func()) (unlock func(), err error) {
	if err := os.MkdirAll(string(d), 0o755); err != nil { //nolint:gosec // pods of any user mount nothing from it, programs run from it
		return nil, fmt.Errorf("making the lab's folder: %w", err)
	}
	f, err := os.OpenFile(d.lockFile(), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, fmt.Errorf("opening the lab's lock: %w", err)
	}
	ticker := time.NewTicker(100 * time.Millisecond)
	defer ticker.Stop()
	for told := false; ; {
		err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		if err == nil {
			return func() { f.Close() }, nil // closing gives the lock back
		}
		if !errors.Is(err, unix.EWOULDBLOCK) {
			return nil, errors.Join(fmt.Errorf("locking the lab: %w", err), f.Close())
		}
		if !told {
			told = true
			waiting()
		}
		select {
		case <-ctx.Done():
			return nil, errors.Join(fmt.Errorf("waiting for another command on this lab: %w", ctx.Err()), f.Close())
		case <-ticker.C:
		}
	}
}

// lockFile stands beside the folder, so that removing the folder does not take
// the lock from under a waiting command.
func (d Dir) lockFile() string { return string(d) + ".lock" }

// Remove deletes the folder and its lock file.
func (d Dir) Remove() error {
	return errors.Join(os.RemoveAll(string(d)), os.Remove(d.lockFile()))
}

// Lab says which lab the folder holds.
type Lab struct {
	Number int
	Nodes  int
	// Kubernetes is the version that it runs, such as v1.36.3.
	Kubernetes string
	// Complete is set once everything has been started; a lab without it was
	// left half-made.
	Complete bool
}

// Load reads which lab is there; false if none is.
func (d Dir) Load() (Lab, bool, error) {
	var lab Lab
	ok, err := d.read("lab.json", &lab)
	return lab, ok, err
}

// Save writes which lab is there.
func (d Dir) Save(lab Lab) error { return d.write("lab.json", lab) }

func (d Dir) read(name string, v any) (bool, error) {
	text, err := os.ReadFile(d.Path(name))
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("reading the lab's state: %w", err)
	}
	if err := json.Unmarshal(text, v); err != nil {
		return false, fmt.Errorf("reading the lab's state %s: %w", d.Path(name), err)
	}
	return true, nil
}

// write replaces a file as a whole, so that a crash leaves the old or the new.
func (d Dir) write(name string, v any) error {
	text, err := json.Marshal(v)
	if err != nil {
		return fmt.Errorf("writing the lab's state: %w", err)
	}
	next := d.Path(name + ".next")
	if err := os.MkdirAll(filepath.Dir(next), 0o755); err != nil { //nolint:gosec // as the folder itself
		return fmt.Errorf("writing the lab's state: %w", err)
	}
	if err := os.WriteFile(next, text, 0o600); err != nil {
		return fmt.Errorf("writing the lab's state: %w", err)
	}
	if err := os.Rename(next, d.Path(name)); err != nil {
		return fmt.Errorf("writing the lab's state: %w", err)
	}
	return nil
}

// Loaded returns which image, by node and reference, has which digest.
func (d Dir) Loaded() (map[string]string, error) {
	loaded := map[string]string{}
	_, err := d.read("images.json", &loaded)
	return loaded, err
}

// SaveLoaded writes what [Dir.Loaded] reads.
func (d Dir) SaveLoaded(loaded map[string]string) error { return d.write("images.json", loaded) }
