package cgroup

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestParse(t *testing.T) {
	for name, c := range map[string]struct {
		mountinfo string
		want      Hierarchies
		err       string
	}{
		"version 2 alone": {
			mountinfo: "30 23 0:26 / /sys/fs/cgroup rw,nosuid shared:4 - cgroup2 cgroup2 rw\n",
			want:      Hierarchies{"/sys/fs/cgroup"},
		},
		"version 1 and 2, sorted, other file systems left out": {
			mountinfo: "24 1 254:0 / / rw - ext4 /dev/vda rw\n" +
				"31 30 0:28 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n" +
				"30 23 0:27 / /sys/fs/cgroup rw - tmpfs tmpfs rw\n" +
				"32 30 0:29 / /sys/fs/cgroup/cpu rw shared:9 master:2 - cgroup cgroup rw,cpu\n",
			want: Hierarchies{"/sys/fs/cgroup/cpu", "/sys/fs/cgroup/memory"},
		},
		"a hierarchy mounted twice counts once": {
			mountinfo: "31 30 0:28 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n31 30 0:28 / /mnt rw - cgroup cgroup rw,memory\n",
			want:      Hierarchies{"/sys/fs/cgroup/memory"},
		},
		"a bind mount of a container's own directory is no hierarchy": {
			mountinfo: "31 30 0:28 /docker/1 /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n31 30 0:29 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu\n",
			want:      Hierarchies{"/sys/fs/cgroup/cpu"},
		},
		"none at all": {err: "no hierarchy is mounted"},
	} {
		t.Run(name, func(t *testing.T) {
			got, err := parse(strings.NewReader(c.mountinfo))
			if c.err != "" {
				if err == nil || !strings.Contains(err.Error(), c.err) {
					t.Fatalf("got error %v, want %s", err, c.err)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(c.want, got); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
		})
	}
}

// TestProcesses looks for pods in a tree of plain files.
func TestProcesses(t *testing.T) {
	root := t.TempDir()
	for file, text := range map[string]string{
		"lab0-node1/system/cgroup.procs":                        "1\n",
		"lab0-node1/kubepods/besteffort/podaaa/sb/cgroup.procs": "11\n12\n",
		"lab0-node1/kubepods/besteffort/podaaa/c1/cgroup.procs": "13\n",
		"lab0-node1/kubepods/burstable/podbbb/sb/cgroup.procs":  "21\n",
		"lab0-node2/kubepods/podaaa/cgroup.procs":               "99\n",
	} {
		path := filepath.Join(root, file)
		if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	got, err := Hierarchies{root}.Processes("lab0-node1", func(dir string) bool { return dir == "podaaa" })
	if err != nil {
		t.Fatal(err)
	}
	slices.Sort(got)
	if diff := cmp.Diff([]int{11, 12, 13}, got); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	if _, err := (Hierarchies{root}).Processes("lab9-node1", func(string) bool { return true }); err == nil {
		t.Error("a node without cgroup has processes")
	}
}

// TestCreateJoinRemove works on the machine's own hierarchies, in a directory of
// this test's.
func TestCreateJoinRemove(t *testing.T) {
	h, err := Find()
	if err != nil {
		t.Fatal(err)
	}
	const name = "lab-cgroup-test"
	t.Cleanup(func() {
		if err := h.Remove(t.Context(), name); err != nil && t.Context().Err() == nil {
			t.Error(err)
		}
	})
	if err := h.Create(name); err != nil {
		t.Fatal(err)
	}
	if got := len(h.Exists(name)); got != len(h) {
		t.Errorf("made in %d of %d hierarchies", got, len(h))
	}
	if err := h.Create(name); err != nil {
		t.Errorf("made again: %v", err)
	}
	if err := h.Remove(t.Context(), name); err != nil {
		t.Fatal(err)
	}
	if left := h.Exists(name); len(left) > 0 {
		t.Errorf("left behind: %v", left)
	}
}
