package mic

import "flag"

// IgnoredFlag is a flag of the old controller that was given and has no effect.
type IgnoredFlag struct {
	// Name is without dashes.
	Name string
	// Instead says what took its place.
	Instead string
}

// supersededFlag is a flag that is taken and has no effect.
type supersededFlag struct {
	IgnoredFlag
	boolean bool // it can be given without a value
}

// superseded are the flags of AAD Pod Identity v1.8.17 that mean nothing here:
// its manifests go on working.
func superseded() []supersededFlag {
	const (
		retries   = "what Azure did not carry out is repeated with growing waits, from --retry-min to --retry-max, and one bad identity does not stop others"
		spelling  = "objects in the old spelling are read as they are, and never rewritten"
		stderr    = "logs go to stderr alone"
		verbosity = "the log's verbosity is --v"
		format    = "the log's format is --log-format"
	)
	return []supersededFlag{
		{IgnoredFlag{"syncRetryDuration", "what failed is repeated by itself; --identity-assignment-reconcile-interval is how often Azure is looked at"}, false},
		{IgnoredFlag{"createDeleteBatch", "assignments are written pod by pod, a fixed number at once; --clientQps limits the rate"}, false},
		{IgnoredFlag{"enableScaleFeatures", "every assignment carries its node's label"}, true},
		{IgnoredFlag{"update-user-msi-max-retry", retries}, false},
		{IgnoredFlag{"update-user-msi-retry-interval", retries}, false},
		{IgnoredFlag{"enable-type-upgrade", spelling}, true},
		{IgnoredFlag{"config-map-name", spelling}, false},
		{IgnoredFlag{"type-upgrade-status-key", spelling}, false},

		{IgnoredFlag{"logtostderr", stderr}, true},
		{IgnoredFlag{"alsologtostderr", stderr}, true},
		{IgnoredFlag{"stderrthreshold", stderr}, false},
		{IgnoredFlag{"one_output", stderr}, true},
		{IgnoredFlag{"log_dir", stderr}, false},
		{IgnoredFlag{"log_file", stderr}, false},
		{IgnoredFlag{"log_file_max_size", stderr}, false},
		{IgnoredFlag{"vmodule", verbosity}, false},
		{IgnoredFlag{"log_backtrace_at", verbosity}, false},
		{IgnoredFlag{"add_dir_header", format}, true},
		{IgnoredFlag{"skip_headers", format}, true},
		{IgnoredFlag{"skip_log_headers", format}, true},
	}
}

func bindIgnored(flags *flag.FlagSet) {
	for _, s := range superseded() {
		if s.boolean {
			flags.Bool(s.Name, false, s.Instead)
		} else {
			flags.String(s.Name, "", s.Instead)
		}
	}
}

// ignored are the superseded flags that were given, each once, by name.
func ignored(flags *flag.FlagSet) []IgnoredFlag {
	instead := map[string]string{}
	for _, s := range superseded() {
		instead[s.Name] = s.Instead
	}
	var out []IgnoredFlag
	flags.Visit(func(f *flag.Flag) {
		if text, ok := instead[f.Name]; ok {
			out = append(out, IgnoredFlag{f.Name, text})
		}
	})
	return out
}

// usage prints the flags that have an effect.
func usage(flags *flag.FlagSet) func() {
	shown := flag.NewFlagSet(flags.Name(), flag.ContinueOnError)
	shown.SetOutput(flags.Output())
	flags.VisitAll(func(f *flag.Flag) { shown.Var(f.Value, f.Name, f.Usage) })
	return func() {
		_, _ = shown.Output().Write([]byte("Usage of " + flags.Name() + ":\n"))
		shown.PrintDefaults()
	}
}
