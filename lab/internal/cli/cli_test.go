package cli

import (
	"bytes"
	"path/filepath"
	"strings"
	"testing"
)

// result is what a command line did.
type result struct {
	code           int
	stdout, stderr string
	became         []string
}

func run(t *testing.T, args ...string) result {
	t.Helper()
	root, err := filepath.Abs("../../..")
	if err != nil {
		t.Fatal(err)
	}
	var stdout, stderr bytes.Buffer
	var r result
	env := Env{Stdin: strings.NewReader(""), Stdout: &stdout, Stderr: &stderr, Exec: func(_ string, args, _ []string) error {
		r.became = args
		return nil
	}}
	r.code = Run(t.Context(), append([]string{"--dir", filepath.Join(t.TempDir(), "lab"), "--source", root}, args...), env)
	r.stdout, r.stderr = stdout.String(), stderr.String()
	return r
}

func TestBadCommandLines(t *testing.T) {
	for name, c := range map[string]struct {
		args []string
		want string
	}{
		"an unknown command":                   {[]string{"upp"}, `unknown command "upp" for "lab"`},
		"up with an argument":                  {[]string{"up", "now"}, `unknown command "now" for "lab up"`},
		"no nodes":                             {[]string{"up", "--nodes", "0"}, "--nodes is 0: want 1 to 20"},
		"negative nodes":                       {[]string{"up", "--nodes=-1"}, "--nodes is -1: want 1 to 20"},
		"too many nodes":                       {[]string{"up", "--nodes", "21"}, "--nodes is 21: want 1 to 20"},
		"a version of Kubernetes without v":    {[]string{"up", "--kubernetes-version", "1.35.4"}, `--kubernetes-version: "1.35.4" is no version of Kubernetes: want vX.Y.Z, such as v1.30.0`},
		"a minor version of Kubernetes":        {[]string{"up", "--kubernetes-version", "v1.35"}, `"v1.35" is no version of Kubernetes`},
		"a version of Kubernetes that is past": {[]string{"up", "--kubernetes-version", "v1.29.6"}, "--kubernetes-version: Kubernetes v1.29.6 is too old: want v1.30.0 or newer"},
		"exec without anything":                {[]string{"exec"}, "want a pod and a command: lab exec [-n NAMESPACE] POD -- COMMAND"},
		"exec without a pod":                   {[]string{"exec", "--", "curl"}, "want a pod and a command"},
		"exec without a command":               {[]string{"exec", "web"}, "want a command behind --"},
		"exec with an empty command":           {[]string{"exec", "web", "--"}, "want a command behind --"},
		"exec without --":                      {[]string{"exec", "web", "curl"}, "put -- before the command"},
		"exec with two pods":                   {[]string{"exec", "web", "db", "--", "curl"}, "want a pod before --, got web db"},
		"node by name":                         {[]string{"node", "node1", "--", "ps"}, `"node1" is no number of a node: want 1, 2, …`},
		"node without a command":               {[]string{"node", "1"}, "want a command behind --"},
		"load without an image":                {[]string{"load"}, "want the path of an image archive, got 0 arguments"},
		"logs of two components":               {[]string{"logs", "etcd", "kubelet"}, "want a component, got 2 arguments"},
		"an image of no name":                  {[]string{"images", "nope"}, "there is none of that name: choose from"},
		"a part of no name":                    {[]string{"build", "nope"}, "there is no such part (parts: kubernetes, containerd"},
		"a folder that nodes cover":            {[]string{"status", "--dir", "/var/lib/lab"}, "/var/lib/lab cannot be used: nodes have a /var/lib of their own: choose another place with --dir"},
		"no source tree":                       {[]string{"status", "--source", "/proc"}, "name the tree with --source"},
		"a first process by hand":              {[]string{"init-node"}, "only `lab up` starts this"},
	} {
		t.Run(name, func(t *testing.T) {
			got := run(t, c.args...)
			if got.code != 1 || !strings.Contains(got.stderr, "lab: ") || !strings.Contains(got.stderr, c.want) {
				t.Errorf("exit code %d, %s; want %s", got.code, got.stderr, c.want)
			}
			if got.became != nil {
				t.Errorf("became %v", got.became)
			}
		})
	}
}

func TestWithoutALab(t *testing.T) {
	for _, args := range [][]string{{"status"}, {"env"}, {"logs", "etcd"}, {"load", "x.tar"}, {"exec", "p", "--", "true"}, {"node", "1", "--", "true"}} {
		t.Run(args[0], func(t *testing.T) {
			got := run(t, args...)
			if got.code != 1 || !strings.Contains(got.stderr, "no lab runs here: start one with `lab up`") {
				t.Errorf("exit code %d, %s", got.code, got.stderr)
			}
		})
	}
	t.Run("down", func(t *testing.T) {
		if got := run(t, "down"); got.code != 0 || !strings.Contains(got.stderr, "no lab runs here") {
			t.Errorf("exit code %d, %s", got.code, got.stderr)
		}
	})
}

// TestLookingLeavesNothing is for those who only ask.
func TestLookingLeavesNothing(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "lab")
	for _, command := range []string{"status", "env", "down"} {
		run(t, command, "--dir", dir)
	}
	if left, err := filepath.Glob(dir + "*"); err != nil || len(left) > 0 {
		t.Errorf("left %v %v", left, err)
	}
}

func TestHelpNamesEveryCommand(t *testing.T) {
	got := run(t, "--help")
	if got.code != 0 {
		t.Fatalf("exit code %d: %s", got.code, got.stderr)
	}
	for _, command := range []string{"up", "down", "status", "env", "load", "exec", "node", "logs", "build", "images"} {
		if !strings.Contains(got.stdout, "\n  "+command+" ") {
			t.Errorf("%s is not in\n%s", command, got.stdout)
		}
		if help := run(t, command, "--help"); help.code != 0 || !strings.Contains(help.stdout, "Usage:\n  lab "+command) {
			t.Errorf("no help for %s: %s", command, help.stdout)
		}
	}
	if strings.Contains(got.stdout, "init-node") {
		t.Error("help shows what is not for people")
	}
}

func TestQuote(t *testing.T) {
	for value, want := range map[string]string{"a": "'a'", "a b$c": "'a b$c'", "it's": `'it'\''s'`} {
		if got := quote(value); got != want {
			t.Errorf("%s: got %s, want %s", value, got, want)
		}
	}
}
