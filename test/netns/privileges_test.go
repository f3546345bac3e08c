package netns_test

import (
	"errors"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"

	"github.com/aad-pod-identity/aad-pod-identity/test/netns"
)

// TestNewWithoutPrivileges runs itself again as an ordinary user, since a
// process cannot take back what it gave up.
func TestNewWithoutPrivileges(t *testing.T) {
	if os.Geteuid() != 0 {
		if _, err := netns.New("n"); !errors.Is(err, netns.ErrNotRoot) {
			t.Errorf("got %v, want ErrNotRoot", err)
		}
		return
	}
	// The test's binary lies where an ordinary user cannot read.
	cmd := exec.CommandContext(t.Context(), "/proc/self/exe", "-test.run=^TestNewWithoutPrivileges$", "-test.v")
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}
	cmd.Dir = "/"
	out, err := cmd.CombinedOutput()
	if err != nil || !strings.Contains(string(out), "--- PASS: TestNewWithoutPrivileges") {
		t.Errorf("as an ordinary user: %v\n%s", err, out)
	}
}
