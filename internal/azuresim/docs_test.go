package azuresim_test

import (
	"encoding/json"
	"os"
	"regexp"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/aad-pod-identity/aad-pod-identity/internal/azuresim"
	"github.com/aad-pod-identity/aad-pod-identity/internal/azuresim/fault"
	"github.com/aad-pod-identity/aad-pod-identity/internal/azuresim/model"
	"github.com/aad-pod-identity/aad-pod-identity/internal/azuresim/settings"
)

const docsFile = "../../docs/azuresim.md"

// fenced returns the code of a language in the documentation.
func fenced(t *testing.T, language string) []string {
	t.Helper()
	text, err := os.ReadFile(docsFile)
	check(t, err)
	var blocks []string
	for _, m := range regexp.MustCompile("(?s)```"+language+"\n(.*?)```").FindAllSubmatch(text, -1) {
		blocks = append(blocks, string(m[1]))
	}
	if len(blocks) == 0 {
		t.Fatalf("no %s in %s", language, docsFile)
	}
	return blocks
}

func TestDocumentsOfTheDocumentationLoad(t *testing.T) {
	a := start(t, azuresim.Config{})
	for _, block := range fenced(t, "yaml") {
		doc, err := model.Parse([]byte(block))
		if err == nil {
			_, err = a.State.Add(doc)
		}
		if err != nil {
			t.Errorf("%v in\n%s", err, block)
		}
		if doc.Settings == nil {
			continue
		}
		if diff := cmp.Diff(settings.DocumentedThrottling(), *doc.Settings.ARM.Throttling); diff != "" {
			t.Errorf("ARM's limits (-want +documented):\n%s", diff)
		}
		if diff := cmp.Diff(settings.IMDSLimits{}.Full(), *doc.Settings.IMDS.Limits); diff != "" {
			t.Errorf("IMDS's limits (-want +documented):\n%s", diff)
		}
		if doc.Settings.ARM.Latency != settings.DocumentedLatency() {
			t.Errorf("latency: %v", doc.Settings.ARM.Latency)
		}
	}
	for _, block := range fenced(t, "json") {
		var f fault.Fault
		if err := json.Unmarshal([]byte(block), &f); err != nil {
			t.Errorf("%v in\n%s", err, block)
		}
		a.play(t, f)
	}
}

func TestCommandOfTheDocumentationIsUnderstood(t *testing.T) {
	for _, block := range fenced(t, "sh") {
		if _, err := azuresim.ParseOptions(strings.Fields(block)[1:], newOutput()); err != nil {
			t.Errorf("%v in\n%s", err, block)
		}
	}
}
