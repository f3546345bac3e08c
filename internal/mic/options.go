package mic

import (
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"os"
	"time"

	"github.com/Azure/azure-sdk-for-go/sdk/azcore/policy"
	"k8s.io/client-go/rest"

	"github.com/aad-pod-identity/aad-pod-identity/internal/obs"
)

// Options are what a user sets. [ParseOptions] fills them with the defaults.
type Options struct {
	Kubeconfig       string // empty: the pod's own ServiceAccount
	CloudConfig      string // path of azure.json; empty: the environment
	ForceNamespaced  bool
	ShowVersion      bool
	ElectionInstance string // this replica's name in the Lease
	ElectionNS       string
	ElectionName     string
	ElectionDuration time.Duration // how long a leader's death goes unnoticed at most
	LegacyLock       bool          // hold the old controller's lock too
	ProbePort        int
	PrometheusPort   int
	Profile          bool    // serve net/http/pprof at ProfileAddress
	ImmutableMSIs    string  // client IDs or ARM IDs, separated by commas
	CustomUserAgent  string  // appended to the User-Agent of requests to Azure
	ClientQPS        float64 // requests per second to the API server; 0: it is the server that limits
	// ReconcileInterval is how often every resource that carries an identity of
	// the controller's is looked at unasked; 0 never does.
	ReconcileInterval time.Duration
	GatherWindow      time.Duration
	RetryMin          time.Duration
	RetryMax          time.Duration
	QuarantineMin     time.Duration // of an identity that Azure refused
	QuarantineMax     time.Duration
	AdoptAssigned     bool // take over what AAD Pod Identity attached
	// StartupTaintKey is the key of the taint that keeps pods off a node until the
	// agent is ready there; empty: there is none.
	StartupTaintKey string
	ARM             ARMOptions
	Log             obs.LogOptions

	// Ignored are the flags that were given and have no effect any more.
	Ignored []IgnoredFlag
	// ProfileAddress is where pprof is served, on this machine only.
	ProfileAddress string

	// Version is the program's own, as the build stamped it.
	Version string
	// Getenv reads the environment; nil is [os.Getenv].
	Getenv func(string) string
	// Logger gets the logs; nil discards them.
	Logger *slog.Logger
	// Kube, if set, is used in the place of Kubeconfig.
	Kube *rest.Config
	// Transport, if set, carries every request to Azure.
	Transport policy.Transporter
}

// ParseOptions reads the command line, without the program's name. Flags take
// one or two dashes. Usage and mistakes are printed to stderr.
func ParseOptions(args []string, stderr io.Writer) (Options, error) {
	hostname, err := os.Hostname()
	if err != nil {
		return Options{}, fmt.Errorf("reading the host name: %w", err)
	}
	o := Options{Version: obs.Version(), ProfileAddress: profileAddress}
	flags := flag.NewFlagSet("mic", flag.ContinueOnError)
	flags.SetOutput(stderr)
	o.bind(flags, hostname)
	flags.Usage = usage(flags)
	bindIgnored(flags)
	if err := flags.Parse(args); err != nil {
		return Options{}, fmt.Errorf("reading the command line: %w", err)
	}
	if flags.NArg() > 0 {
		return Options{}, fmt.Errorf("reading the command line: unexpected %q: mic takes flags only", flags.Args())
	}
	o.Ignored = ignored(flags)
	return o, nil
}

// profileAddress is the old controller's: this machine alone reaches it, in a
// cluster by kubectl port-forward.
const profileAddress = "localhost:6060"

func (o *Options) bind(flags *flag.FlagSet, hostname string) {
	flags.StringVar(&o.Kubeconfig, "kubeconfig", "", "path of a kubeconfig; empty inside a cluster")
	flags.StringVar(&o.CloudConfig, "cloudconfig", "", "path of azure.json; empty for the environment variables CLOUD, TENANT_ID, CLIENT_ID, CLIENT_SECRET, USE_MSI and USER_ASSIGNED_MSI_CLIENT_ID")
	flags.BoolVar(&o.ForceNamespaced, "forceNamespaced", false, "let identities be used by pods of their own namespace only (also: environment variable FORCENAMESPACED=true)")
	flags.BoolVar(&o.ShowVersion, "version", false, "print the version and exit")
	flags.StringVar(&o.ElectionInstance, "leader-election-instance", hostname, "this replica's name in the Lease")
	flags.StringVar(&o.ElectionNS, "leader-election-namespace", "default", "namespace of the Lease")
	flags.StringVar(&o.ElectionName, "leader-election-name", "aad-pod-identity-mic", "name of the Lease")
	flags.DurationVar(&o.ElectionDuration, "leader-election-duration", 15*time.Second, "within what time a leader that died is replaced, 1s or more")
	flags.BoolVar(&o.LegacyLock, "legacy-lock", true, "hold the lock of AAD Pod Identity too (Endpoints of the Lease's namespace and name), so that its controller and this one never act at once; false when no old controller can come back")
	flags.IntVar(&o.ProbePort, "http-probe-port", 8080, "port of /healthz and /readyz")
	flags.IntVar(&o.PrometheusPort, "prometheus-port", 8888, "port of /metrics")
	flags.BoolVar(&o.Profile, "enableProfile", false, "serve pprof on "+profileAddress)
	flags.StringVar(&o.ImmutableMSIs, "immutable-user-msis", "", "client IDs or ARM IDs of identities that are never removed from a node, in any case, separated by commas")
	flags.StringVar(&o.CustomUserAgent, "custom-user-agent", "", "text appended to the User-Agent of requests to Azure")
	flags.Float64Var(&o.ClientQPS, "clientQps", 0, "requests per second, and burst, to the API server; 0 leaves it to the API server's own fairness")
	flags.DurationVar(&o.ReconcileInterval, "identity-assignment-reconcile-interval", 3*time.Minute, "how often Azure is looked at for identities that somebody else removed; 0 never does")
	flags.DurationVar(&o.GatherWindow, "gather-window", 500*time.Millisecond, "how long the first change for a virtual machine or scale set waits for others to join its request: the pods of one rollout appear within this time, and it is little beside the 10 to 60 seconds that Azure takes")
	flags.DurationVar(&o.RetryMin, "retry-min", time.Second, "first wait after a request that Azure did not carry out; doubled each time")
	flags.DurationVar(&o.RetryMax, "retry-max", 5*time.Minute, "longest wait after a request that Azure did not carry out")
	o.ARM.bind(flags)
	flags.DurationVar(&o.QuarantineMin, "quarantine-min", 30*time.Second, "first wait before an identity that Azure refused is tried again, apart from the others; doubled each time, and over when its AzureIdentity is edited")
	flags.DurationVar(&o.QuarantineMax, "quarantine-max", 10*time.Minute, "longest wait before an identity that Azure refused is tried again, such as after a missing role was given")
	flags.BoolVar(&o.AdoptAssigned, "adopt-assigned", true, "take over the identities that AAD Pod Identity says it attached, by its AzureAssignedIdentities, so that they are removed when their last pod goes; false leaves them on the nodes")
	flags.StringVar(&o.StartupTaintKey, "startup-taint-key", "", "key of a taint that nodes start with, to be taken away once the agent is ready there; empty for none")
	flags.StringVar(&o.Log.Format, "log-format", "text", "text or json")
	flags.IntVar(&o.Log.Verbosity, "v", 0, "verbosity of the log: 0 for decisions and changes, 5 for all")
}

// IsHelp reports whether an error of [ParseOptions] is a printed help.
func IsHelp(err error) bool { return errors.Is(err, flag.ErrHelp) }
