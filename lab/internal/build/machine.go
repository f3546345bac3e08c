package build

import (
	"fmt"
	"os/exec"
	"path/filepath"
	"strings"
)

// packages are the programs that a lab takes from the machine, and the Debian
// package that holds each. runc needs a C library for its seccomp filters, and
// kube-proxy calls the two netfilter programs.
func packages() map[string]string {
	return map[string]string{"runc": "runc", "iptables": "iptables", "nft": "nftables", "nsenter": "util-linux", "unshare": "util-linux"}
}

// Missing is an error that names what the machine lacks.
type Missing struct{ Programs, Packages []string }

func (m *Missing) Error() string {
	return fmt.Sprintf("this machine lacks %s: install them (on Debian: apt-get install %s, or make -C lab packages)",
		strings.Join(m.Programs, ", "), strings.Join(m.Packages, " "))
}

// CheckMachine reports what the machine lacks as a [*Missing].
func CheckMachine() error { return checkMachine(exec.LookPath) }

func checkMachine(look func(string) (string, error)) error {
	var m Missing
	known := packages()
	for _, program := range []string{"runc", "iptables", "nft", "nsenter", "unshare"} {
		if _, err := look(program); err != nil {
			m.Programs = append(m.Programs, program)
			if p := known[program]; len(m.Packages) == 0 || m.Packages[len(m.Packages)-1] != p {
				m.Packages = append(m.Packages, p)
			}
		}
	}
	if len(m.Programs) > 0 {
		return &m
	}
	return nil
}

// FindRoot finds the source tree of this project: the folder of one of the
// places, or above it.
func FindRoot(places ...string) (string, error) {
	for _, place := range places {
		for dir := place; dir != ""; dir = parent(dir) {
			if exists(filepath.Join(dir, "lab", "kubernetes", "go.mod")) {
				return dir, nil
			}
		}
	}
	return "", fmt.Errorf("finding the source tree: neither %s nor a folder above holds lab/kubernetes/go.mod: name the tree with --source",
		strings.Join(places, " nor "))
}

// parent is the folder above, or nothing above the root.
func parent(dir string) string {
	if up := filepath.Dir(dir); up != dir {
		return up
	}
	return ""
}
