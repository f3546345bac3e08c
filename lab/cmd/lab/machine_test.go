package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"
)

// probe is the first argument with which this test program asks for a URL
// instead of testing, as a program in a pod's network would.
const probe = "probe"

// program is the variable with the path of the lab program under test.
const program = "LAB_TEST_PROGRAM"

func TestMain(m *testing.M) {
	if len(os.Args) == 3 && os.Args[1] == probe {
		os.Exit(get(context.Background(), os.Args[2], os.Stdout))
	}
	os.Exit(withProgram(m))
}

// withProgram builds the lab program once for all tests.
func withProgram(m *testing.M) int {
	dir, err := os.MkdirTemp("", "lab-test-")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer os.RemoveAll(dir) // a temporary folder
	path := filepath.Join(dir, "lab")
	if out, err := exec.CommandContext(context.Background(), "go", "build", "-o", path, ".").CombinedOutput(); err != nil {
		fmt.Fprintf(os.Stderr, "building lab: %v\n%s", err, out)
		return 1
	}
	// The race detector keeps a program that ends waiting for a second.
	if err := errors.Join(os.Setenv(program, path), os.Setenv("GORACE", "atexit_sleep_ms=0"), os.Chmod(dir, 0o755)); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return m.Run()
}

// get prints status and body; it fails if there is no answer.
func get(ctx context.Context, url string, out io.Writer) int {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		fmt.Fprintln(out, err)
		return 2
	}
	request.Header.Set("Metadata", "true")
	response, err := http.DefaultClient.Do(request)
	if err != nil {
		fmt.Fprintln(out, err)
		return 1
	}
	defer response.Body.Close() // read to its end or given up
	fmt.Fprintln(out, response.StatusCode)
	if _, err := io.Copy(out, response.Body); err != nil {
		return 1
	}
	return 0
}

// lab is a lab under test, by its command line.
type lab struct {
	program, dir string
}

// newLab makes sure that nothing stays, come what may.
func newLab(t *testing.T) *lab {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Fatal("a lab needs root: run this test as root")
	}
	l := &lab{program: os.Getenv(program), dir: filepath.Join(t.TempDir(), "state")}
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(t.Context()), 2*time.Minute)
		defer cancel()
		if _, err := os.Stat(filepath.Join(l.dir, "lab.json")); t.Failed() && err == nil {
			t.Log(l.out(ctx, "status"))
			t.Log(l.out(ctx, "logs", "azure"))
			t.Log(l.out(ctx, "logs", "init"))
		}
		if out, err := l.command(ctx, "down").CombinedOutput(); err != nil {
			t.Errorf("lab down: %v\n%s", err, out)
		}
	})
	return l
}

func (l *lab) command(ctx context.Context, args ...string) *exec.Cmd {
	root, _ := filepath.Abs("../../..") // of a relative path: only fails without a working directory
	cmd := exec.CommandContext(ctx, l.program, append([]string{"--dir", l.dir, "--source", root}, args...)...)
	cmd.WaitDelay = time.Second
	return cmd
}

// out returns what a command says, whether or not it fails.
func (l *lab) out(ctx context.Context, args ...string) string {
	out, err := l.command(ctx, args...).CombinedOutput()
	return fmt.Sprintf("lab %s: %v\n%s", strings.Join(args, " "), err, out)
}

// run runs a command that must succeed and returns its stdout.
func (l *lab) run(t *testing.T, args ...string) string {
	t.Helper()
	cmd := l.command(t.Context(), args...)
	var stderr strings.Builder
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("lab %s: %v\n%s%s", strings.Join(args, " "), err, stderr.String(), out)
	}
	return string(out)
}

// refused runs a command that must fail and returns what it says.
func (l *lab) refused(t *testing.T, args ...string) string {
	t.Helper()
	out, err := l.command(t.Context(), args...).CombinedOutput()
	if _, failed := errors.AsType[*exec.ExitError](err); !failed {
		t.Errorf("lab %s: got %v, want a refusal\n%s", strings.Join(args, " "), err, out)
	}
	return string(out)
}

// kubectl runs kubectl with the environment that `lab env` prints.
func (l *lab) kubectl(ctx context.Context, env, stdin string, args ...string) (string, error) {
	cmd := exec.CommandContext(ctx, "/bin/sh", append([]string{"-c", env + `exec kubectl "$@"`, "kubectl"}, args...)...)
	cmd.Stdin = strings.NewReader(stdin)
	out, err := cmd.CombinedOutput()
	if err != nil {
		return string(out), fmt.Errorf("kubectl %s: %w\n%s", strings.Join(args, " "), err, out)
	}
	return string(out), nil
}

// number of the lab, read before it is gone.
func (l *lab) number(t *testing.T) int {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(l.dir, "lab.json"))
	if errors.Is(err, fs.ErrNotExist) {
		return -1
	}
	var saved struct{ Number int }
	if err = errors.Join(err, json.Unmarshal(text, &saved)); err != nil {
		t.Fatal(err)
	}
	return saved.Number
}

// expectNothing looks for everything that a lab of a number could leave, by
// other means than the program itself.
func (l *lab) expectNothing(t *testing.T, number int) {
	t.Helper()
	if _, err := os.Stat(fmt.Sprintf("/sys/class/net/lab%d", number)); err == nil {
		t.Errorf("link lab%d is left", number)
	}
	if routes := linesWith(t, "/proc/net/fib_trie", fmt.Sprintf(" 10.%d.", 100+number)); len(routes) > 0 {
		t.Errorf("routes are left: %v", routes)
	}
	for _, pattern := range []string{"/sys/fs/cgroup/lab%d-*", "/sys/fs/cgroup/*/lab%d-*"} {
		if left, _ := filepath.Glob(fmt.Sprintf(pattern, number)); len(left) > 0 { // the pattern is good
			t.Errorf("cgroups are left: %v", left)
		}
	}
	if mounts := linesWith(t, "/proc/self/mountinfo", l.dir); len(mounts) > 0 {
		t.Errorf("mounts are left: %v", mounts)
	}
	if left, _ := filepath.Glob(l.dir + "*"); len(left) > 0 { // as above
		t.Errorf("files are left: %v", left)
	}
	processes, err := filepath.Glob("/proc/[0-9]*/cmdline")
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range processes {
		if text, err := os.ReadFile(p); err == nil && strings.Contains(string(text), l.dir) {
			t.Errorf("process %s is left: %q", p, text)
		}
	}
}

// process is one process of the machine, beyond doubt: its number may be another's
// later.
type process struct {
	pid   int
	start string // in clock ticks since boot
}

// processes returns what runs in the cgroups of a lab, pods too, by name. It fails
// the test unless some of it is in namespaces of each kind that a lab makes.
func processes(t *testing.T, number int) map[process]string {
	t.Helper()
	dirs, err := filepath.Glob("/proc/[0-9]*")
	if err != nil {
		t.Fatal(err)
	}
	found, apart := map[process]string{}, map[string]bool{}
	for _, dir := range dirs {
		text, err := os.ReadFile(filepath.Join(dir, "cgroup"))
		p, name, alive := identify(dir)
		if err != nil || !alive || !strings.Contains(string(text), fmt.Sprintf(":/lab%d-", number)) {
			continue
		}
		found[p] = name
		for _, kind := range []string{"net", "mnt", "pid", "uts", "ipc"} {
			own, _ := os.Readlink("/proc/self/ns/" + kind) // every process has one of each
			if its, err := os.Readlink(filepath.Join(dir, "ns", kind)); err == nil && its != own {
				apart[kind] = true
			}
		}
	}
	if len(apart) != 5 {
		t.Errorf("only %d kinds of namespaces are the lab's own: %v", len(apart), apart)
	}
	return found
}

// identify reads /proc/PID/stat; false if the process has ended.
func identify(dir string) (p process, name string, alive bool) {
	text, err := os.ReadFile(filepath.Join(dir, "stat"))
	if err != nil {
		return process{}, "", false
	}
	before, behind, _ := strings.Cut(string(text), ") ") // a name of ours holds no parenthesis
	fields := strings.Fields(behind)
	number, name, _ := strings.Cut(before, " (")
	pid, err := strconv.Atoi(number)
	if err != nil || len(fields) < 20 || fields[0] == "Z" {
		return process{}, "", false
	}
	return process{pid, fields[19]}, name, true
}

// expectEnded fails the test if one of the processes still runs. With the last of
// a namespace the kernel takes that away, but for what a mount keeps.
func expectEnded(t *testing.T, all map[process]string) {
	t.Helper()
	for p, name := range all {
		if now, _, alive := identify(fmt.Sprintf("/proc/%d", p.pid)); alive && now == p {
			t.Errorf("process %d (%s) is left", p.pid, name)
		}
	}
}

func linesWith(t *testing.T, file, word string) []string {
	t.Helper()
	f, err := os.Open(file)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close() // only read
	var found []string
	for lines := bufio.NewScanner(f); lines.Scan(); {
		if strings.Contains(lines.Text(), word) {
			found = append(found, lines.Text())
		}
	}
	return found
}

// machine is what a lab must leave as it was, while it runs too.
func machine(t *testing.T) map[string]string {
	t.Helper()
	state := map[string]string{}
	for name, command := range map[string][]string{"netfilter": {"nft", "list", "ruleset"}, "legacy": {"iptables-save"}} {
		out, err := exec.CommandContext(t.Context(), command[0], command[1:]...).Output()
		if err != nil {
			t.Fatalf("%v: %v", command, err)
		}
		state[name] = string(out)
	}
	for _, pattern := range []string{
		"/proc/sys/net/ipv4/ip_forward", "/proc/sys/net/ipv4/conf/all/*", "/proc/sys/net/ipv4/conf/default/*", "/proc/sys/net/bridge/*",
		"/proc/sys/net/netfilter/nf_conntrack_max", "/proc/sys/vm/overcommit_memory", "/proc/sys/vm/panic_on_oom", "/proc/sys/kernel/panic*", "/proc/sys/kernel/keys/*", "/proc/sys/kernel/hostname",
		"/sys/fs/cgroup/cgroup.subtree_control", "/sys/fs/cgroup/unified/cgroup.subtree_control",
	} {
		files, err := filepath.Glob(pattern)
		if err != nil {
			t.Fatal(err)
		}
		for _, file := range files {
			if text, err := os.ReadFile(file); err == nil {
				state[file] = string(text)
			}
		}
	}
	state["cgroup hierarchies"] = strings.Join(linesWith(t, "/proc/self/mountinfo", " - cgroup"), "\n")
	for _, dir := range []string{"/var/lib/cni", "/var/lib/kubelet", "/etc/kubernetes", "/run/containerd", "/run/xtables.lock"} {
		_, err := os.Stat(dir)
		state[dir] = fmt.Sprint(err == nil)
	}
	return state
}
