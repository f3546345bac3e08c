package azuresim

import (
	"fmt"
	"io"
	"log/slog"
	"strings"
	"time"

	"github.com/spf13/pflag"

	"github.com/aad-pod-identity/aad-pod-identity/internal/azuresim/settings"
	"github.com/aad-pod-identity/aad-pod-identity/internal/azuresim/timing"
)

// Options are the settings of the simulator as a process.
type Options struct {
	HTTPSAddress   string // host:port, as are the next two
	IMDSAddress    string
	ControlAddress string
	StateFile      string // a YAML or JSON document; empty: nothing is there
	Tenant         string // a GUID; empty: the document's, else a new one
	CACert, CAKey  string // files; see [pki.Open]
	ARMLatency     settings.Latency
	Throttle       bool // ARM's documented limits
	IMDSLatency    timing.Range
	IMDSLimits     bool    // the metadata service's documented limits
	IMDSTokenCache bool    // see [settings.IMDS]
	ClockFactor    float64 // see [settings.Settings]
	Seed           uint64
	TokenLifetime  time.Duration
	JournalLimit   int
	LogLevel       slog.Level
	Stderr         io.Writer // logs and help
}

// ParseOptions reads the command line, without the program's name. With --help
// it writes the flags to stderr and returns [pflag.ErrHelp].
func ParseOptions(args []string, stderr io.Writer) (Options, error) {
	o := Options{Stderr: stderr, LogLevel: slog.LevelInfo}
	flags := pflag.NewFlagSet("azuresim", pflag.ContinueOnError)
	flags.SetOutput(stderr)
	flags.SortFlags = false
	flags.StringVar(&o.HTTPSAddress, "https-address", "127.0.0.1:8443", "serve ARM, Entra, Key Vault and Storage here, by host name")
	flags.StringVar(&o.IMDSAddress, "imds-address", "127.0.0.1:8080", "serve the metadata service here, by source address")
	flags.StringVar(&o.ControlAddress, "control-address", "127.0.0.1:8090", "serve the control API here; it has no authentication")
	flags.StringVar(&o.StateFile, "state", "", "load this state document (YAML or JSON) at the start; settings in it replace those of the flags")
	flags.StringVar(&o.Tenant, "tenant", "", "GUID of the tenant (default: the document's, or a new one)")
	flags.StringVar(&o.CACert, "ca-cert", "", "write the CA certificate that clients must trust to this file, or load it with --ca-key")
	flags.StringVar(&o.CAKey, "ca-key", "", "keep the CA's key in this file, so that a restart uses the same CA")
	latency := "2s"
	flags.StringVar(&latency, "arm-latency", latency, "how long an ARM operation runs: a duration, a range such as 40s-60s, or documented for Azure's own (40s-60s, of a virtual machine 10s-20s)")
	flags.BoolVar(&o.Throttle, "arm-throttling", false, "keep ARM's documented limits of requests for each resource and subscription; a state document can set others")
	imds := "0s"
	flags.StringVar(&imds, "imds-latency", imds, "how long a node's metadata service thinks: a duration, or a range such as 15ms-30ms")
	flags.BoolVar(&o.IMDSLimits, "imds-limits", false, "keep the metadata service's documented limits for each node: 20 requests for tokens a second and 5 at once, 5 others a second")
	flags.BoolVar(&o.IMDSTokenCache, "imds-token-cache", false, "answer a node with the same token again, as the platform does for about a day")
	flags.Float64Var(&o.ClockFactor, "clock-factor", 1, "compress the simulator's own time (latencies, limits, Retry-After): 30 makes a minute of it 2 seconds")
	flags.Uint64Var(&o.Seed, "seed", 0, "make the latencies drawn from a range repeatable")
	flags.DurationVar(&o.TokenLifetime, "token-lifetime", 0, "how long tokens live (default: 24h for managed identities, 1h for applications)")
	flags.IntVar(&o.JournalLimit, "journal-limit", 0, "how many requests the journal keeps (default 20000)")
	flags.TextVar(&o.LogLevel, "log-level", slog.LevelInfo, "debug, info, warn or error; debug logs each request")
	if err := flags.Parse(args); err != nil {
		return Options{}, fmt.Errorf("reading the command line: %w", err)
	}
	if flags.NArg() > 0 {
		return Options{}, fmt.Errorf("reading the command line: unexpected %q: azuresim takes flags only", strings.Join(flags.Args(), " "))
	}
	var err error
	if o.ARMLatency, err = parseLatency(latency); err != nil {
		return Options{}, fmt.Errorf("reading the command line: --arm-latency: %w", err)
	}
	if o.IMDSLatency, err = timing.ParseRange(imds); err != nil {
		return Options{}, fmt.Errorf("reading the command line: --imds-latency: %w", err)
	}
	if o.CAKey != "" && o.CACert == "" {
		return Options{}, fmt.Errorf("reading the command line: --ca-key needs --ca-cert")
	}
	return o, nil
}

// parseLatency reads --arm-latency.
func parseLatency(s string) (settings.Latency, error) {
	if s == "documented" {
		return settings.DocumentedLatency(), nil
	}
	r, err := timing.ParseRange(s)
	return settings.Latency{ScaleSet: r, VM: r}, err
}

// settings are those that the flags ask for.
func (o Options) settings() settings.Settings {
	as := settings.Settings{ClockFactor: o.ClockFactor, Seed: o.Seed, ARM: settings.ARM{Latency: o.ARMLatency}}
	as.IMDS = settings.IMDS{Latency: o.IMDSLatency, TokenCache: o.IMDSTokenCache}
	if o.IMDSLimits {
		as.IMDS.Limits = &settings.IMDSLimits{}
	}
	if o.Throttle {
		as.ARM.Throttling = &settings.Throttling{}
	}
	return as
}
