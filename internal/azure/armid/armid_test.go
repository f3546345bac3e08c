package armid_test

import (
	"errors"
	"strings"
	"testing"

	"github.com/aad-pod-identity/aad-pod-identity/internal/azure/armid"
)

const identity = "/subscriptions/11111111-2222-3333-4444-555555555555/resourcegroups/Group.1_(x)/providers/Microsoft.ManagedIdentity/userAssignedIdentities/Demo-1"

func TestParse(t *testing.T) {
	for name, test := range map[string]struct{ in, want string }{
		"canonical":             {identity, strings.ToLower(identity)},
		"one trailing slash":    {identity + "/", strings.ToLower(identity)},
		"nested":                {"/subscriptions/s/resourceGroups/g/providers/Microsoft.Compute/virtualMachineScaleSets/vmss/virtualMachines/0", "/subscriptions/s/resourcegroups/g/providers/microsoft.compute/virtualmachinescalesets/vmss/virtualmachines/0"},
		"upper case throughout": {strings.ToUpper(identity), strings.ToLower(identity)},
	} {
		t.Run(name, func(t *testing.T) {
			got, err := armid.Parse(test.in)
			if err != nil {
				t.Fatal(err)
			}
			if got.String() != test.want {
				t.Errorf("got %s, want %s", got, test.want)
			}
		})
	}
}

func TestParseRefuses(t *testing.T) {
	for name, test := range map[string]struct{ in, words string }{
		"empty":                 {"", "is empty"},
		"no slash":              {"invalidresid", "must begin with"},
		"angle placeholder":     {strings.Replace(identity, "Demo-1", "<identity name>", 1), `placeholder "<identity name>"`},
		"curly placeholder":     {strings.Replace(identity, "Demo-1", "{name}", 1), `placeholder "{name}"`},
		"dots placeholder":      {"/subscriptions/.../userAssignedIdentities/x", `placeholder "..."`},
		"type without a name":   {"/subscriptions/s/resourceGroups/g/providers/Microsoft.ManagedIdentity/keyvault-identity-0", "must read"},
		"text before":           {"x" + identity, "must begin with"},
		"text after":            {identity + "/extra", "must read"},
		"two trailing slashes":  {identity + "//", "segment"},
		"space":                 {identity + " ", "segment"},
		"backslash":             {strings.ReplaceAll(identity, "/userAssigned", `\userAssigned`), "segment"},
		"dot segment":           {strings.Replace(identity, "Demo-1", "..", 1), "segment"},
		"wrong word":            {strings.Replace(identity, "resourcegroups", "groups", 1), "must read"},
		"percent":               {strings.Replace(identity, "Demo-1", "Demo%2f1", 1), "segment"},
		"letters that fold odd": {strings.Replace(identity, "Demo-1", "\u212Aelvin", 1), "segment"},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := armid.Parse(test.in)
			if !errors.Is(err, armid.ErrInvalid) {
				t.Fatalf("got %v, want ErrInvalid", err)
			}
			if !strings.Contains(err.Error(), test.words) {
				t.Errorf("error %q does not say %q", err, test.words)
			}
		})
	}
}

func TestParseUserAssigned(t *testing.T) {
	if _, err := armid.ParseUserAssigned(identity); err != nil {
		t.Error(err)
	}
	vm := "/subscriptions/s/resourceGroups/g/providers/Microsoft.Compute/virtualMachines/vm"
	if _, err := armid.ParseUserAssigned(vm); !errors.Is(err, armid.ErrInvalid) {
		t.Errorf("a virtual machine was taken for an identity: %v", err)
	}
}

// TestType: names that read like the words between them change nothing.
func TestType(t *testing.T) {
	for text, want := range map[string]string{
		"/subscriptions/s/resourceGroups/g/providers/Microsoft.Compute/virtualMachines/vm":                 "microsoft.compute/virtualmachines",
		"/subscriptions/providers/resourceGroups/providers/providers/Microsoft.Compute/virtualMachines/vm": "microsoft.compute/virtualmachines",
		"/subscriptions/s/resourceGroups/g/providers/N/a/1/b/2/c/3":                                        "n/a/b/c",
	} {
		id, err := armid.Parse(text)
		if err != nil || id.Type() != want {
			t.Errorf("%s: got %q, %v, want %q", text, id.Type(), err, want)
		}
	}
}

func TestParts(t *testing.T) {
	id, err := armid.Parse("/subscriptions/S/resourceGroups/G/providers/Microsoft.Compute/virtualMachineScaleSets/Pool/virtualMachines/7")
	if err != nil {
		t.Fatal(err)
	}
	for got, want := range map[string]string{
		id.Subscription(): "s", id.ResourceGroup(): "g", id.Name(): "7",
		id.Type(): "microsoft.compute/virtualmachinescalesets/virtualmachines",
	} {
		if got != want {
			t.Errorf("got %q, want %q", got, want)
		}
	}
	parent, ok := id.Parent()
	if !ok || parent.Name() != "pool" {
		t.Errorf("parent is %v, %v", parent, ok)
	}
	if _, ok := parent.Parent(); ok {
		t.Error("a top-level resource has a parent")
	}
	var zero armid.ID
	if !zero.IsZero() || zero.Name()+zero.Type()+zero.Subscription()+zero.ResourceGroup() != "" {
		t.Error("the zero ID names something")
	}
}

func TestText(t *testing.T) {
	var id, empty armid.ID
	if err := id.UnmarshalText([]byte(identity)); err != nil || id.IsZero() {
		t.Errorf("got %v, %v", id, err)
	}
	if err := empty.UnmarshalText(nil); err != nil || !empty.IsZero() {
		t.Errorf("got %v, %v", empty, err)
	}
	if err := id.UnmarshalText([]byte("x")); err == nil {
		t.Error("bad text was taken")
	}
}

func FuzzParse(f *testing.F) {
	f.Add(identity)
	f.Add("/subscriptions/{id}/x")
	f.Fuzz(func(t *testing.T, s string) {
		id, err := armid.Parse(s)
		if err != nil {
			if !id.IsZero() {
				t.Fatal("an error and an ID")
			}
			return
		}
		again, err := armid.Parse(id.String())
		if err != nil || again != id {
			t.Fatalf("%q parses to %q, which parses to %q, %v", s, id, again, err)
		}
		if !armid.Equal(s, strings.ToUpper(s)) {
			t.Fatalf("%q differs from its upper case", s)
		}
		if text, _ := id.MarshalText(); string(text) != id.String() {
			t.Fatal("text differs")
		}
	})
}
