// Package nodeinit is the first process of a node: it makes the node's mounts
// and settings inside namespaces that it was started in, then keeps the node's
// programs running, as a machine's init would.
//
// It must not know what a cluster is: a [Spec] tells it everything. When it
// ends, the kernel ends every process of the node and takes its mounts and
// links with it.
package nodeinit

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"strings"
)

// Spec is what a node is made of.
type Spec struct {
	// Hostname of the node.
	Hostname string
	// Dir takes the logs and the state of the programs; it exists.
	Dir string
	// Mounts are made in this order, /proc of the node's own before them.
	Mounts []Mount
	// Settings are sysctls of the network namespace, such as net/ipv4/ip_forward.
	Settings map[string]string
	// Covered are sysctls of the whole machine that programs insist on writing:
	// plain files with these values stand over them in the node.
	Covered map[string]string
	// Programs are kept running, all of them.
	Programs []Program
}

// Mount is one mount(2). The target is made if it is missing, so it must lie
// below an earlier mount of the node's own.
type Mount struct {
	Source, Target string
	// Type is a file system, or "bind".
	Type    string
	Options string
}

// Program is one program of a node.
type Program struct {
	// Name of its log and state, as in Dir/log/NAME.log.
	Name string
	Path string
	Args []string
	// Env is added to PATH.
	Env []string
	// After holds what must be there before the program starts.
	After []Condition
}

// Condition is a thing to wait for. Exactly one field is set.
type Condition struct {
	// Socket is the path of a unix socket that accepts connections.
	Socket string `json:",omitempty"`
	// URL answers with 200. Its certificate is not checked: it only says when.
	URL string `json:",omitempty"`
}

// Read reads a spec from a pipe until its other end is closed. A writer that
// dies half-way leaves an error, not half a node.
func Read(r io.Reader) (Spec, error) {
	var s Spec
	decoder := json.NewDecoder(r)
	decoder.DisallowUnknownFields()
	if err := decoder.Decode(&s); err != nil {
		return Spec{}, fmt.Errorf("reading the node's spec: %w", err)
	}
	return s, s.validate()
}

func (s Spec) validate() error {
	var errs []error
	for key := range s.Settings {
		if !strings.HasPrefix(key, "net/") || !plain(key) {
			errs = append(errs, fmt.Errorf("setting %s: only net/… belongs to a node; cover a setting of the machine", key))
		}
	}
	for key := range s.Covered {
		if strings.HasPrefix(key, "net/") || !plain(key) {
			errs = append(errs, fmt.Errorf("covering %s: want a setting of the machine, such as vm/panic_on_oom", key))
		}
	}
	seen := map[string]bool{}
	for _, p := range s.Programs {
		errs = append(errs, p.validate())
		if seen[p.Name] {
			errs = append(errs, fmt.Errorf("program %q: want a name of its own", p.Name))
		}
		seen[p.Name] = true
	}
	return errors.Join(errs...)
}

func (p Program) validate() error {
	if p.Name == "" || strings.ContainsRune(p.Name, '/') {
		return fmt.Errorf("program %q: want a name without a slash", p.Name)
	}
	for _, c := range p.After {
		if (c.Socket == "") == (c.URL == "") {
			return fmt.Errorf("program %s: a condition is either a socket or a URL", p.Name)
		}
	}
	return nil
}

// plain reports whether a key stays below /proc/sys.
func plain(key string) bool { return filepath.IsLocal(key) && filepath.Clean(key) == key }

// LogFile is where a program's output goes, given [Spec.Dir].
func LogFile(dir, program string) string { return filepath.Join(dir, "log", program+".log") }

// StateFile is where a program's [State] stands, given [Spec.Dir].
func StateFile(dir, program string) string { return filepath.Join(dir, "run", program+".json") }

// State is how a program is doing.
type State struct {
	// PID in the node's own process namespace; 0 while it does not run.
	PID int
	// Starts counts how often it was started.
	Starts int
	// Ended says how it last ended; empty before that.
	Ended string `json:",omitempty"`
}
