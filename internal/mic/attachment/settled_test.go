package attachment

import (
	"context"
	"errors"
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/uuid"
	"k8s.io/client-go/rest"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/client/fake"

	v1 "github.com/aad-pod-identity/aad-pod-identity/api/v1"
	"github.com/aad-pod-identity/aad-pod-identity/internal/azure/armid"
	"github.com/aad-pod-identity/aad-pod-identity/internal/azure/compute"
	"github.com/aad-pod-identity/aad-pod-identity/internal/mic/attachment/observe"
	"github.com/aad-pod-identity/aad-pod-identity/internal/mic/attachment/plan"
	"github.com/aad-pod-identity/aad-pod-identity/internal/mic/attachment/quarantine"
	"github.com/aad-pod-identity/aad-pod-identity/internal/mic/events"
	"github.com/aad-pod-identity/aad-pod-identity/internal/mic/kube"
)

// calm is a scale set of one node that a whole pass has just left: pods a and b
// have the identity "one", c has "two", and that is said. The cache is one client,
// the API server another, so that they can differ.
type calm struct {
	*Reconciler
	cache, server client.WithWatch
	set           compute.Ref
	last          *settled
}

func newCalm(t *testing.T) *calm {
	t.Helper()
	c := &calm{cache: newCluster(t), server: newCluster(t), set: ref(t, setID)}
	recorder, err := events.New(t.Context(), &rest.Config{Host: "http://127.0.0.1:1"}, c.cache.Scheme())
	must(t, err)
	c.Reconciler = NewReconciler(Options{Client: c.cache, Live: c.server, Events: recorder, Namespace: "mic"})
	must(t, c.cache.Create(t.Context(), &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "node"}, Spec: corev1.NodeSpec{ProviderID: "azure://" + setID + "/virtualMachines/0"}}))
	c.name(t, "one")
	c.name(t, "two")
	for _, side := range []client.Client{c.cache, c.server} {
		must(t, side.Create(t.Context(), c.record()))
	}
	c.come(t, "a", "one")
	c.come(t, "b", "one")
	c.come(t, "c", "two")
	c.tell(t)
	needs := c.needs(t)
	named, err := c.observe.Named(t.Context(), observe.Wanted(needs))
	must(t, err)
	var record v1.AzureIdentityAttachment
	must(t, c.cache.Get(t.Context(), client.ObjectKeyFromObject(c.record()), &record))
	c.last = &settled{record: record.ResourceVersion, there: named}
	return c
}

func newCluster(t *testing.T) client.WithWatch {
	t.Helper()
	scheme, err := kube.NewScheme()
	must(t, err)
	builder := fake.NewClientBuilder().WithScheme(scheme)
	must(t, kube.AddIndexes(t.Context(), fields{builder}, nil))
	return builder.Build()
}

type fields struct{ *fake.ClientBuilder }

// IndexField adds an index to the client that is being built.
func (f fields) IndexField(_ context.Context, object client.Object, field string, extract client.IndexerFunc) error {
	f.WithIndex(object, field, extract)
	return nil
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func (c *calm) record() *v1.AzureIdentityAttachment {
	return &v1.AzureIdentityAttachment{
		ObjectMeta: metav1.ObjectMeta{Namespace: "mic", Name: observe.RecordName(c.set), UID: "record"},
		Spec:       v1.AzureIdentityAttachmentSpec{ResourceID: c.set.String()},
	}
}

const identityPrefix = "/subscriptions/s/resourceGroups/g/providers/Microsoft.ManagedIdentity/userAssignedIdentities/"

// name makes an AzureIdentity anew.
func (c *calm) name(t *testing.T, identity string) {
	t.Helper()
	object := &v1.AzureIdentity{
		ObjectMeta: metav1.ObjectMeta{Namespace: "apps", Name: identity},
		Spec:       v1.AzureIdentitySpec{ResourceID: identityPrefix + identity, ClientID: "bbbbbbbb-0000-4000-8000-000000000001"},
	}
	must(t, client.IgnoreNotFound(c.cache.Delete(t.Context(), object.DeepCopy())))
	object.UID = uuid.NewUUID()
	must(t, c.cache.Create(t.Context(), object))
}

func pod(name string) *v1.AzureAssignedIdentity {
	return &v1.AzureAssignedIdentity{ObjectMeta: metav1.ObjectMeta{Namespace: "apps", Name: name, UID: types.UID(name)}}
}

// come gives a pod an identity, as the cache shows.
func (c *calm) come(t *testing.T, name, identity string) {
	t.Helper()
	a := pod(name)
	a.Spec = v1.AzureAssignedIdentitySpec{
		Pod: name, PodNamespace: "apps", NodeName: "node",
		AzureIdentityRef: &v1.AzureIdentity{Spec: v1.AzureIdentitySpec{ResourceID: identityPrefix + identity, ClientID: "bbbbbbbb-0000-4000-8000-000000000001"}},
	}
	must(t, c.cache.Create(t.Context(), a))
	c.changed(t.Context(), a)
}

func (c *calm) leave(t *testing.T, name string) {
	t.Helper()
	a := pod(name)
	must(t, c.cache.Get(t.Context(), client.ObjectKeyFromObject(a), a))
	must(t, c.cache.Delete(t.Context(), a))
	c.changed(t.Context(), a)
}

func (c *calm) needs(t *testing.T) []observe.Need {
	t.Helper()
	needs, err := c.observe.Needs(t.Context(), c.set)
	must(t, err)
	return needs
}

// tell says of all that they have their identity, and lets the cache show that.
func (c *calm) tell(t *testing.T) {
	t.Helper()
	needs := c.needs(t)
	must(t, c.report.Report(t.Context(), c.good(c.set, needs)))
	for _, need := range needs {
		c.changed(t.Context(), need.Assignment)
	}
}

// edit changes the record on one side.
func (c *calm) edit(t *testing.T, side client.Client) {
	t.Helper()
	record := c.record()
	must(t, side.Get(t.Context(), client.ObjectKeyFromObject(record), record))
	record.Spec.Owned = []v1.OwnedIdentity{{ResourceID: identityPrefix + "one", State: v1.OwnershipAttaching}}
	must(t, side.Update(t.Context(), record))
}

// TestDue: what is there is said of newcomers without a look at all, for as long as
// nothing is different that it was decided by.
func TestDue(t *testing.T) {
	for name, test := range map[string]struct {
		happens func(*testing.T, *calm)
		covered bool
		due     []string
	}{
		"nothing":                        {func(*testing.T, *calm) {}, true, nil},
		"a newcomer":                     {func(t *testing.T, c *calm) { c.come(t, "d", "one") }, true, []string{"d"}},
		"a newcomer who was told":        {func(t *testing.T, c *calm) { c.come(t, "d", "one"); c.tell(t) }, true, nil},
		"a newcomer with a new identity": {func(t *testing.T, c *calm) { c.come(t, "d", "three") }, false, nil},
		"one of two goes":                {func(t *testing.T, c *calm) { c.leave(t, "a") }, true, nil},
		"an identity's last one goes":    {func(t *testing.T, c *calm) { c.leave(t, "c") }, false, nil},
		"both go":                        {func(t *testing.T, c *calm) { c.leave(t, "a"); c.leave(t, "b") }, false, nil},
		"one goes and one comes":         {func(t *testing.T, c *calm) { c.leave(t, "c"); c.come(t, "d", "two") }, true, []string{"d"}},
		"a newcomer of whom the cache does not show what was said": {func(t *testing.T, c *calm) {
			c.come(t, "d", "one")
			for _, need := range c.needs(t) {
				c.observe.Wrote(c.set, need.Assignment)
				c.changed(t.Context(), need.Assignment)
			}
		}, false, nil},
		"what was said of one is taken back": {func(t *testing.T, c *calm) {
			a := pod("a")
			must(t, c.cache.Get(t.Context(), client.ObjectKeyFromObject(a), a))
			a.Status.Status = v1.AssignedIDCreated
			must(t, c.cache.Update(t.Context(), a))
			c.changed(t.Context(), a)
		}, true, []string{"a"}},
		"the cache shows another record": {func(t *testing.T, c *calm) { c.edit(t, c.cache) }, false, nil},
		"the record is gone":             {func(t *testing.T, c *calm) { must(t, c.cache.Delete(t.Context(), c.record())) }, false, nil},
		"another leader has written the record, which the cache does not show": {func(t *testing.T, c *calm) {
			c.come(t, "d", "one")
			c.edit(t, c.server)
		}, false, nil},
		"somebody has deleted the record, which the cache does not show": {func(t *testing.T, c *calm) {
			c.come(t, "d", "one")
			must(t, c.server.Delete(t.Context(), c.record()))
		}, false, nil},
		"the AzureIdentity of a newcomer is another": {func(t *testing.T, c *calm) {
			c.come(t, "d", "one")
			c.name(t, "one")
		}, false, nil},
		"the AzureIdentity of one who was told is another": {func(t *testing.T, c *calm) {
			c.name(t, "one")
			a := pod("a")
			must(t, c.cache.Get(t.Context(), client.ObjectKeyFromObject(a), a))
			c.changed(t.Context(), a)
		}, false, nil},
		"the nodes are others": {func(_ *testing.T, c *calm) { c.observe.Doubt(c.set) }, false, nil},
	} {
		t.Run(name, func(t *testing.T) {
			c := newCalm(t)
			if _, covered, err := c.due(t.Context(), c.set, c.last); !covered || err != nil {
				t.Fatalf("before anything happens: %v, %v", covered, err)
			}
			test.happens(t, c)
			due, covered, err := c.due(t.Context(), c.set, c.last)
			must(t, err)
			var names []string
			for _, need := range due {
				names = append(names, need.Assignment.Name)
			}
			slices.Sort(names)
			if covered != test.covered || covered && !slices.Equal(names, test.due) {
				t.Errorf("covered %v, due %v", covered, names)
			}
		})
	}
}

// TestBrief: a brief pass says what is due and leaves the resource settled; one that
// is not enough leaves it to a whole pass, which decides anew.
func TestBrief(t *testing.T) {
	for name, test := range map[string]struct {
		happens       func(*testing.T, *calm)
		done, settled bool
		back          time.Duration
	}{
		"nothing":             {func(*testing.T, *calm) {}, true, true, 30 * time.Second},
		"a newcomer":          {func(t *testing.T, c *calm) { c.come(t, "d", "one") }, true, true, 30 * time.Second},
		"something to do":     {func(t *testing.T, c *calm) { c.leave(t, "c") }, false, false, 0},
		"a whole pass failed": {func(_ *testing.T, c *calm) { c.views.unsettle(c.set) }, false, false, 0},
		"ARM was not asked":   {func(_ *testing.T, c *calm) { c.views.forget(c.set) }, false, false, 0},
		"the cache is outrun": {outrun, true, false, cacheLag},
		"it is too long ago": {func(_ *testing.T, c *calm) {
			c.options.Now = func() time.Time { return time.Unix(1000, 0).Add(viewAge) }
		}, false, false, 0},
		"nobody is to be told": {func(t *testing.T, c *calm) { c.leave(t, "a") }, true, true, 30 * time.Second},
	} {
		t.Run(name, func(t *testing.T) {
			c := newCalm(t)
			now := time.Unix(1000, 0)
			c.options.Now = func() time.Time { return now }
			c.last.back = now.Add(30 * time.Second)
			c.views.set(c.set, view{at: now})
			c.views.settle(c.set, c.last)
			test.happens(t, c)
			result, done, err := c.brief(t.Context(), c.set)
			must(t, err)
			if done != test.done || result.RequeueAfter != test.back {
				t.Errorf("done %v, back after %s", done, result.RequeueAfter)
			}
			if left := c.views.unsettle(c.set); (left != nil) != test.settled {
				t.Errorf("left settled: %v", left)
			}
			var a v1.AzureAssignedIdentity
			err = c.cache.Get(t.Context(), client.ObjectKey{Namespace: "apps", Name: "d"}, &a)
			if err == nil && test.settled && a.Status.Status != v1.AssignedIDAssigned {
				t.Errorf("the newcomer is %q", a.Status.Status)
			}
		})
	}
}

// outrun has somebody change an assignment between the look at it and the write.
func outrun(t *testing.T, c *calm) {
	c.come(t, "d", "one")
	stale := c.observe.Lookup.Reader
	c.observe.Lookup.Reader = older{stale}
}

// older is a cache that shows assignments in a version that the API server does not
// have any more.
type older struct{ client.Reader }

func (o older) Get(ctx context.Context, key client.ObjectKey, object client.Object, options ...client.GetOption) error {
	err := o.Reader.Get(ctx, key, object, options...)
	if a, ok := object.(*v1.AzureAssignedIdentity); ok {
		a.ResourceVersion = "0"
	}
	return err
}

func TestIsSettled(t *testing.T) {
	id, err := armid.Parse(identityPrefix + "one")
	must(t, err)
	for name, test := range map[string]struct {
		change func(*pass)
		want   bool
	}{
		"all as it should be":               {func(*pass) {}, true},
		"an operation runs":                 {func(p *pass) { p.wait = true }, false},
		"a pause":                           {func(p *pass) { p.paused = time.Second }, false},
		"ARM asks to wait":                  {func(p *pass) { p.keepOff = &metav1.Time{} }, false},
		"a refused identity is to be tried": {func(p *pass) { p.again = time.Unix(1, 0) }, false},
		"a refused identity":                {func(p *pass) { p.quarantine.Refused = map[armid.ID]quarantine.Refusal{id: {}} }, false},
		"a suspected identity":              {func(p *pass) { p.quarantine.Unsure = []armid.ID{id} }, false},
		"ARM has yet to show an identity":   {func(p *pass) { p.unconfirmed = map[armid.ID][]string{id: nil} }, false},
		"a failure":                         {func(p *pass) { p.failure = errors.New("odd") }, false},
		"no record":                         {func(p *pass) { p.record.UID = "" }, false},
		"nothing seen":                      {func(p *pass) { p.said = nil }, false},
		"a patch to send":                   {func(p *pass) { p.said.Patch = &compute.Patch{} }, false},
		"a pod waits":                       {func(p *pass) { p.said.Pending = []armid.ID{id} }, false},
		"another client ID":                 {func(p *pass) { p.said.Estranged = map[armid.ID]*plan.Estranged{id: {}} }, false},
	} {
		p := &pass{record: &v1.AzureIdentityAttachment{ObjectMeta: metav1.ObjectMeta{UID: "u"}}, said: &plan.Plan{There: []armid.ID{id}}}
		test.change(p)
		if got := p.isSettled(); got != test.want {
			t.Errorf("%s: %v", name, got)
		}
	}
}

// TestSettle: what is kept is of the view that it was decided by.
func TestSettle(t *testing.T) {
	set, now := ref(t, setID), time.Unix(1000, 0)
	id, err := armid.Parse(identityPrefix + "one")
	must(t, err)
	v := newViews(0)
	p := &pass{
		Reconciler: &Reconciler{views: v, options: Options{Now: func() time.Time { return now }}}, ref: set,
		record: &v1.AzureIdentityAttachment{ObjectMeta: metav1.ObjectMeta{UID: "u", ResourceVersion: "7"}},
		said:   &plan.Plan{There: []armid.ID{id}}, named: map[armid.ID]plan.Naming{id: {Objects: []string{"o"}}},
	}
	if p.settle(time.Minute); v.unsettle(set) != nil {
		t.Error("settled without a view")
	}
	v.set(set, view{at: now})
	p.settle(time.Minute)
	got := v.unsettle(set)
	want := &settled{record: "7", there: map[armid.ID]plan.Naming{id: {Objects: []string{"o"}}}, back: now.Add(time.Minute)}
	if diff := cmp.Diff(want, got, cmp.AllowUnexported(settled{}), cmp.Comparer(func(a, b armid.ID) bool { return a == b })); diff != "" {
		t.Error(diff)
	}
	if v.unsettle(set) != nil {
		t.Error("it is taken twice")
	}
	p.settle(0)
	v.set(set, view{at: now})
	if v.unsettle(set) != nil {
		t.Error("it outlives its view")
	}
}
