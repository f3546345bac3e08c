package chart_test

import (
	"go/ast"
	"go/parser"
	"go/token"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/aad-pod-identity/aad-pod-identity/test/env"
)

// reasons reads the closed set from its source.
func reasons(t *testing.T) []string {
	t.Helper()
	file, err := parser.ParseFile(token.NewFileSet(), filepath.Join(env.Root(), "api", "v1", "reasons.go"), nil, 0)
	if err != nil {
		t.Fatal(err)
	}
	var out []string
	ast.Inspect(file, func(n ast.Node) bool {
		spec, ok := n.(*ast.ValueSpec)
		if !ok || len(spec.Values) != 1 || !strings.HasPrefix(spec.Names[0].Name, "Reason") {
			return true
		}
		if text, ok := spec.Values[0].(*ast.BasicLit); ok {
			if value, err := strconv.Unquote(text.Value); err == nil {
				out = append(out, value)
			}
		}
		return true
	})
	if len(out) < 20 {
		t.Fatalf("only %d reasons were found", len(out))
	}
	return out
}

// TestInstallDocument: every reason that a user can meet is explained, and every
// value that is named exists.
func TestInstallDocument(t *testing.T) {
	text, err := os.ReadFile(filepath.Join(env.Root(), "docs", "install.md"))
	if err != nil {
		t.Fatal(err)
	}
	document := string(text)
	_, troubleshooting, _ := strings.Cut(document, "## Troubleshooting")
	for _, reason := range reasons(t) {
		if !strings.Contains(troubleshooting, "`"+reason+"`") {
			t.Errorf("install.md does not explain the reason %s", reason)
		}
	}
	var paths []string
	for _, r := range rows(t) {
		paths = append(paths, r.path)
	}
	for _, named := range regexp.MustCompile(`\b(?:mic|nmi|rbac|image)\.[a-zA-Z.]+[a-zA-Z]\b`).FindAllString(document, -1) {
		if !slices.Contains(paths, named) {
			t.Errorf("install.md names the value %s, which does not exist", named)
		}
	}
}
