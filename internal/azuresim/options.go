package azuresim

import (
	"fmt"
	"io"
	"log/slog"
	"strings"
	"time"

	"github.com/spf13/pflag"
)

// Options are the settings of the simulator as a process.
type Options struct {
	HTTPSAddress   string // host:port, as are the next two
	IMDSAddress    string
	ControlAddress string
	StateFile      string // a YAML or JSON document; empty: nothing is there
	Tenant         string // a GUID; empty: the document's, else a new one
	CACert, CAKey  string // files; see [pki.Open]
	ARMLatency     time.Duration
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
	flags.StringVar(&o.StateFile, "state", "", "load this state document (YAML or JSON) at the start")
	flags.StringVar(&o.Tenant, "tenant", "", "GUID of the tenant (default: the document's, or a new one)")
	flags.StringVar(&o.CACert, "ca-cert", "", "write the CA certificate that clients must trust to this file, or load it with --ca-key")
	flags.StringVar(&o.CAKey, "ca-key", "", "keep the CA's key in this file, so that a restart uses the same CA")
	flags.DurationVar(&o.ARMLatency, "arm-latency", 2*time.Second, "how long an ARM operation runs")
	flags.DurationVar(&o.TokenLifetime, "token-lifetime", 0, "how long tokens live (default: 24h for managed identities, 1h for applications)")
	flags.IntVar(&o.JournalLimit, "journal-limit", 0, "how many requests the journal keeps (default 20000)")
	flags.TextVar(&o.LogLevel, "log-level", slog.LevelInfo, "debug, info, warn or error; debug logs each request")
	if err := flags.Parse(args); err != nil {
		return Options{}, fmt.Errorf("reading the command line: %w", err)
	}
	if flags.NArg() > 0 {
		return Options{}, fmt.Errorf("reading the command line: unexpected %q: azuresim takes flags only", strings.Join(flags.Args(), " "))
	}
	if o.CAKey != "" && o.CACert == "" {
		return Options{}, fmt.Errorf("reading the command line: --ca-key needs --ca-cert")
	}
	return o, nil
}
