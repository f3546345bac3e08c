package options

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/spf13/pflag"

	"github.com/aad-pod-identity/aad-pod-identity/internal/identity"
)

// parsed returns the options of a command line.
func parsed(t *testing.T, flags ...string) *Options {
	t.Helper()
	options := New()
	set := pflag.NewFlagSet("nmi", pflag.ContinueOnError)
	options.AddFlags(set)
	if err := set.Parse(append([]string{"--node=node-a", "--nmi-port=0", "--http-probe-port=0", "--prometheus-port=0"}, flags...)); err != nil {
		t.Fatal(err)
	}
	return options
}

func TestOptions(t *testing.T) {
	t.Setenv("FORCENAMESPACED", "true")
	t.Setenv("KUBECONFIG", filepath.Join(os.TempDir(), "k"))
	fromEnvironment := New()
	if !fromEnvironment.Namespaced || fromEnvironment.Kubeconfig == "" {
		t.Errorf("the environment is not read: %+v", fromEnvironment)
	}
	for name, test := range map[string]struct {
		flags []string
		check func(Config) bool
		words string
	}{
		"defaults": {nil, func(c Config) bool {
			return c.Wait == 4*time.Second && c.RuleInterval == time.Minute && c.Metadata == c.Upstream && c.Metadata.String() == "169.254.169.254:80"
		}, ""},
		"metadata address everywhere": {[]string{"--metadata-ip=10.0.0.1", "--metadata-port=81"}, func(c Config) bool { return c.Metadata.String() == "10.0.0.1:81" && c.Upstream == c.Metadata }, ""},
		"a pod":                       {[]string{"--pod=default/nmi-1"}, func(c Config) bool { return c.Pod == identity.Key{Namespace: "default", Name: "nmi-1"} }, ""},
		"a pod without a namespace":   {[]string{"--pod=nmi-1"}, nil, "--pod"},
		"a pod without a name":        {[]string{"--pod=default/"}, nil, "--pod"},
		"all addresses":               {[]string{"--nmi-listen-address=0.0.0.0"}, func(c Config) bool { return c.API == "0.0.0.0:0" && c.Listener.Addr().IsLoopback() }, ""},
		"a link of its own": {[]string{"--redirect-target=link", "--nmi-listen-address=169.254.7.9", "--nmi-port=2579"}, func(c Config) bool {
			return c.Link && c.API == "169.254.7.9:2579" && c.Listener.String() == c.API && c.Host == "127.0.0.1:2579"
		}, ""},
		"loopback":                              {[]string{"--redirect-target=loopback"}, func(c Config) bool { return !c.Link && c.Host == "" }, ""},
		"a link for all addresses":              {[]string{"--redirect-target=link", "--nmi-listen-address=0.0.0.0"}, nil, "--nmi-listen-address is 0.0.0.0: with --redirect-target=link want a link-local address"},
		"a link with an address of others":      {[]string{"--redirect-target=link", "--nmi-listen-address=10.0.0.4"}, nil, "--nmi-listen-address"},
		"a target that is none":                 {[]string{"--redirect-target=dummy"}, nil, `--redirect-target is "dummy": want loopback or link`},
		"any spelling of the mode":              {[]string{"--operation-mode=Managed"}, func(c Config) bool { return c.Managed }, ""},
		"its own wait":                          {[]string{"--assignment-wait=9s"}, func(c Config) bool { return c.Wait == 9*time.Second }, ""},
		"the contract's wait":                   {[]string{"--retry-attempts-for-created=1", "--retry-attempts-for-assigned=1", "--find-identity-retry-interval=1"}, func(c Config) bool { return c.Wait == 2*time.Second }, ""},
		"one of the contract's three":           {[]string{"--find-identity-retry-interval=1"}, func(c Config) bool { return c.Wait == 20*time.Second }, ""},
		"a wait without end":                    {[]string{"--find-identity-retry-interval=60"}, nil, "--assignment-wait"},
		"a wait before its beginning":           {[]string{"--assignment-wait=-1s"}, nil, "--assignment-wait"},
		"staleness without end":                 {nil, func(Config) bool { return New().MaxStaleness == 0 }, ""},
		"bounded staleness":                     {[]string{"--max-cache-staleness=5m"}, func(Config) bool { return true }, ""},
		"staleness below that of a quiet watch": {[]string{"--max-cache-staleness=2m"}, nil, "--max-cache-staleness"},
		"negative staleness":                    {[]string{"--max-cache-staleness=-5m"}, nil, "--max-cache-staleness"},
		"a startup taint":                       {[]string{"--startup-taint-key=example.com/agent"}, func(Config) bool { return true }, ""},
		"a startup taint of Kubernetes' own":    {[]string{"--startup-taint-key=node.kubernetes.io/not-ready"}, nil, "--startup-taint-key"},
		"an interval of nothing":                {[]string{"--ipt-update-interval-sec=0"}, nil, "--ipt-update-interval-sec"},
		"a port that is none":                   {[]string{"--nmi-port=http"}, nil, "--nmi-port"},
		"a port too far":                        {[]string{"--prometheus-port=70000"}, nil, "--prometheus-port"},
		"an address that is none":               {[]string{"--metadata-ip=imds"}, nil, "--metadata-ip"},
		"an address of another family":          {[]string{"--nmi-listen-address=::1"}, nil, "IPv4"},
		"an upstream without a port":            {[]string{"--metadata-upstream=10.0.0.1"}, nil, "--metadata-upstream"},
		"the known clouds": {nil, func(c Config) bool {
			return finds(c, "https://login.microsoftonline.us/") && !finds(c, "https://adfs.local/")
		}, ""},
		"authorities of one's own": {[]string{"--authority-hosts=adfs.local,login.microsoftonline.us"}, func(c Config) bool {
			return finds(c, "https://adfs.local/") && !finds(c, "https://login.microsoftonline.com/")
		}, ""},
		"an authority by http": {[]string{"--authority-hosts=http://adfs.local"}, nil, "--authority-hosts"},
		"no authority":         {[]string{"--authority-hosts=,"}, nil, "--authority-hosts"},
		"a Secret for ever":    {[]string{"--secret-max-age=24h"}, nil, "--secret-max-age"},
		"a Secret for no time": {[]string{"--secret-max-age=0s"}, nil, "--secret-max-age"},
		"asking itself":        {[]string{"--metadata-ip=127.0.0.1", "--metadata-port=0"}, nil, "never leave the agent"},
	} {
		t.Run(name, func(t *testing.T) {
			got, err := parsed(t, test.flags...).Config()
			switch {
			case test.check == nil && (err == nil || !strings.Contains(err.Error(), test.words)):
				t.Errorf("got %v, want words of %q", err, test.words)
			case test.check != nil && (err != nil || !test.check(got)):
				t.Errorf("got %+v, %v", got, err)
			}
		})
	}
}

func finds(c Config, endpoint string) bool {
	_, err := c.Authorities.Find(endpoint)
	return err == nil
}

// A cloud of one's own is allowed beside the known ones.
func TestTheCustomCloudsAuthority(t *testing.T) {
	file := filepath.Join(t.TempDir(), "cloud.json")
	if err := os.WriteFile(file, []byte(`{"activeDirectoryEndpoint":"https://adfs.local.azurestack.external/adfs/"}`), 0o600); err != nil {
		t.Fatal(err)
	}
	t.Setenv("AZURE_ENVIRONMENT_FILEPATH", file)
	c, err := parsed(t).Config()
	if err != nil || !finds(c, "https://adfs.local.azurestack.external/adfs") || !finds(c, "") {
		t.Errorf("got %+v, %v", c.Authorities, err)
	}
	t.Setenv("AZURE_ENVIRONMENT_FILEPATH", file+"x")
	if _, err := parsed(t).Config(); err == nil || !strings.Contains(err.Error(), "AZURE_ENVIRONMENT_FILEPATH") {
		t.Errorf("without the file: %v", err)
	}
}

func TestFlagsWithoutAnEffectAreTakenAndNamed(t *testing.T) {
	options := parsed(t, "--MICNamespace=x", "--enableProfile", "--kubelet-config=/etc/default/kubelet", "--allow-network-plugin-kubenet=true", "-v", "3", "--logtostderr", "--stderrthreshold=2")
	got := strings.Join(options.Ignored(), " ")
	if got != "--MICNamespace --stderrthreshold --enableProfile --logtostderr" || options.Log.Verbosity != 3 {
		t.Errorf("got %s", got)
	}
}
