package settings

import (
	"fmt"

	"github.com/aad-pod-identity/aad-pod-identity/internal/azuresim/timing"
)

// IMDS are the settings of the metadata service, the same for every node.
type IMDS struct {
	// Latency is how long it thinks before it answers.
	Latency timing.Range `json:"latency,omitzero"`
	// Limits are nil where nothing is limited. In the zero value every limit is
	// the documented one.
	Limits *IMDSLimits `json:"limits,omitempty"`
	// TokenCache: as the platform does, a node gets the same token again for an
	// identity and resource until little of its life is left, unless it asks with
	// bypass_cache=true.
	TokenCache bool `json:"tokenCache,omitempty"`
}

// IMDSLimits are those of one node. Whatever is nil is the documented one; 0 does
// not limit.
type IMDSLimits struct {
	IdentityPerSecond  *int `json:"identityPerSecond,omitempty"`  // 20, in any second
	IdentityConcurrent *int `json:"identityConcurrent,omitempty"` // 5
	OtherPerSecond     *int `json:"otherPerSecond,omitempty"`     // 5, in any second
}

// Full returns l with the documented limit for every nil one.
func (l IMDSLimits) Full() IMDSLimits {
	full := IMDSLimits{IdentityPerSecond: new(20), IdentityConcurrent: new(5), OtherPerSecond: new(5)}
	override(&full.IdentityPerSecond, l.IdentityPerSecond)
	override(&full.IdentityConcurrent, l.IdentityConcurrent)
	override(&full.OtherPerSecond, l.OtherPerSecond)
	return full
}

func (i IMDS) validate() error {
	if i.Limits == nil {
		return nil
	}
	full := i.Limits.Full()
	for name, n := range map[string]*int{
		"identityPerSecond": full.IdentityPerSecond, "identityConcurrent": full.IdentityConcurrent, "otherPerSecond": full.OtherPerSecond,
	} {
		if *n < 0 {
			return fmt.Errorf("imds.limits.%s is %d: want a number above zero, or zero for no limit", name, *n)
		}
	}
	return nil
}
