//go:build e2e

package lab_test

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/watch"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/aad-pod-identity/aad-pod-identity/test/objects"
)

// BenchmarkAddressFreeBeforeTheAPISaysSo measures, with a real kubelet and CNI, for
// how long the API shows a pod at an address that the node can give to another: from
// the end of the pod's link until a watch tells of the pod's own. For so long a
// caller is taken for its predecessor where nothing but addresses can be looked at
// (proof ip-only).
//
//	go test -tags e2e -run '^$' -bench AddressFree -benchtime 20x ./test/lab
func BenchmarkAddressFreeBeforeTheAPISaysSo(b *testing.B) {
	for _, node := range disrupted() {
		b.Run(node, func(b *testing.B) {
			var windows []time.Duration
			for b.Loop() {
				windows = append(windows, freeBeforeSaid(b, node))
			}
			slices.Sort(windows)
			b.ReportMetric(float64(windows[len(windows)/2].Milliseconds()), "ms-median")
			b.ReportMetric(float64(windows[len(windows)-1].Milliseconds()), "ms-most")
			b.ReportMetric(0, "ns/op") // says nothing here
		})
	}
}

func freeBeforeSaid(b *testing.B, node string) time.Duration {
	b.Helper()
	ctx, cancel := context.WithTimeout(b.Context(), time.Minute)
	defer cancel()
	pod := newPod("default", fmt.Sprintf("window-%d", time.Now().UnixNano()), "", node)
	*pod.Spec.TerminationGracePeriodSeconds = 1 // with none the API forgets it at once
	fail(b, lab.Kube.Create(ctx, pod))
	_, err := objects.Await(ctx, lab.Kube, &corev1.PodList{}, func(p *corev1.Pod) bool {
		return p.Name == pod.Name && p.Status.Phase == corev1.PodRunning && p.Status.PodIP != ""
	}, client.InNamespace(pod.Namespace))
	fail(b, err)
	links := linksOf(ctx, b, node)
	pods, err := lab.Kube.Watch(ctx, &corev1.PodList{}, client.InNamespace(pod.Namespace))
	fail(b, err)
	defer pods.Stop()
	fail(b, lab.Kube.Delete(ctx, pod))
	var free time.Time
	for {
		select {
		case link := <-links:
			if link.Header.Type == unix.RTM_DELLINK && link.Type() == "veth" && free.IsZero() {
				free = time.Now()
			}
		case event := <-pods.ResultChan():
			if told, ok := event.Object.(*corev1.Pod); ok && told.Name == pod.Name && (event.Type == watch.Deleted || ended(told)) {
				if free.IsZero() {
					return 0 // the API said so before
				}
				return time.Since(free)
			}
		case <-ctx.Done():
			b.Fatal(ctx.Err())
		}
	}
}

// ended pods hold no address, as NMI reads it.
func ended(pod *corev1.Pod) bool {
	return pod.Status.Phase == corev1.PodSucceeded || pod.Status.Phase == corev1.PodFailed
}

// linksOf returns what a node's kernel says of links.
func linksOf(ctx context.Context, b *testing.B, node string) <-chan netlink.LinkUpdate {
	b.Helper()
	text, err := os.ReadFile(filepath.Join(lab.dir, "process", node+".json"))
	fail(b, err)
	var process struct{ PID int }
	fail(b, json.Unmarshal(text, &process))
	inside, err := netns.GetFromPid(process.PID)
	fail(b, err)
	updates := make(chan netlink.LinkUpdate, 64)
	fail(b, netlink.LinkSubscribeAt(inside, updates, ctx.Done()))
	fail(b, inside.Close())
	return updates
}

func fail(b *testing.B, err error) {
	b.Helper()
	if err != nil {
		b.Fatal(err)
	}
}
