package options

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strings"
	"time"

	"github.com/spf13/pflag"
)

// Proof are what a user sets of how callers and the redirect are proven.
type Proof struct {
	// Shared serves pods that share a network segment on which nothing shows which
	// one asks.
	Shared bool
	// KubeletConfig is a file that may say that the node's network is kubenet's.
	KubeletConfig string
	// ProbeInterval is how often the redirect is tried; zero never tries it.
	ProbeInterval time.Duration
}

func defaultProof() Proof {
	return Proof{KubeletConfig: "/etc/default/kubelet", ProbeInterval: 10 * time.Second}
}

func (o *Proof) addFlags(f *pflag.FlagSet) {
	f.BoolVar(&o.Shared, "allow-network-plugin-kubenet", o.Shared,
		"serve pods that share a network segment on which nothing shows which one asks; a pod with NET_RAW can then take its neighbour's identity")
	f.StringVar(&o.KubeletConfig, "kubelet-config", o.KubeletConfig,
		"file with the kubelet's flags; if it names the network plugin kubenet, pods are taken to share a segment unless each has a port of its own. It need not exist")
	f.DurationVar(&o.ProbeInterval, "redirect-probe-interval", o.ProbeInterval,
		"how often the agent tries by a packet of its own that pods' requests come to it; 0 never does")
}

// Bounds of the interval between probes.
const minProbeInterval, maxProbeInterval = time.Second, 10 * time.Minute

func (o *Proof) check() error {
	if o.ProbeInterval != 0 && (o.ProbeInterval < minProbeInterval || o.ProbeInterval > maxProbeInterval) {
		return fmt.Errorf("--redirect-probe-interval is %s: want %s to %s, or 0 for none", o.ProbeInterval, minProbeInterval, maxProbeInterval)
	}
	return nil
}

// Kubenet reports whether KubeletConfig says that the network is kubenet's. A file that is there and cannot be
// read may say anything.
func (o *Proof) Kubenet() (bool, error) {
	text, err := os.ReadFile(o.KubeletConfig)
	switch {
	case o.KubeletConfig == "", errors.Is(err, fs.ErrNotExist):
		return false, nil
	case err != nil:
		return true, fmt.Errorf("reading --kubelet-config: %w", err)
	}
	return strings.Contains(string(text), "--network-plugin=kubenet"), nil
}
