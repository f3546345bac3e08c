package mic_test

import (
	"bytes"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"k8s.io/client-go/rest"

	"github.com/aad-pod-identity/aad-pod-identity/internal/mic"
)

func TestDefaultsAreTheContracts(t *testing.T) {
	o, err := mic.ParseOptions(nil, t.Output())
	if err != nil {
		t.Fatal(err)
	}
	hostname, err := os.Hostname()
	if err != nil {
		t.Fatal(err)
	}
	got := fmt.Sprintln(o.ElectionInstance == hostname, o.ElectionNS, o.ElectionName, o.ElectionDuration, o.ProbePort, o.PrometheusPort, o.ForceNamespaced, o.Log.Format, o.ReconcileInterval, o.LegacyLock, o.Profile)
	if want := "true default aad-pod-identity-mic 15s 8080 8888 false text 3m0s true false\n"; got != want {
		t.Errorf("got %s, want %s", got, want)
	}
}

func TestParseOptions(t *testing.T) {
	for _, dashes := range []string{"-", "--"} {
		o, err := mic.ParseOptions([]string{dashes + "forceNamespaced", dashes + "clientQps=7.5", dashes + "v=5", dashes + "leader-election-instance", "x"}, t.Output())
		if err != nil || !o.ForceNamespaced || o.ClientQPS != 7.5 || o.Log.Verbosity != 5 || o.ElectionInstance != "x" {
			t.Errorf("got %+v, %v", o, err)
		}
	}
	for name, args := range map[string][]string{"an unknown flag": {"--nope"}, "a word": {"run"}, "a bad duration": {"--gather-window=soon"}} {
		if _, err := mic.ParseOptions(args, &bytes.Buffer{}); err == nil || mic.IsHelp(err) {
			t.Errorf("%s was taken: %v", name, err)
		}
	}
	var usage bytes.Buffer
	if _, err := mic.ParseOptions([]string{"--help"}, &usage); !mic.IsHelp(err) || !strings.Contains(usage.String(), "-immutable-user-msis") {
		t.Errorf("got %v and %q", err, usage.String())
	}
}

// TestRunRefuses: mistakes are said before anything is sent.
func TestRunRefuses(t *testing.T) {
	azure := filepath.Join(t.TempDir(), "azure.json")
	if err := os.WriteFile(azure, []byte(`{"cloud":"AzureCloud","useManagedIdentityExtension":true}`), 0o600); err != nil {
		t.Fatal(err)
	}
	for name, test := range map[string]struct {
		args  []string
		env   map[string]string
		words string
	}{
		"no namespace":                {[]string{"--cloudconfig", azure}, nil, "MIC_POD_NAMESPACE is not set"},
		"no azure.json":               {[]string{"--cloudconfig", azure + "x"}, map[string]string{"MIC_POD_NAMESPACE": "n"}, "azure.jsonx"},
		"no cloud in the environment": {nil, map[string]string{"MIC_POD_NAMESPACE": "n"}, "environment variable CLOUD"},
		"a bad protected identity":    {[]string{"--cloudconfig", azure, "--immutable-user-msis=a,<id>"}, map[string]string{"MIC_POD_NAMESPACE": "n"}, "immutable-user-msis"},
		"a bad protected ARM ID":      {[]string{"--cloudconfig", azure, "--immutable-user-msis=/subscriptions/x"}, map[string]string{"MIC_POD_NAMESPACE": "n"}, "immutable-user-msis"},
		"an interval below zero":      {[]string{"--cloudconfig", azure, "--identity-assignment-reconcile-interval=-1s"}, map[string]string{"MIC_POD_NAMESPACE": "n"}, "--identity-assignment-reconcile-interval"},
		"a lease that cannot be told": {[]string{"--cloudconfig", azure, "--leader-election-duration=900ms"}, map[string]string{"MIC_POD_NAMESPACE": "n"}, "--leader-election-duration"},
		"a backoff upside down":       {[]string{"--cloudconfig", azure, "--retry-min=1h"}, map[string]string{"MIC_POD_NAMESPACE": "n"}, "--retry-min"},
		"a drift repair too often":    {[]string{"--cloudconfig", azure, "--identity-assignment-reconcile-interval=1ms"}, map[string]string{"MIC_POD_NAMESPACE": "n"}, "--identity-assignment-reconcile-interval"},
		"a quarantine upside down":    {[]string{"--cloudconfig", azure, "--quarantine-max=1s"}, map[string]string{"MIC_POD_NAMESPACE": "n"}, "--quarantine-min"},
		"a negative rate":             {[]string{"--cloudconfig", azure, "--clientQps=-1"}, map[string]string{"MIC_POD_NAMESPACE": "n"}, "--clientQps"},
		"no kubeconfig":               {[]string{"--cloudconfig", azure, "--kubeconfig", azure + "y"}, map[string]string{"MIC_POD_NAMESPACE": "n"}, "finding the API server"},
	} {
		t.Run(name, func(t *testing.T) {
			o, err := mic.ParseOptions(test.args, t.Output())
			if err != nil {
				t.Fatal(err)
			}
			o.Getenv = func(name string) string { return test.env[name] }
			if name != "no kubeconfig" {
				o.Kube = &rest.Config{Host: "https://127.0.0.1:1"}
			}
			if err := mic.Run(t.Context(), o); err == nil || !strings.Contains(err.Error(), test.words) {
				t.Errorf("got %v, want words %q", err, test.words)
			}
		})
	}
}

// refused are options with which Run ends as soon as it has read them, and its
// log.
func refused(t *testing.T, args ...string) (mic.Options, *bytes.Buffer) {
	t.Helper()
	azure := filepath.Join(t.TempDir(), "azure.json")
	if err := os.WriteFile(azure, []byte(`{"cloud":"AzureCloud","useManagedIdentityExtension":true}`), 0o600); err != nil {
		t.Fatal(err)
	}
	o, err := mic.ParseOptions(append([]string{"--cloudconfig", azure, "--http-probe-port=0", "--prometheus-port=0"}, args...), t.Output())
	if err != nil {
		t.Fatal(err)
	}
	var logs bytes.Buffer
	o.Logger = slog.New(slog.NewTextHandler(&logs, nil))
	o.Getenv = func(name string) string { return map[string]string{"MIC_POD_NAMESPACE": "n"}[name] }
	o.Kube = &rest.Config{Host: "https://127.0.0.1:1"}
	return o, &logs
}

func TestPortInUse(t *testing.T) {
	taken := listen(t)
	t.Cleanup(func() { _ = taken.Close() })
	_, port, err := net.SplitHostPort(taken.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	for words, change := range map[string]func(*mic.Options){
		"--prometheus-port": func(o *mic.Options) { o.PrometheusPort, err = strconv.Atoi(port) },
		"--http-probe-port": func(o *mic.Options) { o.ProbePort, err = strconv.Atoi(port) },
		"--enableProfile":   func(o *mic.Options) { o.Profile, o.ProfileAddress = true, taken.Addr().String() },
	} {
		o, _ := refused(t)
		change(&o)
		if err != nil {
			t.Fatal(err)
		}
		if err := mic.Run(t.Context(), o); err == nil || !strings.Contains(err.Error(), words) {
			t.Errorf("got %v, want words about %s", err, words)
		}
	}
}

// freePort is one that was free a moment ago.
func freePort(t *testing.T) string {
	t.Helper()
	l := listen(t)
	defer func() { _ = l.Close() }()
	_, port, err := net.SplitHostPort(l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	return port
}

// get asks a replica until it answers as ok says.
func get(t *testing.T, url string, ok func(status int, body string) bool) {
	t.Helper()
	deadline := time.Now().Add(patience)
	ticker := time.NewTicker(50 * time.Millisecond)
	defer ticker.Stop()
	for range ticker.C {
		status, body := fetch(t, url)
		if ok(status, body) {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("%s answers %d %q", url, status, body)
		}
	}
}

func fetch(t *testing.T, url string) (int, string) {
	t.Helper()
	request, err := http.NewRequestWithContext(t.Context(), http.MethodGet, url, nil)
	if err != nil {
		t.Fatal(err)
	}
	response, err := http.DefaultClient.Do(request)
	if err != nil {
		return 0, err.Error()
	}
	defer func() { _ = response.Body.Close() }()
	var body bytes.Buffer
	if _, err := body.ReadFrom(response.Body); err != nil {
		return 0, err.Error()
	}
	return response.StatusCode, body.String()
}
