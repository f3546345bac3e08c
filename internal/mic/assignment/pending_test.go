package assignment

import (
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	v1 "github.com/aad-pod-identity/aad-pod-identity/api/v1"
	"github.com/aad-pod-identity/aad-pod-identity/internal/identity"
)

func TestPending(t *testing.T) {
	pod, other := identity.Key{Namespace: "ns", Name: "web"}, identity.Key{Namespace: "ns", Name: "db"}
	start := time.Unix(1_700_000_000, 0)
	object := func(uid types.UID, version string) *v1.AzureAssignedIdentity {
		return &v1.AzureAssignedIdentity{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "web-ns-demo", UID: uid, ResourceVersion: version}}
	}
	deleting := object("u", "12")
	deleting.DeletionTimestamp = &metav1.Time{Time: start}
	for name, test := range map[string]struct {
		note   func(*pending)
		cached *v1.AzureAssignedIdentity
		after  time.Duration
		want   time.Duration
	}{
		"nothing was written":                           {},
		"another pod's write":                           {note: func(p *pending) { p.wrote(other, object("u", "10"), start) }},
		"a create that the cache does not show":         {note: func(p *pending) { p.wrote(pod, object("u", "10"), start) }, want: patience},
		"it has waited some of the time":                {note: func(p *pending) { p.wrote(pod, object("u", "10"), start) }, after: time.Second, want: patience - time.Second},
		"the cache shows it":                            {note: func(p *pending) { p.wrote(pod, object("u", "10"), start) }, cached: object("u", "10")},
		"the cache is ahead, by a version more digits":  {note: func(p *pending) { p.wrote(pod, object("u", "9"), start) }, cached: object("u", "10")},
		"an update that the cache does not show":        {note: func(p *pending) { p.wrote(pod, object("u", "11"), start) }, cached: object("u", "10"), want: patience},
		"a deletion that the cache does not show":       {note: func(p *pending) { p.deleted(pod, object("u", "10"), start) }, cached: object("u", "10"), want: patience},
		"the cache shows it gone":                       {note: func(p *pending) { p.deleted(pod, object("u", "10"), start) }},
		"the cache shows the next of the name":          {note: func(p *pending) { p.deleted(pod, object("u", "10"), start) }, cached: object("v", "12")},
		"somebody's finalizer holds what is deleted":    {note: func(p *pending) { p.deleted(pod, object("u", "10"), start) }, cached: deleting},
		"somebody undid it before the cache showed it":  {note: func(p *pending) { p.wrote(pod, object("u", "10"), start) }, after: patience},
		"a deletion takes the place of an older create": {note: func(p *pending) { p.wrote(pod, object("u", "10"), start); p.deleted(pod, object("u", "10"), start) }},
		"an event showed a write that is undone since":  {note: func(p *pending) { p.wrote(pod, object("u", "10"), start); p.shown(pod, object("u", "12")) }},
		"an event of before the write": {
			note: func(p *pending) { p.wrote(pod, object("u", "10"), start); p.shown(pod, object("u", "9")) }, want: patience,
		},
		"an event of before a deletion": {
			note:   func(p *pending) { p.deleted(pod, object("u", "10"), start); p.shown(pod, object("u", "10")) },
			cached: object("u", "10"), want: patience,
		},
		"an event of another pod's": {
			note: func(p *pending) { p.wrote(pod, object("u", "10"), start); p.shown(other, object("u", "12")) }, want: patience,
		},
	} {
		t.Run(name, func(t *testing.T) {
			var p pending
			if test.note != nil {
				test.note(&p)
			}
			var cached []*v1.AzureAssignedIdentity
			if test.cached != nil {
				cached = append(cached, test.cached)
			}
			if got := p.wait(pod, cached, start.Add(test.after)); got != test.want {
				t.Errorf("waits %s, want %s", got, test.want)
			}
			if test.want == 0 && len(p.writes[pod]) != 0 {
				t.Errorf("what was seen is remembered: %v", p.writes)
			}
		})
	}
}
