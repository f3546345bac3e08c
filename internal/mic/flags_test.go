package mic_test

import (
	"bytes"
	"io"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/aad-pod-identity/aad-pod-identity/internal/mic"
)

// oldFlags are all flags of AAD Pod Identity v1.8.17, as its manifests and chart
// give them, and what each comes to. Those without an effect say in words what
// took their place.
func oldFlags() map[string]struct {
	value   string
	effect  func(mic.Options) any
	want    any
	instead string
} {
	type row = struct {
		value   string
		effect  func(mic.Options) any
		want    any
		instead string
	}
	return map[string]row{
		"kubeconfig":                             {"/var/lib/kubelet/kubeconfig", func(o mic.Options) any { return o.Kubeconfig }, "/var/lib/kubelet/kubeconfig", ""},
		"cloudconfig":                            {"/etc/kubernetes/azure.json", func(o mic.Options) any { return o.CloudConfig }, "/etc/kubernetes/azure.json", ""},
		"forceNamespaced":                        {"true", func(o mic.Options) any { return o.ForceNamespaced }, true, ""},
		"version":                                {"true", func(o mic.Options) any { return o.ShowVersion }, true, ""},
		"leader-election-instance":               {"mic-0", func(o mic.Options) any { return o.ElectionInstance }, "mic-0", ""},
		"leader-election-namespace":              {"kube-system", func(o mic.Options) any { return o.ElectionNS }, "kube-system", ""},
		"leader-election-name":                   {"lock", func(o mic.Options) any { return o.ElectionName }, "lock", ""},
		"leader-election-duration":               {"30s", func(o mic.Options) any { return o.ElectionDuration }, 30 * time.Second, ""},
		"http-probe-port":                        {"8081", func(o mic.Options) any { return o.ProbePort }, 8081, ""},
		"prometheus-port":                        {"8889", func(o mic.Options) any { return o.PrometheusPort }, 8889, ""},
		"enableProfile":                          {"true", func(o mic.Options) any { return o.Profile }, true, ""},
		"clientQps":                              {"12.5", func(o mic.Options) any { return o.ClientQPS }, 12.5, ""},
		"immutable-user-msis":                    {"a,b", func(o mic.Options) any { return o.ImmutableMSIs }, "a,b", ""},
		"identity-assignment-reconcile-interval": {"5m", func(o mic.Options) any { return o.ReconcileInterval }, 5 * time.Minute, ""},
		"custom-user-agent":                      {"x/1", func(o mic.Options) any { return o.CustomUserAgent }, "x/1", ""},
		"log-format":                             {"json", func(o mic.Options) any { return o.Log.Format }, "json", ""},
		"v":                                      {"5", func(o mic.Options) any { return o.Log.Verbosity }, 5, ""},

		"syncRetryDuration":              {value: "3600s", instead: "--identity-assignment-reconcile-interval"},
		"enableScaleFeatures":            {value: "true", instead: "label"},
		"createDeleteBatch":              {value: "20", instead: "--clientQps"},
		"config-map-name":                {value: "aad-pod-identity-config", instead: "read as they are"},
		"type-upgrade-status-key":        {value: "type-upgrade-status", instead: "read as they are"},
		"enable-type-upgrade":            {value: "true", instead: "read as they are"},
		"update-user-msi-max-retry":      {value: "2", instead: "--retry-max"},
		"update-user-msi-retry-interval": {value: "1s", instead: "--retry-min"},

		"logtostderr":       {value: "true", instead: "stderr"},
		"alsologtostderr":   {value: "false", instead: "stderr"},
		"stderrthreshold":   {value: "2", instead: "stderr"},
		"one_output":        {value: "false", instead: "stderr"},
		"log_dir":           {value: "/var/log", instead: "stderr"},
		"log_file":          {value: "/var/log/mic.log", instead: "stderr"},
		"log_file_max_size": {value: "1800", instead: "stderr"},
		"vmodule":           {value: "mic=5", instead: "--v"},
		"log_backtrace_at":  {value: ":0", instead: "--v"},
		"skip_headers":      {value: "false", instead: "--log-format"},
		"skip_log_headers":  {value: "false", instead: "--log-format"},
		"add_dir_header":    {value: "false", instead: "--log-format"},
	}
}

func TestOldFlags(t *testing.T) {
	var help bytes.Buffer
	if _, err := mic.ParseOptions([]string{"-h"}, &help); !mic.IsHelp(err) {
		t.Fatal(err)
	}
	for name, flag := range oldFlags() {
		t.Run(name, func(t *testing.T) {
			for _, dashes := range []string{"-", "--"} {
				o, err := mic.ParseOptions([]string{dashes + name + "=" + flag.value}, io.Discard)
				if err != nil {
					t.Fatal(err)
				}
				if flag.effect != nil {
					if diff := cmp.Diff(flag.want, flag.effect(o)); diff != "" || len(o.Ignored) > 0 {
						t.Errorf("%s%s (-want +got):\n%s ignored: %v", dashes, name, diff, o.Ignored)
					}
				} else if len(o.Ignored) != 1 || o.Ignored[0].Name != name || !strings.Contains(o.Ignored[0].Instead, flag.instead) {
					t.Errorf("%s%s: ignored %v, want words %q", dashes, name, o.Ignored, flag.instead)
				}
			}
			if shown := strings.Contains(help.String(), "  -"+name+"\n") || strings.Contains(help.String(), "  -"+name+" "); shown != (flag.effect != nil) {
				t.Errorf("the help shows it: %t", shown)
			}
		})
	}
}

// TestEveryFlagAtOnce: as an old manifest with everything set gives them, some
// twice and some without a value; each warning comes once.
func TestEveryFlagAtOnce(t *testing.T) {
	args := []string{"--enable-type-upgrade", "-logtostderr", "--createDeleteBatch", "7", "-v", "2"}
	want := 0
	for name, flag := range oldFlags() {
		args = append(args, "--"+name+"="+flag.value)
		if flag.effect == nil {
			want++
		}
	}
	o, err := mic.ParseOptions(args, t.Output())
	if err != nil {
		t.Fatal(err)
	}
	if len(o.Ignored) != want {
		t.Errorf("%d warnings, want %d: %v", len(o.Ignored), want, o.Ignored)
	}
}

// TestIgnoredFlagsAreSaid: one line each, before anything else goes wrong.
func TestIgnoredFlagsAreSaid(t *testing.T) {
	o, logs := refused(t, "--enableScaleFeatures", "--enable-type-upgrade=false", "--enableScaleFeatures=false")
	if err := mic.Run(t.Context(), o); err == nil {
		t.Fatal("it runs without an API server")
	}
	for flag, want := range map[string]int{"flag=--enableScaleFeatures": 1, "flag=--enable-type-upgrade": 1, "flag=--": 2} {
		if got := strings.Count(logs.String(), flag); got != want {
			t.Errorf("%q is said %d times, want %d:\n%s", flag, got, want, logs)
		}
	}
}
