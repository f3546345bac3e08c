package repo_test

import (
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// traps says where each row of the list of AAD Pod Identity's defects has its
// test: the file, and the test's name or the beginning of a row's.
func traps() map[int][2]string {
	const path, crds = "internal/nmi/traps_test.go", "api/v1/crd_test.go"
	return map[int][2]string{
		1: {path, `"1 pprof`}, 2: {path, `"2 any ReplicaSet`}, 3: {path, `"3 managed: an empty selector`}, 4: {path, `"4 type 0`}, 5: {path, `"5 X-Forwarded-For`},
		6: {"internal/nmi/redirect/datapath_test.go", "func TestReplacingRulesLeavesNoGap("},
		7: {path, `"7 object_id`}, 8: {path, `"8 namespaced filter`}, 9: {path, `"9 case-sensitive`}, 10: {path, `"10 an unmatched request`},
		11: {path, `"11 503`}, 12: {path, `"12 errors are text`}, 13: {path, `"13 client_id`}, 14: {path, `"14 metadata address`}, 15: {path, `"15 IPv6`},
		16: {path, `"16 no token cache`}, 17: {path, `"17 raw path`}, 18: {path, `"18 healthz`},
		19: {"internal/nmi/redirect/rival_test.go", "func TestRivalsAfter("},
		20: {crds, `"20 dead fields`}, 21: {"internal/mic/assignment/desired_test.go", `"21 assignments`},
		22: {path, `"22 a random key`}, 23: {path, `"23 instance metadata`}, 24: {path, `"24 Secrets of other`}, 25: {crds, `"25 legacy keys`},
	}
}

// TestTrapsHaveTests: each of the 25 rows has a test that names it.
func TestTrapsHaveTests(t *testing.T) {
	for row := 1; row <= 25; row++ {
		where, ok := traps()[row]
		if !ok {
			t.Errorf("row %d has no test", row)
			continue
		}
		text, err := os.ReadFile(where[0])
		if err != nil || !strings.Contains(string(text), where[1]) {
			t.Errorf("row %d: %s has no %s: mend the list (%v)", row, where[0], where[1], err)
		}
	}
}

// TestFuzzTargetsHaveCorpora: each begins with inputs that mean something, and are
// there for whoever runs the tests alone.
func TestFuzzTargetsHaveCorpora(t *testing.T) {
	targets := 0
	for dir, p := range packages(t) {
		for _, f := range p.tests {
			text, err := os.ReadFile(f.path)
			if err != nil {
				t.Fatal(err)
			}
			for _, found := range regexp.MustCompile(`(?m)^func (Fuzz\w+)\(`).FindAllStringSubmatch(string(text), -1) {
				targets++
				corpus := filepath.Join(filepath.FromSlash(dir), "testdata", "fuzz", found[1])
				if seeds, err := os.ReadDir(corpus); err != nil || len(seeds) < 3 {
					t.Errorf("%s has %d inputs, want 3 or more (%v)", corpus, len(seeds), err)
				}
			}
		}
	}
	out, err := exec.Command("hack/fuzz.sh", "--list").Output()
	if listed := len(strings.Fields(string(out))) / 2; err != nil || listed != targets || targets == 0 {
		t.Errorf("hack/fuzz.sh runs %d targets of %d (%v)", listed, targets, err)
	}
}
