// Package options is what a user sets of the agent: its flags, their defaults,
// and what they mean once they have been checked.
//
// It reads flags and the files that they name, and does nothing with them. What
// the agent is made of it must not know.
package options

import (
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"strings"
	"time"

	"github.com/spf13/pflag"

	"github.com/aad-pod-identity/aad-pod-identity/internal/azure/entra"
	"github.com/aad-pod-identity/aad-pod-identity/internal/identity"
	"github.com/aad-pod-identity/aad-pod-identity/internal/obs"
	"github.com/aad-pod-identity/aad-pod-identity/internal/startuptaint"
)

// Options are what a user sets. Names and defaults of the flags are those of AAD
// Pod Identity v1.8.17 where it had one. Use [New], then AddFlags.
type Options struct {
	Node string
	// Pod is the agent's own pod, NAMESPACE/NAME; empty if it is in none.
	Pod string
	// RedirectTarget is what holds the address that pods are led to: loopback or
	// link.
	RedirectTarget string
	ListenAddress  string
	Port           string
	MetadataIP     string
	MetadataPort   string
	ProbePort      string
	MetricsPort    string
	Kubeconfig     string
	// Upstream is the real metadata service, where it is not at MetadataIP.
	Upstream string

	Mode                  string
	Namespaced            bool
	BlockInstanceMetadata bool
	AllowedMetadata       []string
	MetadataHeader        bool
	RetryAfterHeader      bool
	ScaleFeatures         bool
	UserAgent             string
	Log                   obs.LogOptions
	// AuditEvery is how often the log says that a pod got a token that it had
	// got before; zero says it each time.
	AuditEvery time.Duration
	Principals Principals
	Limits     Limits
	Proof      Proof
	// ReportNamespace is where the node's report is written; empty writes none.
	ReportNamespace string

	// RuleIntervalSeconds is how often the redirect is looked at unasked.
	RuleIntervalSeconds int
	// AssignmentWait bounds how long a request waits for an assignment. The
	// three below, if any is set, bound it instead.
	AssignmentWait       time.Duration
	RetriesForCreated    int
	RetriesForAssigned   int
	RetryIntervalSeconds int
	// MaxStaleness is for how long pods are served from what was read when the
	// API server says nothing any more; zero is for ever.
	MaxStaleness time.Duration
	// StartupTaintKey is the key of the taint that the agent takes from its node
	// when it is ready; empty: none.
	StartupTaintKey string

	// Logger replaces the logger that Log describes; nil does not.
	Logger *slog.Logger
	// Version prints the version and ends.
	Version bool

	ignored []*pflag.Flag
	flags   *pflag.FlagSet
}

// The default retries of the old agent, which count as soon as one of them is
// set.
const (
	contractRetriesForCreated  = 16
	contractRetriesForAssigned = 4
	contractRetryInterval      = 5
)

// defaultAssignmentWait is far below the old agent's 80 to 100 seconds: SDKs ask
// again by themselves, and a connection that is held is a file descriptor of
// every pod's agent.
const defaultAssignmentWait = 4 * time.Second

// defaultAuditEvery keeps pods that do not keep their tokens from filling the log
// with one line over and over.
const defaultAuditEvery = 10 * time.Second

// minStaleness is more than twice the longest time between the bookmarks of a
// quiet watch: measured on an API server, 1 to 2 minutes.
const minStaleness = 5 * time.Minute

// New returns the defaults, with what the environment says: KUBECONFIG,
// FORCENAMESPACED and AZURE_ENVIRONMENT_FILEPATH, as they always were.
func New() *Options {
	return &Options{
		RedirectTarget: "loopback", ListenAddress: "127.0.0.1", Port: "2579",
		MetadataIP: "169.254.169.254", MetadataPort: "80",
		ProbePort: "8080", MetricsPort: "9090",
		Kubeconfig:           os.Getenv("KUBECONFIG"),
		Mode:                 "standard",
		Namespaced:           os.Getenv("FORCENAMESPACED") == "true",
		MetadataHeader:       true,
		ScaleFeatures:        true,
		RuleIntervalSeconds:  60,
		AssignmentWait:       defaultAssignmentWait,
		RetriesForCreated:    contractRetriesForCreated,
		RetriesForAssigned:   contractRetriesForAssigned,
		RetryIntervalSeconds: contractRetryInterval,
		Limits:               defaultLimits(),
		AuditEvery:           defaultAuditEvery,
		Proof:                defaultProof(),
		Principals:           Principals{SecretMaxAge: time.Minute, EnvironmentFile: os.Getenv(entra.EnvironmentFileVariable)},
	}
}

// AddFlags defines the flags.
func (o *Options) AddFlags(f *pflag.FlagSet) {
	o.flags = f
	f.StringVar(&o.Node, "node", o.Node, "name of the node that this agent runs on (required)")
	f.StringVar(&o.Pod, "pod", o.Pod, "this agent's own pod, NAMESPACE/NAME: if its DaemonSet is deleted when the agent ends, the rules go; without it they always stay")
	f.StringVar(&o.RedirectTarget, "redirect-target", o.RedirectTarget, "where pods' requests are led to: loopback, for which the node's links get route_localnet, behind a guard; or link, a link of the agent's own (aad-pod-id0), for which no setting of others' links is changed")
	f.StringVar(&o.ListenAddress, "nmi-listen-address", o.ListenAddress, "IPv4 address to serve pods on; with the target link a link-local one that the node does not have yet, 169.254.255.79 if none is given")
	f.StringVar(&o.Port, "nmi-port", o.Port, "port to serve pods on")
	f.StringVar(&o.MetadataIP, "metadata-ip", o.MetadataIP, "address of the metadata service, for the redirect and for requests to it")
	f.StringVar(&o.MetadataPort, "metadata-port", o.MetadataPort, "port of the metadata service")
	f.StringVar(&o.ProbePort, "http-probe-port", o.ProbePort, "port of /healthz and /readyz")
	f.StringVar(&o.MetricsPort, "prometheus-port", o.MetricsPort, "port of /metrics")
	f.StringVar(&o.Kubeconfig, "kubeconfig", o.Kubeconfig, "kubeconfig file; empty for the pod's own ServiceAccount")
	f.StringVar(&o.Mode, "operation-mode", o.Mode, "standard (the controller attaches identities) or managed (the operator does)")
	f.BoolVar(&o.Namespaced, "forceNamespaced", o.Namespaced, "restrict every identity to pods of its own namespace; managed mode always does")
	f.BoolVar(&o.BlockInstanceMetadata, "block-instance-metadata", o.BlockInstanceMetadata, "refuse /metadata/instance to pods")
	f.StringSliceVar(&o.AllowedMetadata, "allowed-metadata", o.AllowedMetadata, "what every pod may read below /metadata beside instance: attested, scheduledevents")
	f.BoolVar(&o.MetadataHeader, "metadata-header-required", o.MetadataHeader, "refuse requests without the header Metadata: true")
	f.BoolVar(&o.RetryAfterHeader, "set-retry-after-header", o.RetryAfterHeader, "answer what is not there yet with 503 and Retry-After: 20 instead of 404")
	f.BoolVar(&o.ScaleFeatures, "enableScaleFeatures", o.ScaleFeatures, "watch only the AzureAssignedIdentities with this node's label; false if some are older than 1.5.3 and have none")
	f.StringVar(&o.UserAgent, "custom-user-agent", o.UserAgent, "text to add to the user agent of requests")
	f.IntVar(&o.RuleIntervalSeconds, "ipt-update-interval-sec", o.RuleIntervalSeconds, "seconds between unasked looks at the redirect's rules")
	f.DurationVar(&o.AssignmentWait, "assignment-wait", o.AssignmentWait, "how long a request waits for an assignment that is still to come")
	f.IntVar(&o.RetriesForCreated, "retry-attempts-for-created", o.RetriesForCreated, "with the next two, if any is set: the wait is (created + assigned) × interval, instead of --assignment-wait")
	f.IntVar(&o.RetriesForAssigned, "retry-attempts-for-assigned", o.RetriesForAssigned, "see --retry-attempts-for-created")
	f.IntVar(&o.RetryIntervalSeconds, "find-identity-retry-interval", o.RetryIntervalSeconds, "seconds; see --retry-attempts-for-created")
	f.DurationVar(&o.MaxStaleness, "max-cache-staleness", o.MaxStaleness, "for how long pods are served from what was read when the API server says nothing any more, at least 5m; 0 is for ever")
	f.StringVar(&o.StartupTaintKey, "startup-taint-key", o.StartupTaintKey, "key of a taint to take from this node when the agent is ready, where no controller does; empty for none")
	f.DurationVar(&o.AuditEvery, "audit-repeat-interval", o.AuditEvery, "how often the log says again that a pod got the same token; 0 says it for each request")
	o.Principals.addFlags(f)
	o.Limits.addFlags(f)
	o.Proof.addFlags(f)
	f.StringVar(&o.ReportNamespace, "report-namespace", o.ReportNamespace, "namespace of the AzureIdentityNodeReport of this node, the agent's own; empty writes none")
	f.StringVar(&o.Log.Format, "log-format", "text", "text or json")
	f.IntVarP(&o.Log.Verbosity, "v", "v", 0, "verbosity of the log")
	f.BoolVar(&o.Version, "version", false, "print the version and end")
	f.StringVar(&o.Upstream, "metadata-upstream", "", "address:port to ask the metadata service at, if it is not --metadata-ip and --metadata-port")
	hide(f, "metadata-upstream")
	o.addIgnored(f)
}

// addIgnored takes the flags of the old agent that mean nothing here, so that
// existing manifests go on working.
func (o *Options) addIgnored(f *pflag.FlagSet) {
	for _, name := range []string{"MICNamespace", "vmodule", "stderrthreshold", "log_dir", "log_file", "log_file_max_size", "log_backtrace_at"} {
		f.String(name, "", "has no effect")
		o.ignore(f, name)
	}
	for _, name := range []string{
		"enableProfile", "enable-conntrack-deletion",
		"logtostderr", "alsologtostderr", "skip_headers", "skip_log_headers", "add_dir_header", "one_output",
	} {
		f.Bool(name, false, "has no effect")
		o.ignore(f, name)
	}
}

func (o *Options) ignore(f *pflag.FlagSet, name string) {
	hide(f, name)
	o.ignored = append(o.ignored, f.Lookup(name))
}

func hide(f *pflag.FlagSet, name string) { f.Lookup(name).Hidden = true }

// Ignored returns the flags that were given and have no effect.
func (o *Options) Ignored() []string {
	var out []string
	for _, flag := range o.ignored {
		if flag.Changed {
			out = append(out, "--"+flag.Name)
		}
	}
	return out
}

// Config is validated options.
type Config struct {
	Node    string
	Pod     identity.Key // the zero key if it is not known
	Managed bool
	// API, Probes and Metrics are where to listen. Host is where programs of the
	// node expect the agent if that is not API; else it is empty.
	API, Host, Probes, Metrics string
	// Link says that the address of Listener is on a link of the agent's own.
	Link bool
	// Listener is where the redirect leads pods to, Metadata where they think
	// they go, Upstream where the real service is.
	Listener, Metadata, Upstream netip.AddrPort
	// Wait bounds a request's wait for what may come by itself.
	Wait, RuleInterval time.Duration
	// Authorities are where credentials may go.
	Authorities entra.Authorities
}

// Config validates. An error names the flag and says what to give it.
func (o *Options) Config() (Config, error) {
	c := Config{Node: o.Node, Managed: strings.EqualFold(o.Mode, "managed"), RuleInterval: time.Duration(o.RuleIntervalSeconds) * time.Second}
	switch {
	case o.Node == "":
		return Config{}, fmt.Errorf("--node is empty: give the name of this node, as by the downward API's spec.nodeName")
	case !c.Managed && !strings.EqualFold(o.Mode, "standard"):
		return Config{}, fmt.Errorf("--operation-mode is %q: want standard or managed", o.Mode)
	case o.MaxStaleness != 0 && o.MaxStaleness < minStaleness:
		return Config{}, fmt.Errorf("--max-cache-staleness is %s: want 0, which is for ever, or at least %s: a quiet API server gives a sign of life every two minutes or so", o.MaxStaleness, minStaleness)
	case o.RuleIntervalSeconds <= 0:
		return Config{}, fmt.Errorf("--ipt-update-interval-sec is %d: want one or more", o.RuleIntervalSeconds)
	}
	if err := o.addresses(&c); err != nil {
		return Config{}, err
	}
	var err error
	c.Pod, err = parsePod(o.Pod)
	if err := errors.Join(err, startuptaint.CheckKey(o.StartupTaintKey), o.Principals.check(), o.Limits.check(), o.Proof.check()); err != nil {
		return Config{}, err
	}
	if c.Authorities, err = o.Principals.authorities(); err != nil {
		return Config{}, err
	}
	c.Wait, err = o.wait()
	return c, err
}

// parsePod reads the name of a pod, which may be empty.
func parsePod(value string) (identity.Key, error) {
	namespace, name, found := strings.Cut(value, "/")
	if value != "" && (!found || namespace == "" || name == "") {
		return identity.Key{}, fmt.Errorf("--pod is %q: want NAMESPACE/NAME, as by the downward API's metadata.namespace and metadata.name", value)
	}
	return identity.Key{Namespace: namespace, Name: name}, nil
}

func (o *Options) addresses(c *Config) error {
	var err error
	if c.Metadata, err = address("metadata", o.MetadataIP, "metadata-ip", o.MetadataPort, "metadata-port"); err != nil {
		return err
	}
	c.Upstream = c.Metadata
	if o.Upstream != "" {
		if c.Upstream, err = netip.ParseAddrPort(o.Upstream); err != nil {
			return fmt.Errorf("reading --metadata-upstream: %w", err)
		}
	}
	if c.Listener, err = address("listen", o.ListenAddress, "nmi-listen-address", o.Port, "nmi-port"); err != nil {
		return err
	}
	if c.Listener == c.Upstream {
		return fmt.Errorf("--nmi-listen-address and --nmi-port name the metadata service's own address %s: requests would never leave the agent", c.Upstream)
	}
	if err := o.target(c); err != nil {
		return err
	}
	for _, port := range []struct {
		flag, value string
		into        *string
	}{{"http-probe-port", o.ProbePort, &c.Probes}, {"prometheus-port", o.MetricsPort, &c.Metrics}} {
		if _, err := parsePort(port.flag, port.value); err != nil {
			return err
		}
		*port.into = ":" + port.value
	}
	return nil
}

// address reads an address and a port that two flags give.
func address(what, ip, ipFlag, port, portFlag string) (netip.AddrPort, error) {
	parsed, err := netip.ParseAddr(ip)
	if err != nil {
		return netip.AddrPort{}, fmt.Errorf("reading --%s: %w", ipFlag, err)
	}
	number, err := parsePort(portFlag, port)
	if err != nil {
		return netip.AddrPort{}, err
	}
	if !parsed.Is4() {
		return netip.AddrPort{}, fmt.Errorf("--%s is %s: the %s address must be an IPv4 one, as the metadata service's is", ipFlag, ip, what)
	}
	return netip.AddrPortFrom(parsed, number), nil
}

func parsePort(flag, value string) (uint16, error) {
	parsed, err := netip.ParseAddrPort("0.0.0.0:" + value)
	if err != nil {
		return 0, fmt.Errorf("--%s is %q: want a port from 1 to 65535", flag, value)
	}
	return parsed.Port(), nil
}

// maxWait is the old agent's longest wait; nobody needs a longer one.
const maxWait = 100 * time.Second

func (o *Options) wait() (time.Duration, error) {
	wait := o.AssignmentWait
	if o.changed("retry-attempts-for-created") || o.changed("retry-attempts-for-assigned") || o.changed("find-identity-retry-interval") {
		wait = time.Duration(o.RetriesForCreated+o.RetriesForAssigned) * time.Duration(o.RetryIntervalSeconds) * time.Second
	}
	if wait < 0 || wait > maxWait {
		return 0, fmt.Errorf("a request would wait %s for its assignment: want 0 to %s (--assignment-wait, or (--retry-attempts-for-created + --retry-attempts-for-assigned) × --find-identity-retry-interval)", wait, maxWait)
	}
	return wait, nil
}

func (o *Options) changed(name string) bool { return o.flags != nil && o.flags.Changed(name) }
