package election_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/leaderelection"
	"k8s.io/client-go/tools/leaderelection/resourcelock"

	"github.com/aad-pod-identity/aad-pod-identity/internal/mic/election"
	"github.com/aad-pod-identity/aad-pod-identity/test/env"
)

const (
	lockName   = "aad-pod-identity-mic"
	annotation = "control-plane.alpha.kubernetes.io/leader"
	patience   = time.Minute
	// duration is what both kinds of controller are started with.
	duration = 6 * time.Second
)

// cluster is an API server; every test has a namespace of its own in it.
type cluster struct {
	config *rest.Config
	kube   kubernetes.Interface
	ns     string
}

func newCluster(t *testing.T) cluster {
	t.Helper()
	config := env.Start(t)
	config.QPS = -1
	config.WarningHandler = rest.NoWarnings{}
	kube, err := kubernetes.NewForConfig(config)
	if err != nil {
		t.Fatal(err)
	}
	return cluster{config: config, kube: kube}
}

func (c cluster) namespace(t *testing.T, name string) cluster {
	t.Helper()
	c.ns = name
	if _, err := c.kube.CoreV1().Namespaces().Create(t.Context(), &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: name}}, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	return c
}

// oldLock is the lock of AAD Pod Identity's client library: the record in an
// annotation of Endpoints, and nothing else.
type oldLock struct {
	cluster
	identity string
	object   *corev1.Endpoints //nolint:staticcheck // the old controller's kind
}

// oldRecord is the record as that library knows it.
type oldRecord struct {
	HolderIdentity       string      `json:"holderIdentity"`
	LeaseDurationSeconds int         `json:"leaseDurationSeconds"`
	AcquireTime          metav1.Time `json:"acquireTime"`
	RenewTime            metav1.Time `json:"renewTime"`
	LeaderTransitions    int         `json:"leaderTransitions"`
}

func (l *oldLock) Get(ctx context.Context) (*resourcelock.LeaderElectionRecord, []byte, error) {
	var err error
	if l.object, err = l.kube.CoreV1().Endpoints(l.ns).Get(ctx, lockName, metav1.GetOptions{}); err != nil {
		return nil, nil, err
	}
	text := l.object.Annotations[annotation]
	var r oldRecord
	if text != "" {
		if err := json.Unmarshal([]byte(text), &r); err != nil {
			return nil, nil, err
		}
	}
	return &resourcelock.LeaderElectionRecord{
		HolderIdentity: r.HolderIdentity, LeaseDurationSeconds: r.LeaseDurationSeconds,
		AcquireTime: r.AcquireTime, RenewTime: r.RenewTime, LeaderTransitions: r.LeaderTransitions,
	}, []byte(text), nil
}

func (l *oldLock) text(r resourcelock.LeaderElectionRecord) map[string]string {
	text, err := json.Marshal(oldRecord{r.HolderIdentity, r.LeaseDurationSeconds, r.AcquireTime, r.RenewTime, r.LeaderTransitions})
	if err != nil {
		panic(err)
	}
	return map[string]string{annotation: string(text)}
}

func (l *oldLock) Create(ctx context.Context, r resourcelock.LeaderElectionRecord) error {
	object := &corev1.Endpoints{ObjectMeta: metav1.ObjectMeta{Name: lockName, Annotations: l.text(r)}} //nolint:staticcheck // the old controller's kind
	var err error
	l.object, err = l.kube.CoreV1().Endpoints(l.ns).Create(ctx, object, metav1.CreateOptions{})
	return err
}

func (l *oldLock) Update(ctx context.Context, r resourcelock.LeaderElectionRecord) error {
	if l.object == nil {
		return errors.New("get it first")
	}
	l.object.Annotations = l.text(r)
	var err error
	l.object, err = l.kube.CoreV1().Endpoints(l.ns).Update(ctx, l.object, metav1.UpdateOptions{})
	return err
}

func (l *oldLock) RecordEvent(string) {}
func (l *oldLock) Identity() string   { return l.identity }
func (l *oldLock) Describe() string   { return l.ns + "/" + lockName }

// candidate runs for the lead until it is killed or stopped.
type candidate struct {
	t       *testing.T
	leads   chan struct{} // closed when it leads
	ended   chan struct{}
	cancel  context.CancelFunc
	waiting chan string
	events  chan string
}

func newCandidate(t *testing.T) *candidate {
	return &candidate{t: t, waiting: make(chan string, 100), events: make(chan string, 100)}
}

// observer sees who leads when, and that nobody does beside another.
type observer struct {
	t  *testing.T
	mu sync.Mutex
	by string
}

func (o *observer) start(name string) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.by != "" {
		o.t.Errorf("%s leads beside %s", name, o.by)
	}
	o.by = name
}

func (o *observer) stop(name string) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.by == name {
		o.by = ""
	}
}

func (c *candidate) run(o *observer, lock resourcelock.Interface, timing election.Timing, release bool) *candidate {
	c.t.Helper()
	c.leads, c.ended = make(chan struct{}), make(chan struct{})
	ctx, cancel := context.WithCancel(c.t.Context())
	c.cancel = sync.OnceFunc(func() {
		o.stop(lock.Identity()) // before the lock is released
		cancel()
	})
	elector, err := leaderelection.NewLeaderElector(leaderelection.LeaderElectionConfig{
		Lock: lock, LeaseDuration: timing.Lease, RenewDeadline: timing.Renew, RetryPeriod: timing.Retry, ReleaseOnCancel: release,
		Callbacks: leaderelection.LeaderCallbacks{
			OnStartedLeading: func(ctx context.Context) {
				if ctx.Err() == nil {
					o.start(lock.Identity())
					close(c.leads)
				}
			},
			OnStoppedLeading: func() { o.stop(lock.Identity()) },
		},
	})
	if err != nil {
		c.t.Fatal(err)
	}
	go func() {
		elector.Run(ctx)
		close(c.ended)
	}()
	c.t.Cleanup(c.kill)
	return c
}

// old starts an old controller.
func (c cluster) old(t *testing.T, o *observer, name string) *candidate {
	t.Helper()
	timing := election.Timing{Lease: duration, Renew: duration / 2, Retry: duration / 4}
	return (&candidate{t: t}).run(o, &oldLock{cluster: c, identity: name}, timing, false)
}

// ours starts one of ours. Whoever kills it releases nothing.
func (c cluster) ours(t *testing.T, o *observer, name string, legacy, release bool) *candidate {
	t.Helper()
	out := newCandidate(t)
	lock, err := election.New(c.config, c.options(name, legacy, out))
	if err != nil {
		t.Fatal(err)
	}
	return out.run(o, lock, election.TimingFor(duration), release)
}

func (c cluster) options(name string, legacy bool, out *candidate) election.Options {
	return election.Options{
		Namespace: c.ns, Name: lockName, Identity: name, Timing: election.TimingFor(duration), Legacy: legacy,
		Say: func(lease *corev1.ObjectReference, reason, message string) {
			out.events <- fmt.Sprintf("%s/%s %t %s: %s", lease.Kind, lease.Name, lease.UID != "", reason, message)
		},
		Waiting: func(lease *corev1.ObjectReference, holder string) { out.waiting <- lease.Name + " " + holder },
	}
}

// kill ends it as its process's end does, or with a release if it was started so.
func (c *candidate) kill() {
	c.cancel()
	<-c.ended
}

func (c *candidate) mustLead(within time.Duration) time.Duration {
	c.t.Helper()
	start := time.Now()
	select {
	case <-c.leads:
	case <-time.After(within):
		c.t.Fatalf("it does not lead after %s", within)
	}
	return time.Since(start)
}

func (c *candidate) mustNotLead() {
	c.t.Helper()
	select {
	case <-c.leads:
		c.t.Error("it leads")
	default:
	}
}

// renewals waits until the old lock was written n times.
func (c cluster) renewals(t *testing.T, n int) {
	t.Helper()
	watcher, err := c.kube.CoreV1().Endpoints(c.ns).Watch(t.Context(), metav1.ListOptions{FieldSelector: fields.OneTermEqualSelector("metadata.name", lockName).String()})
	if err != nil {
		t.Fatal(err)
	}
	defer watcher.Stop()
	for range n {
		select {
		case <-watcher.ResultChan():
		case <-time.After(patience):
			t.Fatal("nobody writes the old lock")
		}
	}
}

func TestElection(t *testing.T) {
	c := newCluster(t)
	for name, play := range map[string]func(*testing.T, cluster, *observer){
		"an old leader is waited for":                       waitsForOld,
		"an old controller waits for ours":                  oldWaits,
		"ours ends without a word":                          oldTakesOver,
		"without the old lock, only the lease counts":       withoutLegacy,
		"a clock that is off counts for nothing":            skew,
		"an annotation that is no record":                   noRecord,
		"locks that somebody deletes":                       deleted,
		"a release gives up nothing that is somebody's":     releasesItsOwn,
		"the record is what the old one reads, and no more": record,
		"never two at once":                                 churn,
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			play(t, c.namespace(t, strings.Map(func(r rune) rune {
				if r < 'a' || r > 'z' {
					return '-'
				}
				return r
			}, name)), &observer{t: t})
		})
	}
}

func waitsForOld(t *testing.T, c cluster, o *observer) {
	old := c.old(t, o, "old")
	old.mustLead(patience)
	ours := c.ours(t, o, "ours", true, true)
	if got := <-ours.waiting; got != lockName+" old" {
		t.Errorf("told of %q", got)
	}
	c.renewals(t, 7) // more than a duration
	ours.mustNotLead()
	old.kill()
	ours.mustLead(2 * duration)
	if got := <-ours.events; got != "Lease/"+lockName+" true LeaderElection: ours became leader" {
		t.Errorf("event %q", got)
	}
	if len(ours.waiting) > 0 {
		t.Errorf("told again: %q", <-ours.waiting)
	}
}

func oldWaits(t *testing.T, c cluster, o *observer) {
	ours := c.ours(t, o, "ours", true, true)
	ours.mustLead(patience)
	old := c.old(t, o, "old")
	c.renewals(t, 20)
	old.mustNotLead()
	ours.kill() // releases both
	// The old one looks every 1.5 to 3.3 s and need not wait for a lease's end.
	if took := old.mustLead(patience); took >= duration {
		t.Errorf("the old controller waited %s after a release", took)
	}
	if again := c.ours(t, o, "again", true, true); <-again.waiting != lockName+" old" {
		t.Error("ours does not see that the old one is back")
	}
}

func oldTakesOver(t *testing.T, c cluster, o *observer) {
	ours := c.ours(t, o, "ours", true, false)
	ours.mustLead(patience)
	old := c.old(t, o, "old")
	c.renewals(t, 3)
	ours.kill()
	old.mustLead(3 * duration)
}

func withoutLegacy(t *testing.T, c cluster, o *observer) {
	first := c.ours(t, o, "first", false, true)
	first.mustLead(patience)
	if _, err := c.kube.CoreV1().Endpoints(c.ns).Get(t.Context(), lockName, metav1.GetOptions{}); !apierrors.IsNotFound(err) {
		t.Errorf("the old lock: %v, want none", err)
	}
	// A roll that changes the flag.
	second := c.ours(t, o, "second", true, true)
	first.kill()
	second.mustLead(2 * duration)
	third := c.ours(t, o, "third", false, true)
	c.renewals(t, 20)
	third.mustNotLead()
	second.kill()
	third.mustLead(2 * duration)
}

// skew: records are judged by when they change, not by what they say of time.
func skew(t *testing.T, c cluster, o *observer) {
	lock := &oldLock{cluster: c, identity: "old"}
	write := func(at time.Time, more func(context.Context, resourcelock.LeaderElectionRecord) error) {
		t.Helper()
		r := resourcelock.LeaderElectionRecord{HolderIdentity: "old", LeaseDurationSeconds: int(duration / time.Second), RenewTime: metav1.NewTime(at)}
		if err := more(t.Context(), r); err != nil {
			t.Fatal(err)
		}
	}
	write(time.Now().Add(-time.Hour), lock.Create)
	ours := c.ours(t, o, "ours", true, true)
	ticker := time.NewTicker(duration / 4)
	defer ticker.Stop()
	for i := range 6 {
		<-ticker.C
		write(time.Now().Add(time.Duration(i)*time.Second-time.Hour), lock.Update)
		ours.mustNotLead()
	}
	write(time.Now().Add(time.Hour), lock.Update)
	ours.mustLead(3 * duration)
}

func noRecord(t *testing.T, c cluster, o *observer) {
	object := &corev1.Endpoints{ObjectMeta: metav1.ObjectMeta{Name: lockName, Annotations: map[string]string{annotation: "{"}}} //nolint:staticcheck // the old controller's kind
	endpoints := c.kube.CoreV1().Endpoints(c.ns)
	if _, err := endpoints.Create(t.Context(), object, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	lock, err := election.New(c.config, c.options("x", true, newCandidate(t)))
	if err != nil {
		t.Fatal(err)
	}
	if _, _, err := lock.Get(t.Context()); err == nil || !strings.Contains(err.Error(), annotation) {
		t.Errorf("got %v, want words about the annotation", err)
	}
	ours := c.ours(t, o, "ours", true, true)
	delete(object.Annotations, annotation)
	if _, err := endpoints.Update(t.Context(), object, metav1.UpdateOptions{}); err != nil {
		t.Fatal(err)
	}
	ours.mustLead(patience)
}

func deleted(t *testing.T, c cluster, o *observer) {
	ours := c.ours(t, o, "ours", true, true)
	ours.mustLead(patience)
	if err := c.kube.CoreV1().Endpoints(c.ns).Delete(t.Context(), lockName, metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	c.renewals(t, 5)
	if err := c.kube.CoordinationV1().Leases(c.ns).Delete(t.Context(), lockName, metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	c.renewals(t, 15)
	select {
	case <-ours.ended:
		t.Error("it gave up")
	default:
	}
	if _, err := c.kube.CoordinationV1().Leases(c.ns).Get(t.Context(), lockName, metav1.GetOptions{}); err != nil {
		t.Error(err)
	}
}

func releasesItsOwn(t *testing.T, c cluster, _ *observer) {
	lock, err := election.New(c.config, c.options("ours", true, newCandidate(t)))
	if err != nil {
		t.Fatal(err)
	}
	mine := resourcelock.LeaderElectionRecord{HolderIdentity: "ours", LeaseDurationSeconds: 2}
	if _, _, err := lock.Get(t.Context()); !apierrors.IsNotFound(err) {
		t.Fatal(err)
	}
	if err := lock.Create(t.Context(), mine); err != nil {
		t.Fatal(err)
	}
	old := &oldLock{cluster: c, identity: "old"}
	if _, _, err := old.Get(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := old.Update(t.Context(), resourcelock.LeaderElectionRecord{HolderIdentity: "old", LeaseDurationSeconds: 2}); err != nil {
		t.Fatal(err)
	}
	if err := lock.Update(t.Context(), resourcelock.LeaderElectionRecord{LeaseDurationSeconds: 1}); !apierrors.IsConflict(err) {
		t.Errorf("got %v, want a conflict", err)
	}
	if _, _, err := lock.Get(t.Context()); err != nil { // as client-go does after a conflict
		t.Fatal(err)
	}
	if err := lock.Update(t.Context(), resourcelock.LeaderElectionRecord{LeaseDurationSeconds: 1}); err != nil {
		t.Error(err)
	}
	got, _, err := lock.Get(t.Context())
	if err != nil || got.HolderIdentity != "old" {
		t.Errorf("after a release %+v leads, %v", got, err)
	}
	lease, err := c.kube.CoordinationV1().Leases(c.ns).Get(t.Context(), lockName, metav1.GetOptions{})
	if err != nil || *lease.Spec.HolderIdentity != "" {
		t.Errorf("the lease is %v's, %v", lease.Spec.HolderIdentity, err)
	}
}

func record(t *testing.T, c cluster, o *observer) {
	c.ours(t, o, "ours", true, true).mustLead(patience)
	object, err := c.kube.CoreV1().Endpoints(c.ns).Get(t.Context(), lockName, metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	var got map[string]any
	if err := json.Unmarshal([]byte(object.Annotations[annotation]), &got); err != nil {
		t.Fatal(err)
	}
	for _, key := range []string{"acquireTime", "renewTime"} {
		if text, _ := got[key].(string); len(text) != len("2006-01-02T15:04:05Z") {
			t.Errorf("%s is %v", key, got[key])
		}
		delete(got, key)
	}
	want := map[string]any{"holderIdentity": "ours", "leaseDurationSeconds": 4.0, "leaderTransitions": 0.0}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("record (-want +got):\n%s", diff)
	}
}

// churn lets controllers of both kinds follow each other, with and without a
// word; the observer sees if two lead.
func churn(t *testing.T, c cluster, o *observer) {
	for i := range 3 {
		running := []*candidate{
			c.old(t, o, fmt.Sprint("old-a", i)), c.ours(t, o, fmt.Sprint("ours-a", i), true, i%2 == 0),
			c.ours(t, o, fmt.Sprint("ours-b", i), true, i%2 == 1), c.old(t, o, fmt.Sprint("old-b", i)),
		}
		for len(running) > 0 {
			at := firstToLead(t, running)
			c.renewals(t, 2)
			running[at].kill()
			running = append(running[:at], running[at+1:]...)
			if i == 0 || len(running) == 2 {
				break
			}
		}
		for _, rest := range running {
			rest.kill()
		}
	}
}

func firstToLead(t *testing.T, running []*candidate) int {
	t.Helper()
	first := make(chan int, len(running))
	for i, candidate := range running {
		go func() {
			select {
			case <-candidate.leads:
				first <- i
			case <-candidate.ended:
			}
		}()
	}
	select {
	case i := <-first:
		return i
	case <-time.After(patience):
		t.Fatal("nobody leads")
		return 0
	}
}
