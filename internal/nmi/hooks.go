package nmi

import (
	"fmt"
	"net/http"
	"net/netip"
	"slices"
	"strings"
	"time"

	"k8s.io/client-go/rest"

	"github.com/aad-pod-identity/aad-pod-identity/internal/nmi/options"
	"github.com/aad-pod-identity/aad-pod-identity/internal/nmi/redirect"
	"github.com/aad-pod-identity/aad-pod-identity/internal/nmi/selfprobe"
	"github.com/aad-pod-identity/aad-pod-identity/internal/nmi/server"
)

// Options are what a user sets, and what tests put in the place of the world. Use
// [NewOptions], then AddFlags.
type Options struct {
	options.Options

	// For tests: zero values are the real thing.
	rest        *rest.Config
	entra       http.RoundTripper
	newRedirect func(redirect.Config) (redirector, error)
	// newProber must be set where newRedirect is, or nothing is tried.
	newProber func() (selfprobe.Trier, error)
	listening func(api, probes, metrics netip.AddrPort)
	synced    func()
	now       func() time.Time // of the staleness of watches
}

// NewOptions returns the defaults; see [options.New].
func NewOptions() *Options { return &Options{Options: *options.New()} }

// config validates what the stages know of, too.
func (o *Options) config() (options.Config, error) {
	for _, name := range o.AllowedMetadata {
		if !slices.Contains(server.Listable(), name) {
			return options.Config{}, fmt.Errorf("--allowed-metadata holds %q: want some of %s", name, strings.Join(server.Listable(), ", "))
		}
	}
	known := o.Options
	known.ListenAddress = redirect.ListenAddress(known.ListenAddress, known.RedirectTarget == "link")
	return known.Config()
}
