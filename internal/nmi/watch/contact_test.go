package watch

import (
	"context"
	"errors"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/tools/cache"
)

// listened is a contact before an API server that answers as a test says.
func listened(list runtime.Object, events watch.Interface, err error) (*contact, *cache.ListWatch) {
	c := &contact{now: time.Now}
	return c, c.listen(&cache.ListWatch{
		ListWithContextFunc:  func(context.Context, metav1.ListOptions) (runtime.Object, error) { return list, err },
		WatchFuncWithContext: func(context.Context, metav1.ListOptions) (watch.Interface, error) { return events, err },
	})
}

func (c *contact) ever() bool {
	_, ever := c.age(time.Now())
	return ever
}

func TestWhichListsAreASignOfLife(t *testing.T) {
	for name, test := range map[string]struct {
		list runtime.Object
		err  error
		want bool
	}{
		"a whole one":                     {&corev1.PodList{}, nil, true},
		"a page of which more are coming": {&corev1.PodList{ListMeta: metav1.ListMeta{Continue: "more"}}, nil, false},
		"none":                            {nil, errors.New("connection refused"), false},
	} {
		t.Run(name, func(t *testing.T) {
			c, lister := listened(test.list, nil, test.err)
			if _, err := lister.ListWithContext(t.Context(), metav1.ListOptions{}); !errors.Is(err, test.err) || c.ever() != test.want {
				t.Errorf("got %v, contact %v", err, c.ever())
			}
		})
	}
}

func TestWhichEventsAreASignOfLife(t *testing.T) {
	begin := true
	for name, test := range map[string]struct {
		options metav1.ListOptions
		events  []watch.EventType
		want    bool
	}{
		"a watch that is open and silent": {metav1.ListOptions{}, nil, false},
		"an object":                       {metav1.ListOptions{}, []watch.EventType{watch.Modified}, true},
		"a bookmark":                      {metav1.ListOptions{}, []watch.EventType{watch.Bookmark}, true},
		"an error":                        {metav1.ListOptions{}, []watch.EventType{watch.Error}, false},
		"one of the objects that are there at first": {metav1.ListOptions{SendInitialEvents: &begin}, []watch.EventType{watch.Added, watch.Added}, false},
		"the last of them":                           {metav1.ListOptions{SendInitialEvents: &begin}, []watch.EventType{watch.Added, watch.Bookmark}, true},
	} {
		t.Run(name, func(t *testing.T) {
			source := watch.NewFakeWithChanSize(len(test.events), false)
			for _, kind := range test.events {
				source.Action(kind, &corev1.Pod{})
			}
			c, lister := listened(nil, source, nil)
			events, err := lister.WatchWithContext(t.Context(), test.options)
			if err != nil {
				t.Fatal(err)
			}
			defer events.Stop()
			for _, want := range test.events {
				if got := <-events.ResultChan(); got.Type != want {
					t.Errorf("got %s, want %s", got.Type, want)
				}
			}
			if c.ever() != test.want {
				t.Errorf("contact %v", c.ever())
			}
		})
	}
}

func TestAWatchThatIsRefusedIsNoSignOfLife(t *testing.T) {
	refused := errors.New("connection refused")
	c, lister := listened(nil, nil, refused)
	if _, err := lister.WatchWithContext(t.Context(), metav1.ListOptions{}); !errors.Is(err, refused) || c.ever() {
		t.Errorf("got %v, contact %v", err, c.ever())
	}
}

// The bubble ends only when all its goroutines have.
func TestAWatchThatIsStoppedLeavesNothingBehind(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		for _, ends := range []func(watch.Interface, *watch.FakeWatcher){
			func(events watch.Interface, _ *watch.FakeWatcher) { events.Stop(); events.Stop() },
			func(events watch.Interface, source *watch.FakeWatcher) { source.Stop(); <-events.ResultChan() },
		} {
			source := watch.NewFakeWithChanSize(1, false)
			c, lister := listened(nil, source, nil)
			events, err := lister.WatchWithContext(t.Context(), metav1.ListOptions{})
			if err != nil {
				t.Fatal(err)
			}
			source.Add(&corev1.Pod{})
			synctest.Wait() // nobody takes it
			if !c.ever() {
				t.Error("the event was not noticed")
			}
			ends(events, source)
			for range events.ResultChan() {
			}
		}
	})
}

func TestWhatIsStale(t *testing.T) {
	now := time.Unix(1_700_000_000, 0)
	s := unconnected(t, false)
	s.now, s.maxStaleness = func() time.Time { return now }, time.Hour
	for _, contact := range s.contacts {
		contact.now = s.now
	}
	want := func(kinds ...string) {
		t.Helper()
		if got := s.Stale(); !slices.Equal(got, kinds) {
			t.Errorf("got %v, want %v", got, kinds)
		}
	}
	want() // what was never seen is unsynced
	s.contacts["pods"].made()
	now = now.Add(30 * time.Minute)
	s.contacts["azureidentities"].made()
	now = now.Add(30 * time.Minute)
	want()
	now = now.Add(time.Nanosecond)
	want("pods")
	now = now.Add(time.Hour)
	want("azureidentities", "pods")
	if ages := s.Ages(); len(ages) != 2 || ages["azureidentities"] != 90*time.Minute+1 {
		t.Errorf("ages %v", ages)
	}
	s.contacts["azureidentities"].made()
	want("pods")
	s.maxStaleness = 0
	want()
}
