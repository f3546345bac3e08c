package options

import (
	"fmt"

	"github.com/spf13/pflag"
)

// Limits are what a user sets of limits: what the metadata service takes
// from a node, and what the agent takes from pods.
type Limits struct {
	// TokensPerSecond and TokensAtOnce bound token requests to the metadata
	// service, MetadataPerSecond all others.
	TokensPerSecond, TokensAtOnce, MetadataPerSecond int
	// PodPerSecond and PodAtOnce bound the requests of one pod, NodeAtOnce those
	// of all.
	PodPerSecond, PodAtOnce, NodeAtOnce int
}

// defaultLimits are the documented ones of the metadata service, and for pods
// some that no program reaches which keeps its tokens.
func defaultLimits() Limits {
	return Limits{TokensPerSecond: 20, TokensAtOnce: 5, MetadataPerSecond: 5, PodPerSecond: 200, PodAtOnce: 64, NodeAtOnce: 1024}
}

// limits lists the options with their flags.
func (o *Limits) limits() []limitFlag {
	return []limitFlag{
		{&o.TokensPerSecond, "imds-token-rate", "token requests a second that the metadata service takes from a node"},
		{&o.TokensAtOnce, "imds-token-concurrency", "token requests that the metadata service takes from a node at once"},
		{&o.MetadataPerSecond, "imds-metadata-rate", "other requests a second that the metadata service takes from a node"},
		{&o.PodPerSecond, "pod-request-rate", "requests a second that a pod may make on average; for a moment twice as many"},
		{&o.PodAtOnce, "pod-concurrency", "requests that a pod may have under way"},
		{&o.NodeAtOnce, "node-concurrency", "requests that all pods of the node may have under way; beyond, each pod may have one"},
	}
}

type limitFlag struct {
	value       *int
	name, usage string
}

func (o *Limits) addFlags(f *pflag.FlagSet) {
	for _, l := range o.limits() {
		f.IntVar(l.value, l.name, *l.value, l.usage)
	}
}

// maxLimit bounds the limits: beyond it there is none to speak of.
const maxLimit = 1 << 20

func (o *Limits) check() error {
	for _, l := range o.limits() {
		if *l.value < 1 || *l.value > maxLimit {
			return fmt.Errorf("--%s is %d: want 1 to %d", l.name, *l.value, maxLimit)
		}
	}
	return nil
}
