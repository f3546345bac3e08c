package binding_test

import (
	"fmt"
	"testing"

	v1 "github.com/aad-pod-identity/aad-pod-identity/api/v1"
	"github.com/aad-pod-identity/aad-pod-identity/internal/binding"
	"github.com/aad-pod-identity/aad-pod-identity/internal/identity"
)

// indexed is a Catalog with an index, as the caches of both binaries keep it.
type indexed struct {
	world
	bySelector map[string][]*v1.AzureIdentityBinding
}

func (i indexed) Bindings(selector string) []*v1.AzureIdentityBinding { return i.bySelector[selector] }

func index(w world) indexed {
	out := indexed{world: w, bySelector: map[string][]*v1.AzureIdentityBinding{}}
	for _, b := range w.bindings {
		out.bySelector[b.Spec.Selector] = append(out.bySelector[b.Spec.Selector], b)
	}
	return out
}

// BenchmarkDecide decides for 2,000 pods among 100 bindings in one iteration:
// with 100 selectors of 20 pods each, and with one selector that all share, the
// identities being namesakes in 100 namespaces.
func BenchmarkDecide(b *testing.B) {
	const pods, bindings = 2000, 100
	shapes := map[string]func(i int) (id, bound, selector string){
		"100-selectors": func(i int) (string, string, string) {
			return fmt.Sprintf("default/id-%d", i), fmt.Sprintf("default/b-%d", i), fmt.Sprintf("s-%d", i)
		},
		"one-selector-100-namespaces": func(i int) (string, string, string) {
			return fmt.Sprintf("ns-%d/id", i), fmt.Sprintf("ns-%d/b", i), "s-0"
		},
	}
	for name, shape := range shapes {
		w := world{identities: map[identity.Key]*v1.AzureIdentity{}}
		var all []binding.Pod
		for i := range bindings {
			id, bound, selector := shape(i)
			w.identities[key(id)] = managed(id)
			w.bindings = append(w.bindings, bind(bound, key(id).Name, selector))
		}
		for i := range pods {
			_, bound, selector := shape(i % bindings)
			all = append(all, pod(fmt.Sprintf("%s/pod-%d", key(bound).Namespace, i), selector))
		}
		catalog := index(w)
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				granted := 0
				for _, p := range all {
					granted += len(binding.Decide(p, catalog, binding.Policy{}).Grants)
				}
				if granted != pods {
					b.Fatalf("%d grants", granted)
				}
			}
			b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/pods, "ns/pod")
		})
	}
}
