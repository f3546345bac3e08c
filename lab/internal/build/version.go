package build

import (
	"bufio"
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
)

// OldestMinor is the first minor version of Kubernetes that this project
// supports, and that a lab can therefore run.
const OldestMinor = 30

// Version is a released version of Kubernetes, such as v1.36.3. The zero Version
// is none.
type Version struct{ minor, patch int }

// ParseVersion reads a version as Kubernetes writes its own. It refuses those
// that a lab cannot run: before 1.30, and what was never a release. Whether
// there is such a release only the build knows.
func ParseVersion(s string) (Version, error) {
	parts := regexp.MustCompile(`^v1\.(0|[1-9][0-9]{0,3})\.(0|[1-9][0-9]{0,3})$`).FindStringSubmatch(s)
	if parts == nil {
		return Version{}, fmt.Errorf("%q is no version of Kubernetes: want vX.Y.Z, such as v1.%d.0", s, OldestMinor)
	}
	minor, _ := strconv.Atoi(parts[1]) // digits, by the expression
	patch, _ := strconv.Atoi(parts[2]) // as above
	if minor < OldestMinor {
		return Version{}, fmt.Errorf("Kubernetes %s is too old: want v1.%d.0 or newer", s, OldestMinor)
	}
	return Version{minor: minor, patch: patch}, nil
}

// Minor is the second number, which decides on what the programs understand.
func (v Version) Minor() int { return v.minor }

func (v Version) String() string { return fmt.Sprintf("v1.%d.%d", v.minor, v.patch) }

// PinnedKubernetes is the version that lab/kubernetes/go.mod requires.
func (b Builder) PinnedKubernetes() (Version, error) {
	file := filepath.Join(b.Root, "lab", "kubernetes", "go.mod")
	text, err := os.ReadFile(file) //nolint:gosec // of this project
	if err != nil {
		return Version{}, fmt.Errorf("reading which Kubernetes is pinned: %w", err)
	}
	for lines := bufio.NewScanner(bytes.NewReader(text)); lines.Scan(); {
		fields := strings.Fields(strings.TrimPrefix(lines.Text(), "require"))
		if len(fields) < 2 || fields[0] != "k8s.io/kubernetes" {
			continue
		}
		version, err := ParseVersion(fields[1])
		if err != nil {
			return Version{}, fmt.Errorf("reading which Kubernetes %s pins: %w", file, err)
		}
		return version, nil
	}
	return Version{}, fmt.Errorf("reading which Kubernetes is pinned: %s requires no k8s.io/kubernetes", file)
}

// WithKubernetes returns a builder of a lab with that version of Kubernetes.
func (b Builder) WithKubernetes(v Version) (Builder, error) {
	pinned, err := b.PinnedKubernetes()
	if err != nil {
		return b, err
	}
	if b.other = v; v == pinned {
		b.other = Version{}
	}
	return b, nil
}

// KubernetesVersion is the version that is built.
func (b Builder) KubernetesVersion() (Version, error) {
	if b.other != (Version{}) {
		return b.other, nil
	}
	return b.PinnedKubernetes()
}

// Kubernetes is the folder of the Kubernetes programs and etcd. The pinned
// version is in one without a version, where this project's tests look for it.
func (b Builder) Kubernetes() string { return filepath.Join(b.Root, ".cache", b.kubernetesName()) }

// kubernetesName sets the versions apart, in names of folders and stamps.
func (b Builder) kubernetesName() string {
	if b.other == (Version{}) {
		return "kubernetes"
	}
	return "kubernetes-" + b.other.String()
}

// kubernetesArgs are those of hack/kubernetes.sh.
func (b Builder) kubernetesArgs() []string {
	if b.other == (Version{}) {
		return []string{"all"}
	}
	return []string{"all", b.other.String()}
}
