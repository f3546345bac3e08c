package chart_test

import (
	"encoding/json"
	"flag"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"go.yaml.in/yaml/v3"
)

var update = flag.Bool("update", false, "write the table of values into the chart's README.md")

// row is one value of values.yaml with the comment above it.
type row struct{ path, value, meaning string }

// noEffect reports whether the value says that it changes nothing.
func (r row) noEffect() bool { return strings.HasPrefix(r.meaning, "No effect") }

// rows reads values.yaml. A value with a comment is a row; one without is a group
// of others.
func rows(t *testing.T) []row {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(chart(), "values.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	var document yaml.Node
	if err := yaml.Unmarshal(text, &document); err != nil {
		t.Fatal(err)
	}
	return rowsOf(t, "", document.Content[0])
}

func rowsOf(t *testing.T, prefix string, mapping *yaml.Node) []row {
	t.Helper()
	var out []row
	for i := 0; i < len(mapping.Content); i += 2 {
		key, value := mapping.Content[i], mapping.Content[i+1]
		path := prefix + key.Value
		// What stands apart by an empty line is not about the value.
		comment := key.HeadComment[strings.LastIndex(key.HeadComment, "\n\n")+1:]
		switch {
		case comment != "":
			meaning := strings.TrimSpace(strings.TrimPrefix(strings.TrimSpace(comment), "#"))
			out = append(out, row{path, shown(t, value), meaning})
		case value.Kind == yaml.MappingNode && len(value.Content) > 0:
			out = append(out, rowsOf(t, path+".", value)...)
		default:
			t.Errorf("values.yaml: %s has no comment", path)
		}
	}
	return out
}

// shown is a default as the table prints it.
func shown(t *testing.T, node *yaml.Node) string {
	t.Helper()
	var value any
	if err := node.Decode(&value); err != nil {
		t.Fatal(err)
	}
	text, err := json.Marshal(value)
	if err != nil {
		t.Fatal(err)
	}
	if len(text) > 100 {
		return "see values.yaml"
	}
	return "`" + string(text) + "`"
}

func table(rows []row) string {
	var out strings.Builder
	out.WriteString("| value | default | meaning |\n|---|---|---|\n")
	for _, r := range rows {
		fmt.Fprintf(&out, "| `%s` | %s | %s |\n", r.path, r.value, r.meaning)
	}
	return out.String()
}

// TestReadme: the table in README.md is what values.yaml says. With -update it is
// written.
func TestReadme(t *testing.T) {
	const begin, end = "<!-- values: written by make generate -->\n", "<!-- end of values -->"
	file := filepath.Join(chart(), "README.md")
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	before, rest, found := strings.Cut(string(text), begin)
	got, after, ended := strings.Cut(rest, end)
	if !found || !ended {
		t.Fatalf("README.md lacks %q or %q", begin, end)
	}
	want := table(rows(t))
	if *update {
		if err := os.WriteFile(file, []byte(before+begin+want+end+after), 0o600); err != nil {
			t.Fatal(err)
		}
		return
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("the table of values is out of date, run make generate (-want +got):\n%s", diff)
	}
}

// TestEveryValueIsTested: each value is either in the table of effects or in the
// one of values without effect, as its comment says.
func TestEveryValueIsTested(t *testing.T) {
	var want []string
	for _, r := range rows(t) {
		_, tested := effects()[r.path]
		_, idle := unused()[r.path]
		want = append(want, r.path)
		if tested == idle {
			t.Errorf("%s: in the table of effects %t, in the one of values without effect %t: want one of both", r.path, tested, idle)
		}
		if idle != r.noEffect() {
			t.Errorf("%s: its comment says that it has no effect %t, its test %t", r.path, r.noEffect(), idle)
		}
	}
	got := slices.AppendSeq(slices.Collect(maps.Keys(effects())), maps.Keys(unused()))
	slices.Sort(want)
	slices.Sort(got)
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("values of values.yaml and of the tests (-values +tests):\n%s", diff)
	}
}
