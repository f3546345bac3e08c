package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"strings"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/yaml"

	v1 "github.com/aad-pod-identity/aad-pod-identity/api/v1"
	"github.com/aad-pod-identity/aad-pod-identity/test/objects"
)

// trustLab makes a pod of images that are one program trust the lab's Azure. In
// a cluster in Azure there is nothing to add.
func trustLab(spec *corev1.PodSpec) {
	c := &spec.Containers[0]
	c.ImagePullPolicy = corev1.PullNever
	c.Env = append(c.Env, corev1.EnvVar{Name: "SSL_CERT_DIR", Value: "/lab-azure-ca"})
	c.VolumeMounts = append(c.VolumeMounts, corev1.VolumeMount{Name: "lab-azure-ca", MountPath: "/lab-azure-ca", ReadOnly: true})
	spec.Volumes = append(spec.Volumes, corev1.Volume{Name: "lab-azure-ca", VolumeSource: corev1.VolumeSource{
		ConfigMap: &corev1.ConfigMapVolumeSource{LocalObjectReference: corev1.LocalObjectReference{Name: "lab-azure-ca"}},
	}})
}

// clear removes the pods of an earlier showing in a lab that was kept, and waits
// until MIC has taken their identity off the node.
func (d *demo) clear(ctx context.Context) error {
	for _, object := range []client.Object{
		&appsv1.Deployment{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "demo"}},
		&corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "stranger"}},
	} {
		if err := d.lab.Kube.Delete(ctx, object, client.PropagationPolicy(metav1.DeletePropagationForeground), client.GracePeriodSeconds(0)); client.IgnoreNotFound(err) != nil {
			return fmt.Errorf("removing what an earlier demo left: %w", err)
		}
	}
	if out, err := d.lab.Kubectl(ctx, "wait", "--for=delete", "deployment/demo", "pod/stranger", "--timeout=60s"); err != nil {
		return fmt.Errorf("waiting for the end of an earlier demo's pods: %w: %s", err, out)
	}
	var attachments v1.AzureIdentityAttachmentList
	if err := d.lab.Kube.List(ctx, &attachments); err != nil {
		return fmt.Errorf("listing attachments: %w", err)
	}
	for i := range attachments.Items {
		name := attachments.Items[i].Name
		if _, err := objects.Await(ctx, d.lab.Kube, &v1.AzureIdentityAttachmentList{}, func(a *v1.AzureIdentityAttachment) bool {
			return a.Name == name && len(a.Spec.Owned) == 0
		}); err != nil {
			return fmt.Errorf("waiting for the identity of an earlier demo to be detached: %w", err)
		}
	}
	return nil
}

// deploy applies the tutorial's Deployment.
func (d *demo) deploy(ctx context.Context) error {
	deployment := &appsv1.Deployment{}
	if err := yaml.UnmarshalStrict([]byte(d.example("deployment.yaml")), deployment); err != nil {
		return fmt.Errorf("reading the tutorial's Deployment: %w", err)
	}
	spec := &deployment.Spec.Template.Spec
	trustLab(spec)
	spec.Containers[0].Args = append(spec.Containers[0].Args, "--show-value")
	if err := d.lab.Kube.Create(ctx, deployment); err != nil {
		return fmt.Errorf("creating the Deployment: %w", err)
	}
	return nil
}

// follow reads the log of a pod, once it runs, line by line until it ends.
func (d *demo) follow(ctx context.Context, pod string, line func(string)) error {
	started := func(p *corev1.Pod) bool { return p.Name == pod && p.Status.Phase != corev1.PodPending }
	if _, err := objects.Await(ctx, d.lab.Kube, &corev1.PodList{}, started, client.InNamespace("default")); err != nil {
		return fmt.Errorf("waiting for pod %s: %w", pod, err)
	}
	clients, err := kubernetes.NewForConfig(d.lab.Config)
	if err != nil {
		return fmt.Errorf("connecting to the API server: %w", err)
	}
	stream, err := clients.CoreV1().Pods("default").GetLogs(pod, &corev1.PodLogOptions{Follow: true}).Stream(ctx)
	if err != nil {
		return fmt.Errorf("reading the log of pod %s: %w", pod, err)
	}
	defer stream.Close()
	return lines(stream, line)
}

func lines(r io.Reader, line func(string)) error {
	scanner := bufio.NewScanner(r)
	for scanner.Scan() {
		line(scanner.Text())
	}
	return scanner.Err()
}

// stranger runs the program in a pod that nothing selects. It must be refused,
// and told why.
func (d *demo) stranger(ctx context.Context) error {
	pod := &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "stranger"},
		Spec: corev1.PodSpec{RestartPolicy: corev1.RestartPolicyNever, Containers: []corev1.Container{{
			Name: "demo", Image: demoImage, Args: []string{"--vault-url=" + vaultURL, "--client-id=" + d.cloud.identity.ClientID, "--timeout=60s"},
		}}},
	}
	trustLab(&pod.Spec)
	if err := d.lab.Kube.Create(ctx, pod); err != nil {
		return fmt.Errorf("creating pod stranger: %w", err)
	}
	var all strings.Builder
	if err := d.follow(ctx, "stranger", func(line string) {
		fmt.Fprintln(&all, line)
		fmt.Fprintln(d.out, "   |", line)
	}); err != nil {
		return err
	}
	ended := func(p *corev1.Pod) bool {
		return p.Name == "stranger" && (p.Status.Phase == corev1.PodFailed || p.Status.Phase == corev1.PodSucceeded)
	}
	last, err := objects.Await(ctx, d.lab.Kube, &corev1.PodList{}, ended, client.InNamespace("default"))
	if err != nil {
		return fmt.Errorf("waiting for the end of pod stranger: %w", err)
	}
	if last.Status.Phase != corev1.PodFailed {
		return errors.New("the pod without a binding was not refused")
	}
	if text := all.String(); !strings.Contains(text, "Identity not found") || !strings.Contains(text, v1.PodLabel) {
		return errors.New("the refusal does not say why")
	}
	return nil
}
