package poison_test

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/aad-pod-identity/aad-pod-identity/internal/azure/armid"
	"github.com/aad-pod-identity/aad-pod-identity/internal/azuresim/poison"
)

const prefix = "/subscriptions/s/resourcegroups/My.Group(1)/providers/Microsoft.ManagedIdentity/userAssignedIdentities/"

// world makes poisons of the identities a, b, … and a request that adds them all
// and one healthy one.
func world(t *testing.T, list ...poison.Poison) (map[armid.ID]poison.Poison, map[armid.ID]string) {
	t.Helper()
	poisons, added := map[armid.ID]poison.Poison{}, map[armid.ID]string{parse(t, prefix+"healthy"): prefix + "healthy"}
	for i, p := range list {
		p.Identity = prefix + string(rune('a'+i))
		full, err := p.WithDefaults()
		if err != nil {
			t.Fatal(err)
		}
		poisons[parse(t, p.Identity)], added[parse(t, p.Identity)] = full, p.Identity
	}
	return poisons, added
}

func parse(t *testing.T, s string) armid.ID {
	t.Helper()
	id, err := armid.ParseUserAssigned(s)
	if err != nil {
		t.Fatal(err)
	}
	return id
}

func TestChoose(t *testing.T) {
	double, operation := poison.Poison{Naming: poison.Double}, poison.Poison{In: poison.InOperation}
	for name, test := range map[string]struct {
		list []poison.Poison
		in   string
		want []string // the last part of the IDs refused
	}{
		"none":                                 {nil, poison.InRequest, nil},
		"one":                                  {[]poison.Poison{{}}, poison.InRequest, []string{"a"}},
		"several in one message":               {[]poison.Poison{{}, {}, {}}, poison.InRequest, []string{"a", "b", "c"}},
		"another way to say it waits":          {[]poison.Poison{{}, double, {}}, poison.InRequest, []string{"a", "c"}},
		"another error waits":                  {[]poison.Poison{{Error: poison.LinkedAuthorizationFailed}, {}}, poison.InRequest, []string{"a"}},
		"another case waits":                   {[]poison.Poison{{Casing: poison.Upper}, {}}, poison.InRequest, []string{"a"}},
		"one by one":                           {[]poison.Poison{{OneByOne: true}, {}, {}}, poison.InRequest, []string{"a"}},
		"beside others one by one waits":       {[]poison.Poison{{}, {OneByOne: true}, {}}, poison.InRequest, []string{"a", "c"}},
		"of the operation, in the request":     {[]poison.Poison{operation}, poison.InRequest, nil},
		"of the operation, in the operation":   {[]poison.Poison{{}, operation, operation}, poison.InOperation, []string{"b", "c"}},
		"played as often as it should be":      {[]poison.Poison{{Times: 2, Played: 2}, {Times: 2, Played: 1}}, poison.InRequest, []string{"b"}},
		"refused without a name, both at once": {[]poison.Poison{{Naming: poison.Unnamed}, {Naming: poison.Unnamed}}, poison.InRequest, []string{"a", "b"}},
	} {
		t.Run(name, func(t *testing.T) {
			poisons, added := world(t, test.list...)
			refusal, chosen := poison.Choose(poisons, added, test.in)
			var got []string
			if refusal != nil {
				for i, id := range refusal.IDs {
					got = append(got, strings.TrimPrefix(id, prefix))
					if parse(t, id) != chosen[i] {
						t.Errorf("%s is refused, and %s is counted", id, chosen[i])
					}
				}
			}
			if diff := cmp.Diff(test.want, got, cmpopts.EquateEmpty()); diff != "" {
				t.Errorf("refused (-want +got):\n%s", diff)
			}
		})
	}
}

func TestNames(t *testing.T) {
	const a, b = prefix + "a", prefix + "b"
	for name, test := range map[string]struct {
		poison poison.Poison
		want   string
	}{
		"by default":       {poison.Poison{}, "'" + a + "," + b + "'"},
		"in double quotes": {poison.Poison{Naming: poison.Double}, `"` + a + `", "` + b + `"`},
		"bare":             {poison.Poison{Naming: poison.Bare}, a + ", " + b},
		"not at all":       {poison.Poison{Naming: poison.Unnamed}, ""},
		"in lower case":    {poison.Poison{Casing: poison.Lower}, "'" + strings.ToLower(a+","+b) + "'"},
		"in upper case":    {poison.Poison{Casing: poison.Upper, Naming: poison.Bare}, strings.ToUpper(a + ", " + b)},
	} {
		t.Run(name, func(t *testing.T) {
			poisons, added := world(t, test.poison, test.poison)
			refusal, _ := poison.Choose(poisons, added, poison.InRequest)
			if got := refusal.Names(); got != test.want {
				t.Errorf("got %s, want %s", got, test.want)
			}
		})
	}
	poisons, added := world(t, poison.Poison{Casing: poison.Mixed, Naming: poison.Bare})
	refusal, _ := poison.Choose(poisons, added, poison.InRequest)
	got := refusal.Names()
	if !strings.EqualFold(got, a) || got == strings.ToLower(a) || got == strings.ToUpper(a) || got == a {
		t.Errorf("in mixed case: got %s", got)
	}
}

func TestWithDefaults(t *testing.T) {
	got, err := poison.Poison{Identity: prefix + "a", Played: 3}.WithDefaults()
	if err != nil {
		t.Fatal(err)
	}
	want := poison.Poison{Identity: prefix + "a", In: "request", Error: "FailedIdentityOperation", Naming: "single", Casing: "arm", Played: 3}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("poison (-want +got):\n%s", diff)
	}
	for words, p := range map[string]poison.Poison{
		"invalid ARM resource ID":              {Identity: "x"},
		`in is "later": want one of`:           {Identity: prefix + "a", In: "later"},
		`error is "Conflict": want one of`:     {Identity: prefix + "a", Error: "Conflict"},
		`naming is "quoted": want one of`:      {Identity: prefix + "a", Naming: "quoted"},
		`casing is "camel": want one of`:       {Identity: prefix + "a", Casing: "camel"},
		"times is -1: it must not be negative": {Identity: prefix + "a", Times: -1},
	} {
		if _, err := p.WithDefaults(); err == nil || !strings.Contains(err.Error(), words) {
			t.Errorf("got %v, want an error that says %q", err, words)
		}
	}
}
