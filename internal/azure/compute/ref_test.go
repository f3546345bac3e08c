package compute_test

import (
	"errors"
	"strings"
	"testing"

	"github.com/aad-pod-identity/aad-pod-identity/internal/azure/armid"
	"github.com/aad-pod-identity/aad-pod-identity/internal/azure/compute"
)

const (
	group    = "/subscriptions/S1/resourceGroups/MC_group"
	scaleSet = group + "/providers/Microsoft.Compute/virtualMachineScaleSets/aks-pool"
	machine  = group + "/providers/Microsoft.Compute/virtualMachines/vm-0"
)

func TestParseProviderID(t *testing.T) {
	for name, test := range map[string]struct {
		in, want string
		kind     compute.Kind
	}{
		"an instance is its scale set":            {"azure://" + scaleSet + "/virtualMachines/7", scaleSet, compute.ScaleSet},
		"an instance, all in lower case":          {strings.ToLower("azure://" + scaleSet + "/virtualMachines/7"), scaleSet, compute.ScaleSet},
		"an instance, all in upper case":          {strings.ToUpper("azure://" + scaleSet + "/virtualMachines/7"), scaleSet, compute.ScaleSet},
		"an instance whose group is mixed":        {"azure://" + strings.Replace(scaleSet, "MC_group", "mc_GROUP", 1) + "/virtualMachines/0", scaleSet, compute.ScaleSet},
		"a scale set itself":                      {"azure://" + scaleSet, scaleSet, compute.ScaleSet},
		"a virtual machine":                       {"azure://" + machine, machine, compute.VirtualMachine},
		"a virtual machine, all in lower case":    {strings.ToLower("azure://" + machine), machine, compute.VirtualMachine},
		"a virtual machine with a trailing slash": {"azure://" + machine + "/", machine, compute.VirtualMachine},
	} {
		t.Run(name, func(t *testing.T) {
			got, err := compute.ParseProviderID(test.in)
			if err != nil {
				t.Fatal(err)
			}
			want := compute.Ref{Kind: test.kind, ID: mustParse(t, test.want)}
			if got != want {
				t.Errorf("got %v, want %v", got, want)
			}
			if !strings.EqualFold(got.Kind.ARMType(), got.ID.Type()) {
				t.Errorf("its kind's type is %s, and its own %s", got.Kind.ARMType(), got.ID.Type())
			}
			if got.String() != strings.ToLower(test.want) {
				t.Errorf("prints as %s", got)
			}
		})
	}
}

func TestParseProviderIDRefuses(t *testing.T) {
	for name, test := range map[string]struct{ in, words string }{
		"empty":               {"", "has not initialised the node"},
		"another cloud":       {"aws:///eu-west-1a/i-0", "not of Azure"},
		"shorter than azure":  {"kind", "not of Azure"},
		"no scheme":           {scaleSet, "not of Azure"},
		"another resource":    {"azure://" + group + "/providers/Microsoft.Network/virtualNetworks/n", "neither a virtual machine nor a scale set"},
		"half an ID":          {"azure:///subscriptions/S1", "must read"},
		"a virtual node":      {"azure:///", "segment"},
		"deeper than the set": {"azure://" + scaleSet + "/virtualMachines/7/disks/1", "neither"},
	} {
		t.Run(name, func(t *testing.T) {
			got, err := compute.ParseProviderID(test.in)
			if err == nil {
				t.Fatalf("took it for %v", got)
			}
			if !strings.Contains(err.Error(), test.words) {
				t.Errorf("error %q does not say %q", err, test.words)
			}
		})
	}
}

func TestParseRef(t *testing.T) {
	for _, in := range []string{scaleSet, strings.ToUpper(scaleSet), scaleSet + "/virtualMachines/3"} {
		if ref, err := compute.ParseRef(in); err != nil || ref.Kind != compute.ScaleSet || ref.ID != mustParse(t, scaleSet) {
			t.Errorf("%s: got %v, %v", in, ref, err)
		}
	}
	if _, err := compute.ParseRef("aks-pool"); !errors.Is(err, armid.ErrInvalid) {
		t.Errorf("a bare name was taken: %v", err)
	}
}

func FuzzParseProviderID(f *testing.F) {
	f.Add("azure://" + scaleSet + "/virtualMachines/7")
	f.Add("azure://" + machine)
	f.Add("AZURE://")
	f.Fuzz(func(t *testing.T, in string) {
		ref, err := compute.ParseProviderID(in)
		if err != nil {
			if ref != (compute.Ref{}) {
				t.Fatal("an error and a Ref")
			}
			return
		}
		again, err := compute.ParseRef(ref.String())
		if err != nil || again != ref {
			t.Fatalf("%s prints as %s, which is %v, %v", in, ref, again, err)
		}
		if upper, err := compute.ParseProviderID(strings.ToUpper(in)); err != nil || upper != ref {
			t.Fatalf("%s differs from its upper case: %v, %v", in, upper, err)
		}
	})
}

func mustParse(t testing.TB, s string) armid.ID {
	t.Helper()
	id, err := armid.Parse(s)
	if err != nil {
		t.Fatal(err)
	}
	return id
}
