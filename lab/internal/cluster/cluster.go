// Package cluster starts, inspects and removes one lab: it carries out on this
// machine what topology plans and render words.
//
//	up    build → claim a number → azure → nodes → images → ready
//	down  kill what was recorded → links → cgroups → folder → look for the rest
//
// It must hold no configuration of a program and no rule of the address plan.
package cluster

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"time"

	"github.com/aad-pod-identity/aad-pod-identity/lab/internal/build"
	"github.com/aad-pod-identity/aad-pod-identity/lab/internal/cgroup"
	"github.com/aad-pod-identity/aad-pod-identity/lab/internal/nodeinit"
	"github.com/aad-pod-identity/aad-pod-identity/lab/internal/render"
	"github.com/aad-pod-identity/aad-pod-identity/lab/internal/state"
	"github.com/aad-pod-identity/aad-pod-identity/lab/internal/topology"
)

// InitCommand is the argument with which this program becomes the first process
// of a node.
const InitCommand = "init-node"

// Options say where a lab is.
type Options struct {
	// Dir is the lab's folder, in which there may or may not be a lab.
	Dir string
	// Builder builds what a lab runs.
	Builder build.Builder
	// Self is the path of this program.
	Self string
	// Progress is told each step.
	Progress func(format string, args ...any)
}

// Lab is a lab that is there or not.
type Lab struct {
	dir      state.Dir
	builder  build.Builder
	version  build.Version // of Kubernetes, once a command knows it
	self     string
	progress func(format string, args ...any)
	cgroups  cgroup.Hierarchies
}

// ErrNotRoot says that the caller may not do what labs are made of.
var ErrNotRoot = errors.New("a lab needs root: it makes namespaces, mounts, links and cgroups: run it as root, as by sudo")

// ErrNone says that there is no lab in the folder.
var ErrNone = errors.New("no lab runs here: start one with `lab up`")

// Open looks at the folder of a lab. It starts nothing and needs root.
func Open(o Options) (*Lab, error) {
	if os.Geteuid() != 0 {
		return nil, ErrNotRoot
	}
	dir, err := state.Open(o.Dir)
	if err != nil {
		return nil, err
	}
	if err := state.CheckVisible(o.Builder.Root, "--source"); err != nil {
		return nil, err
	}
	cgroups, err := cgroup.Find()
	if err != nil {
		return nil, err
	}
	return &Lab{dir: dir, builder: o.Builder, self: o.Self, progress: o.Progress, cgroups: cgroups}, nil
}

// paths are those of this lab. runc is only known on a machine that has it.
func (l *Lab) paths() render.Paths {
	runc, err := exec.LookPath("runc")
	if err != nil {
		runc = "runc" // up has checked before anything uses it
	}
	return render.Paths{Programs: l.builder.Programs(), CNI: l.builder.CNI(), Kubernetes: l.builder.Kubernetes(), Minor: l.version.Minor(), Runc: runc, State: string(l.dir)}
}

// use makes this a lab of a version of Kubernetes; the zero one is the pinned.
func (l *Lab) use(version build.Version) error {
	builder, err := l.builder.WithKubernetes(version)
	if err != nil {
		return err
	}
	l.builder = builder
	l.version, err = builder.KubernetesVersion()
	return err
}

// useSaved is [Lab.use] of the version that a lab was started with. One without
// a record of it was started when there was only the pinned one.
func (l *Lab) useSaved(saved state.Lab) error {
	if saved.Kubernetes == "" {
		return l.use(build.Version{})
	}
	version, err := build.ParseVersion(saved.Kubernetes)
	if err != nil {
		return fmt.Errorf("reading which Kubernetes the lab runs: %w: `lab down` removes it", err)
	}
	return l.use(version)
}

// plan returns the plan of the lab that is there, whose version of Kubernetes is
// used from here on, or [ErrNone].
func (l *Lab) plan() (topology.Lab, error) {
	saved, ok, err := l.dir.Load()
	if err != nil {
		return topology.Lab{}, err
	}
	if !ok {
		return topology.Lab{}, fmt.Errorf("%w (looked in %s)", ErrNone, l.dir)
	}
	if err := l.useSaved(saved); err != nil {
		return topology.Lab{}, err
	}
	return topology.New(saved.Number, saved.Nodes)
}

// members are the names of all processes that a lab consists of.
func members(lab topology.Lab) []string {
	names := []string{render.HubName}
	for _, n := range lab.Nodes {
		names = append(names, n.Name())
	}
	return names
}

// cgroupOf is the cgroup of a member.
func cgroupOf(lab topology.Lab, member string) string {
	for _, n := range lab.Nodes {
		if n.Name() == member {
			return n.Cgroup()
		}
	}
	return lab.HubCgroup()
}

// alive returns the process of a member that runs.
func (l *Lab) alive(member string) (state.Process, error) {
	p, ok, err := l.dir.Recorded(member)
	if err != nil {
		return p, err
	}
	if !ok || !p.Alive() {
		return p, fmt.Errorf("%s does not run: `lab up` starts the lab afresh", member)
	}
	return p, nil
}

// endedError says that a member is gone, so that waiting for it is in vain.
type endedError struct{ member, words string }

func (e *endedError) Error() string { return e.member + " has ended; " + e.words }

// whileAlive makes a check fail for good once a member of the lab has ended.
func (l *Lab) whileAlive(lab topology.Lab, check func(context.Context) error) func(context.Context) error {
	return func(ctx context.Context) error {
		for _, m := range members(lab) {
			if _, err := l.alive(m); err != nil {
				return &endedError{member: m, words: l.lastWords(m, "init")}
			}
		}
		return check(ctx)
	}
}

// lastWords is the end of a program's log, for errors.
func (l *Lab) lastWords(member, program string) string {
	const most = 1000
	text, err := os.ReadFile(nodeinit.LogFile(l.dir.Path(member), program))
	if err != nil {
		return "it wrote no log"
	}
	return "its log ends:\n" + string(text[max(0, len(text)-most):])
}

// allAlive reports whether every member runs.
func (l *Lab) allAlive(lab topology.Lab) bool {
	for _, m := range members(lab) {
		if _, err := l.alive(m); err != nil {
			return false
		}
	}
	return true
}

// await asks check until it returns nil, ctx is done, or the time is up. It is
// for what offers no event to wait for.
func await(ctx context.Context, what string, limit time.Duration, check func(context.Context) error) error {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	ticker := time.NewTicker(100 * time.Millisecond)
	defer ticker.Stop()
	for {
		err := check(ctx)
		if _, hopeless := errors.AsType[*endedError](err); err == nil || hopeless {
			return err
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("waiting for %s: %w", what, err)
		case <-ticker.C:
		}
	}
}
