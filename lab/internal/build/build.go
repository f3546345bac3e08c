// Package build makes the programs of a lab from their Go modules: nothing is
// downloaded but source, through the Go module proxy and its checksums.
//
// Each part is built once and again when its version changes; this project's own
// programs are built every time, which takes a second when nothing changed. It
// must not know what the programs are started with.
package build

import (
	"bufio"
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"

	"golang.org/x/sys/unix"
)

// The versions of what is built by version. Kubernetes, etcd and CoreDNS have
// theirs in lab/kubernetes/go.mod and lab/coredns/go.mod; another version of
// Kubernetes is built on demand, by [Builder.WithKubernetes].
const (
	containerdVersion = "v2.4.2"
	cniVersion        = "v1.9.1"
	helmVersion       = "v3.22.0"
)

// Builder builds into the cache of one source tree.
type Builder struct {
	// Root is the source tree of this project.
	Root string
	// Progress is told what goes on.
	Progress func(format string, args ...any)

	// other is the version of Kubernetes, if not the pinned one.
	other Version
}

// Programs is the folder of everything but Kubernetes and etcd.
func (b Builder) Programs() string { return filepath.Join(b.Root, ".cache", "lab", "bin") }

// CNI is the folder of the CNI plugins, apart since one is called like a program
// of every machine.
func (b Builder) CNI() string { return filepath.Join(b.Root, ".cache", "lab", "cni") }

// Images is the folder of the image archives.
func (b Builder) Images() string { return filepath.Join(b.Root, ".cache", "lab", "images") }

// part is something that is built as a whole.
type part struct {
	name string
	// takes says how long a cold build takes.
	takes string
	// version changes when the part must be built again. Empty: always built.
	version string
	// record is the name of its stamp, if that is not the part's.
	record string
	dir    string   // where files are afterwards
	files  []string // what there is afterwards, in dir
	build  func(ctx context.Context) error
}

// Parts returns the names of all parts, in building order.
func (b Builder) Parts() ([]string, error) {
	parts, err := b.parts()
	var names []string
	for _, p := range parts {
		names = append(names, p.name)
	}
	return names, err
}

func (b Builder) parts() ([]part, error) {
	kubernetes, err := hashOf(filepath.Join(b.Root, "lab", "kubernetes"), filepath.Join(b.Root, "hack", "kubernetes.sh"))
	if err != nil {
		return nil, err
	}
	coredns, err := hashOf(filepath.Join(b.Root, "lab", "coredns"))
	if err != nil {
		return nil, err
	}
	const (
		containerd = "github.com/containerd/containerd/v2"
		cni        = "github.com/containernetworking/plugins/plugins"
	)
	return []part{
		{name: "kubernetes", takes: "6 minutes", version: kubernetes, record: b.kubernetesName(), dir: b.Kubernetes(), files: []string{"kubelet", "kube-apiserver"}, build: b.kubernetes},
		{
			name: "containerd", takes: "a minute", version: containerdVersion, dir: b.Programs(), files: []string{"containerd", "containerd-shim-runc-v2", "ctr"},
			build: b.install(b.Programs(), "-X "+containerd+"/version.Version="+containerdVersion, containerdVersion,
				containerd+"/cmd/containerd", containerd+"/cmd/containerd-shim-runc-v2", containerd+"/cmd/ctr"),
		},
		{
			name: "cni", takes: "seconds", version: cniVersion, dir: b.CNI(), files: []string{"bridge", "ptp", "loopback", "host-local", "portmap"},
			build: b.install(b.CNI(), "", cniVersion, cni+"/main/bridge", cni+"/main/ptp", cni+"/main/loopback", cni+"/ipam/host-local", cni+"/meta/portmap"),
		},
		{name: "coredns", takes: "2 minutes", version: coredns, dir: b.Programs(), files: []string{"coredns"}, build: func(ctx context.Context) error {
			return b.goBuild(ctx, filepath.Join(b.Root, "lab", "coredns"), "coredns", ".")
		}},
		{name: "azuresim", takes: "seconds", build: func(ctx context.Context) error { return b.goBuild(ctx, b.Root, "azuresim", "./cmd/azuresim") }},
		{name: "helm", takes: "a minute", version: helmVersion, dir: b.Programs(), files: []string{"helm"}, build: b.install(b.Programs(), "", helmVersion, "helm.sh/helm/v3/cmd/helm")},
	}, nil
}

// Needed are the parts that a lab runs on: all but helm, which is for its users.
func Needed() []string { return []string{"kubernetes", "containerd", "cni", "coredns", "azuresim"} }

// Build builds the parts of these names, where need be. One build at a time uses
// the cache; another waits for it.
func (b Builder) Build(ctx context.Context, names ...string) error {
	unlock, err := b.lock()
	if err != nil {
		return err
	}
	defer unlock()
	parts, err := b.parts()
	if err != nil {
		return err
	}
	for _, name := range names {
		if err := b.buildOne(ctx, parts, name); err != nil {
			return err
		}
	}
	return nil
}

func (b Builder) buildOne(ctx context.Context, parts []part, name string) error {
	for _, p := range parts {
		if p.name != name {
			continue
		}
		if p.version != "" && b.current(p) {
			return nil
		}
		if p.version != "" {
			b.Progress("building %s from its Go module: %s on 2 cold cores", name, p.takes)
		}
		if err := p.build(ctx); err != nil {
			return fmt.Errorf("building %s: %w", name, err)
		}
		return b.stamp(p)
	}
	return fmt.Errorf("building %s: there is no such part", name)
}

func (b Builder) stampFile(p part) string {
	return filepath.Join(b.Root, ".cache", "lab", "stamps", cmp.Or(p.record, p.name))
}

func (p part) stamp() string { return p.version + " " + runtime.Version() + " " + runtime.GOARCH }

func (b Builder) current(p part) bool {
	text, err := os.ReadFile(b.stampFile(p))
	if err != nil || string(text) != p.stamp() {
		return false
	}
	for _, file := range p.files {
		if !exists(filepath.Join(p.dir, file)) {
			return false
		}
	}
	return true
}

func (b Builder) stamp(p part) error {
	if err := os.MkdirAll(filepath.Dir(b.stampFile(p)), 0o755); err != nil { //nolint:gosec // a build cache
		return fmt.Errorf("noting that %s is built: %w", p.name, err)
	}
	if err := os.WriteFile(b.stampFile(p), []byte(p.stamp()), 0o644); err != nil { //nolint:gosec // a build cache
		return fmt.Errorf("noting that %s is built: %w", p.name, err)
	}
	return nil
}

func (b Builder) kubernetes(ctx context.Context) error {
	cmd := exec.CommandContext(ctx, filepath.Join(b.Root, "hack", "kubernetes.sh"), b.kubernetesArgs()...) //nolint:gosec // of this project
	return b.run(cmd)
}

// install builds the main packages of a module at the versions that the module
// itself was tested with.
func (b Builder) install(dir, flags, version string, packages ...string) func(context.Context) error {
	return func(ctx context.Context) error {
		args := []string{"install", "-v", "-ldflags", strings.TrimSpace("-s -w " + flags)}
		for _, p := range packages {
			args = append(args, p+"@"+version)
		}
		cmd := b.goCommand(ctx, "/", args...)
		cmd.Env = append(cmd.Env, "GOBIN="+dir)
		return b.run(cmd)
	}
}

func (b Builder) goBuild(ctx context.Context, dir, out, pkg string) error {
	return b.run(b.goCommand(ctx, dir, "build", "-v", "-trimpath", "-tags", "grpcnotrace", "-ldflags", "-s -w", "-o", filepath.Join(b.Programs(), out), pkg))
}

// goCommand makes static programs that do not depend on where they were built.
func (b Builder) goCommand(ctx context.Context, dir string, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, "go", args...) //nolint:gosec // the arguments are this package's
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOFLAGS=-buildvcs=false")
	return cmd
}

// run runs a build and tells each hundredth package, and whatever is not the
// name of one if the build fails.
func (b Builder) run(cmd *exec.Cmd) error {
	if err := os.MkdirAll(b.Programs(), 0o755); err != nil { //nolint:gosec // a build cache
		return fmt.Errorf("making the cache: %w", err)
	}
	reader, writer := io.Pipe()
	cmd.Stdout, cmd.Stderr = writer, writer
	said := make(chan string)
	go func() { said <- b.listen(reader) }()
	err := cmd.Run()
	_ = writer.Close() // never fails
	words := <-said
	if err != nil {
		return fmt.Errorf("%w:\n%s", err, words)
	}
	return nil
}

func (b Builder) listen(r io.Reader) string {
	var words []string
	packages := 0
	for lines := bufio.NewScanner(r); lines.Scan(); {
		line := lines.Text()
		if strings.HasPrefix(line, "go: downloading") {
			continue
		}
		if strings.Contains(line, " ") {
			words = append(words, line)
			continue
		}
		if packages++; packages%100 == 0 {
			b.Progress("  %d packages compiled", packages)
		}
	}
	return strings.Join(words[max(0, len(words)-40):], "\n")
}

func (b Builder) lock() (func(), error) {
	dir := filepath.Join(b.Root, ".cache", "lab")
	if err := os.MkdirAll(dir, 0o755); err != nil { //nolint:gosec // a build cache
		return nil, fmt.Errorf("making the cache: %w", err)
	}
	f, err := os.OpenFile(filepath.Join(dir, "lock"), os.O_CREATE|os.O_RDWR, 0o600) //nolint:gosec // a path of the lab or of the kernel
	if err != nil {
		return nil, fmt.Errorf("locking the cache: %w", err)
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX); err != nil {
		return nil, errors.Join(fmt.Errorf("locking the cache: %w", err), f.Close())
	}
	return func() { f.Close() }, nil // closing gives the lock back
}

// hashOf tells one content of files from another; of a folder, that of its
// files.
func hashOf(paths ...string) (string, error) {
	hash := sha256.New()
	for _, path := range paths {
		files := []string{path}
		if info, err := os.Stat(path); err == nil && info.IsDir() {
			if files, err = filepath.Glob(filepath.Join(path, "*")); err != nil {
				return "", fmt.Errorf("listing %s: %w", path, err)
			}
		}
		for _, file := range files {
			text, err := os.ReadFile(file) //nolint:gosec // a path of the lab or of the kernel
			if err != nil {
				return "", fmt.Errorf("reading what decides on a build: %w", err)
			}
			fmt.Fprintf(hash, "%s %d\n%s", filepath.Base(file), len(text), text)
		}
	}
	return hex.EncodeToString(hash.Sum(nil))[:16], nil
}

func exists(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}
