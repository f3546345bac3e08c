package kube

import (
	"strings"

	corev1 "k8s.io/api/core/v1"
)

// The names that the API server makes up are the generateName and so many of these
// letters and digits, at random (k8s.io/apiserver, package names).
const (
	suffixLength  = 5
	suffixLetters = "bcdfghjklmnpqrstvwxz"
	suffixDigits  = "2456789"
)

// NamedOnce reports whether the API server made the pod's name up, so that hardly
// ever another pod has it after this one. A StatefulSet's pods have a generateName
// too, but end in their number; a random end that is a number is not told from one.
func NamedOnce(pod *corev1.Pod) bool {
	suffix, ok := strings.CutPrefix(pod.Name, pod.GenerateName)
	return ok && pod.GenerateName != "" && len(suffix) == suffixLength &&
		strings.Trim(suffix, suffixLetters+suffixDigits) == "" && strings.ContainsAny(suffix, suffixLetters)
}
