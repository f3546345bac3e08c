// Package repo holds the house rules of this project as tests. It must hold no
// other code.
package repo_test

import (
	"bufio"
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

const module = "github.com/aad-pod-identity/aad-pod-identity"

// pkg is a package of the module: its folder and the files that go list would
// build, tests apart.
type pkg struct {
	dir          string
	files, tests []file
}

type file struct {
	path  string
	lines int
	ast   *ast.File
}

func (f file) imports() []string {
	var out []string
	for _, spec := range f.ast.Imports {
		out = append(out, strings.Trim(spec.Path.Value, `"`))
	}
	return out
}

func (f file) generated() bool { return ast.IsGenerated(f.ast) }

func packages(t *testing.T) map[string]*pkg {
	t.Helper()
	out := map[string]*pkg{}
	err := filepath.WalkDir(".", func(name string, entry fs.DirEntry, err error) error {
		if err != nil || !entry.IsDir() && !strings.HasSuffix(name, ".go") {
			return err
		}
		if entry.IsDir() {
			if _, err := os.Stat(filepath.Join(name, "go.mod")); name != "." && err == nil || skipped(entry.Name()) {
				return fs.SkipDir
			}
			return nil
		}
		text, err := os.ReadFile(name)
		if err != nil {
			return err
		}
		parsed, err := parser.ParseFile(token.NewFileSet(), name, text, parser.ParseComments)
		if err != nil {
			return err
		}
		dir := path.Dir(filepath.ToSlash(name))
		if out[dir] == nil {
			out[dir] = &pkg{dir: dir}
		}
		f := file{path: name, lines: strings.Count(string(text), "\n"), ast: parsed}
		if strings.HasSuffix(name, "_test.go") {
			out[dir].tests = append(out[dir].tests, f)
		} else {
			out[dir].files = append(out[dir].files, f)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if len(out) < 10 {
		t.Fatalf("only %d packages were found: is this the root of the module?", len(out))
	}
	return out
}

func skipped(dir string) bool {
	return dir != "." && strings.HasPrefix(dir, ".") || dir == "bin" || dir == "testdata"
}

// TestPackageComments: each package has exactly one comment, which begins with
// its name and says in its first sentence what it is for.
func TestPackageComments(t *testing.T) {
	for dir, p := range packages(t) {
		var docs []string
		for _, f := range p.files {
			if f.ast.Doc != nil {
				docs = append(docs, f.ast.Doc.Text())
			}
		}
		if len(p.files) == 0 {
			continue
		}
		if len(docs) != 1 {
			t.Errorf("%s has %d package comments, want one", dir, len(docs))
			continue
		}
		if !strings.HasPrefix(docs[0], "Package ") && !strings.HasPrefix(docs[0], "Command ") {
			t.Errorf("%s: the package comment begins %.40q", dir, docs[0])
		}
		if strings.HasPrefix(docs[0], "Package ") && !regexp.MustCompile(`\b(must|may|does|do) not\b|\bnever\b|\bnone of\b|\bnothing but\b`).MatchString(docs[0]) {
			t.Errorf("%s: the package comment does not say what it must not become", dir)
		}
	}
}

// TestSizes: a file is at most 400 lines, a test 900, and a main 40.
func TestSizes(t *testing.T) {
	for dir, p := range packages(t) {
		for _, f := range p.files {
			limit := 400
			if strings.HasPrefix(dir, "cmd/") {
				limit = 40
			}
			if f.lines > limit && !f.generated() {
				t.Errorf("%s has %d lines, limit %d: do two things live in it?", f.path, f.lines, limit)
			}
		}
		for _, f := range p.tests {
			if f.lines > 900 {
				t.Errorf("%s has %d lines, limit 900", f.path, f.lines)
			}
		}
	}
}

// pure packages compute and do nothing else.
func pure() []string {
	return []string{
		"internal/binding", "internal/identity", "internal/azure/armid", "internal/azure/armtext", "internal/azure/compute", "internal/azure/throttle",
		"internal/startuptaint", "internal/nmi/resolve", "internal/nmi/redirect/ruleset", "internal/mic/attachment/plan", "internal/mic/attachment/quarantine",
	}
}

// TestPurity: pure packages import no client, no network and no log, and read no
// clock.
func TestPurity(t *testing.T) {
	forbidden := regexp.MustCompile(`^(net|net/http|os|os/.*|log|log/.*|io/fs|syscall|k8s\.io/client-go.*|sigs\.k8s\.io/controller-runtime.*|github\.com/Azure/.*|github\.com/go-logr/.*)$`)
	all := packages(t)
	for _, dir := range pure() {
		p := all[dir]
		if p == nil {
			t.Errorf("pure package %s does not exist: mend the list", dir)
			continue
		}
		for _, f := range p.files {
			for _, imported := range f.imports() {
				if forbidden.MatchString(imported) {
					t.Errorf("%s imports %s, and is pure", f.path, imported)
				}
			}
			ast.Inspect(f.ast, func(n ast.Node) bool {
				if call, ok := n.(*ast.SelectorExpr); ok {
					if id, ok := call.X.(*ast.Ident); ok && id.Name == "time" && slices.Contains([]string{"Now", "Since", "Until", "After", "Sleep"}, call.Sel.Name) {
						t.Errorf("%s reads the clock, and is pure", f.path)
					}
				}
				return true
			})
		}
	}
}

// TestImportDirections: imports go one way, and stages do not know their
// siblings.
func TestImportDirections(t *testing.T) {
	rules := []struct{ from, never, why string }{
		{`^api/`, `^(internal|cmd|test)/`, "the API is a leaf"},
		{`^internal/`, `^(cmd|test)/`, "imports go from cmd inwards"},
		{`^internal/mic(/|$)`, `^internal/nmi(/|$)`, "controller and agent share no stage"},
		{`^internal/nmi(/|$)`, `^internal/mic(/|$)`, "controller and agent share no stage"},
		{`^internal/(azure|identity|binding|refusal|audit|obs|startuptaint)(/|$)`, `^internal/(mic|nmi|cli|azuresim)(/|$)`, "stages use rules and clients, not the reverse"},
		{`^internal/(mic|nmi|cli|azure|identity|binding|obs|demo)(/|$)`, `^internal/azuresim(/|$)`, "only tests know the simulator"},
		{`^internal/azuresim(/|$)`, `^internal/(mic|nmi|identity|binding|obs)(/|$)`, "the simulator knows Azure, not its clients"},
		{`^internal/demo$`, `^(internal|api)/`, "the demo is any user's program"},
		{`^cmd/`, `^test/`, "programs do not ship tests"},
	}
	for dir, p := range packages(t) {
		for _, f := range p.files {
			for _, imported := range f.imports() {
				to, ours := strings.CutPrefix(imported, module+"/")
				if !ours {
					continue
				}
				for _, rule := range rules {
					if regexp.MustCompile(rule.from).MatchString(dir) && regexp.MustCompile(rule.never).MatchString(to) {
						t.Errorf("%s imports %s: %s", f.path, to, rule.why)
					}
				}
				if sibling(dir, to) {
					t.Errorf("%s imports its sibling stage %s: their parent wires them", f.path, to)
				}
			}
		}
	}
}

// leaves are packages beside the stages that every stage of their binary may
// use: how objects are found, how Events are worded, how commands are read.
func leaves() []string {
	return []string{"internal/mic/kube", "internal/mic/events", "internal/nmi/command"}
}

// sibling reports whether both are stages of one binary. A stage's own
// sub-packages are no siblings.
func sibling(from, to string) bool {
	stage := regexp.MustCompile(`^internal/(mic|nmi)/([a-z]+)`)
	a, b := stage.FindStringSubmatch(from), stage.FindStringSubmatch(to)
	return a != nil && b != nil && a[1] == b[1] && a[2] != b[2] && !slices.Contains(leaves(), to)
}

// TestLeaves: what every stage may use uses no stage.
func TestLeaves(t *testing.T) {
	all := packages(t)
	for _, dir := range leaves() {
		if all[dir] == nil {
			t.Errorf("leaf %s does not exist: mend the list", dir)
			continue
		}
		for _, f := range all[dir].files {
			for _, imported := range f.imports() {
				if to, ours := strings.CutPrefix(imported, module+"/"); ours && regexp.MustCompile(`^internal/(mic|nmi)/`).MatchString(to) && !slices.Contains(leaves(), to) {
					t.Errorf("%s imports the stage %s, and is a leaf", f.path, to)
				}
			}
		}
	}
}

// TestAPIImports: the API imports apimachinery only.
func TestAPIImports(t *testing.T) {
	for _, f := range packages(t)["api/v1"].files {
		for _, imported := range f.imports() {
			if strings.Contains(imported, ".") && !strings.HasPrefix(imported, "k8s.io/apimachinery/") {
				t.Errorf("%s imports %s", f.path, imported)
			}
		}
	}
}

// TestReasonsAreGiven: the closed set holds no Reason that no code gives.
func TestReasonsAreGiven(t *testing.T) {
	given := map[string]bool{}
	for dir, p := range packages(t) {
		for _, f := range p.files {
			ast.Inspect(f.ast, func(n ast.Node) bool {
				if used, ok := n.(*ast.SelectorExpr); ok && dir != "api/v1" {
					given[used.Sel.Name] = true
				}
				return true
			})
		}
	}
	i := slices.IndexFunc(packages(t)["api/v1"].files, func(f file) bool { return f.path == "api/v1/reasons.go" })
	ast.Inspect(packages(t)["api/v1"].files[i].ast, func(n ast.Node) bool {
		if spec, ok := n.(*ast.ValueSpec); ok && strings.HasPrefix(spec.Names[0].Name, "Reason") && !given[spec.Names[0].Name] {
			t.Errorf("no code gives %s", spec.Names[0].Name)
		}
		return true
	})
}

// TestModuleFile: no replace directives, so that others can require the module.
func TestModuleFile(t *testing.T) {
	text, err := os.ReadFile("go.mod")
	if err != nil {
		t.Fatal(err)
	}
	if regexp.MustCompile(`(?m)^\s*replace\b`).Match(text) {
		t.Error("go.mod has a replace directive")
	}
}

// TestNothingLeaks: tracked text speaks of this project alone.
func TestNothingLeaks(t *testing.T) {
	patterns := regexp.MustCompile(`(^|["' =(])(/root/|/work/|/home/[a-z])|\bTODO[:(]|\bFIXME\b|BEGIN (RSA |EC )?PRIVATE KEY`)
	out, err := exec.Command("git", "ls-files").Output()
	if err != nil {
		t.Fatalf("listing tracked files: %v", err)
	}
	for lines := bufio.NewScanner(strings.NewReader(string(out))); lines.Scan(); {
		name := lines.Text()
		if name == "repo_test.go" || strings.HasSuffix(name, ".sum") {
			continue
		}
		text, err := os.ReadFile(name)
		if os.IsNotExist(err) {
			continue // deleted and not yet committed
		}
		if err != nil {
			t.Fatal(err)
		}
		if found := patterns.Find(text); found != nil {
			t.Errorf("%s holds %q", name, found)
		}
	}
}
