package scenarios_test

import (
	"flag"
	"maps"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/aad-pod-identity/aad-pod-identity/test/scenarios"
)

// TestMain lets the stories run beside each other: they wait much more than they
// compute.
func TestMain(m *testing.M) {
	flag.Parse()
	if err := flag.Set("test.parallel", "8"); err != nil {
		panic(err)
	}
	m.Run()
}

func load(t *testing.T) []scenarios.Scenario {
	t.Helper()
	all, err := scenarios.Load(os.DirFS("."))
	if err != nil {
		t.Fatal(err)
	}
	if len(all) == 0 {
		t.Fatal("there are no scenarios")
	}
	return all
}

// TestOnValues plays every story on the rules alone.
func TestOnValues(t *testing.T) {
	for _, s := range load(t) {
		if s.Only == scenarios.Real {
			continue
		}
		t.Run(s.Name, func(t *testing.T) {
			t.Parallel()
			playOnValues(t, s)
		})
	}
}

func playOnValues(t *testing.T, s scenarios.Scenario) {
	t.Helper()
	p := newPure(t, s)
	for i, step := range s.Steps {
		p.did = did{patches: map[string]int{}}
		for _, e := range step.Do {
			p.edit(e)
		}
		p.converge()
		if diff := p.outcome().differs(p.Place, step.Expect); diff != "" {
			t.Fatalf("%s: step %d, %s:\n%s", s.File, i+1, step.Name, diff)
		}
	}
}

func (p *pure) outcome() outcome {
	attached, null := attachedTo(p.azure, p.Place)
	o := outcome{
		assignments: slices.Collect(maps.Values(p.assignments)), attached: attached, null: null, owned: map[string][]string{},
		patches: map[string]int{}, created: p.did.created, deleted: p.did.deleted, rewritten: p.did.rewritten,
	}
	for _, short := range resourcesOf(p.Place) {
		for ref, r := range p.resources {
			if strings.EqualFold(ref.String(), p.ResourceID(short)) {
				o.owned[short], o.patches[short] = ownedOf(p.Place, r.records), p.did.patches[ref.String()]
			}
		}
	}
	return o
}

func TestParseRefuses(t *testing.T) {
	const head = "- name: story\n  pins: p\n  given: {azure: {identities: {web: {}}, scaleSets: {pool: {}}}}\n"
	for words, text := range map[string]string{
		`unknown field "expects"`:      head + "  steps: [{expects: {}}]\n",
		`unknown field "pod"`:          head + "  steps: [{expect: {pod: {}}}]\n",
		"does not say what it pins":    "- name: story\n  given: {azure: {}}\n  steps: [{expect: {}}]\n",
		"nothing happens in it":        head + "  steps: []\n",
		"only and because go together": head + "  only: real\n  steps: [{expect: {}}]\n",
		`only is "never"`:              head + "  only: never\n  because: x\n  steps: [{expect: {}}]\n",
		"it has no name":               "- pins: p\n  given: {azure: {}}\n  steps: [{expect: {}}]\n",
		`resource "pole" is not given`: head + "  steps: [{expect: {azure: {pole: []}}}]\n",
		`identity "wed" is not given`:  head + "  steps: [{expect: {owned: {pool: [wed]}}}]\n",
		`identity "wet" is not given`:  head + "  steps: [{do: [{recreate: [wet]}], expect: {}}]\n",
		"is no count":                  head + "  steps: [{expect: {created: many}}]\n",
		"install without restart":      head + "  steps: [{do: [{install: {namespaced: true}}], expect: {}}]\n",
		`node "x" has both`:            "- name: story\n  pins: p\n  given: {azure: {scaleSets: {pool: {}}}, nodes: {x: {of: pool, providerID: aws}}}\n  steps: [{expect: {}}]\n",
		`key "name" already set`:       "- name: story\n  name: m\n",
	} {
		if _, err := scenarios.Parse([]byte(text)); err == nil || !strings.Contains(err.Error(), words) {
			t.Errorf("got %v, want an error that says %q", err, words)
		}
	}
}

// TestTheExampleOfTheREADME plays the story that explains the others.
func TestTheExampleOfTheREADME(t *testing.T) {
	text, err := os.ReadFile("README.md")
	if err != nil {
		t.Fatal(err)
	}
	_, example, _ := strings.Cut(string(text), "```yaml\n")
	example, _, _ = strings.Cut(example, "```")
	list, err := scenarios.Parse([]byte(example))
	if err != nil {
		t.Fatal(err)
	}
	playOnValues(t, list[0])
}

func TestCounts(t *testing.T) {
	list, err := scenarios.Parse([]byte("- name: story\n  pins: p\n  given: {azure: {scaleSets: {pool: {}}}}\n  steps: [{expect: {created: 2, deleted: \"<=3\"}}]\n"))
	if err != nil {
		t.Fatal(err)
	}
	e := list[0].Steps[0].Expect
	for n, want := range map[int][2]bool{1: {false, true}, 2: {true, true}, 3: {false, true}, 4: {false, false}} {
		if got := [2]bool{e.Created.Holds(n), e.Deleted.Holds(n)}; got != want {
			t.Errorf("%d: got %v, want %v", n, got, want)
		}
	}
}
