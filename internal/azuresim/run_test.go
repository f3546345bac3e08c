package azuresim_test

import (
	"bytes"
	"context"
	"errors"
	"net"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/spf13/pflag"

	"github.com/aad-pod-identity/aad-pod-identity/internal/azuresim"
	"github.com/aad-pod-identity/aad-pod-identity/internal/azuresim/control"
	"github.com/aad-pod-identity/aad-pod-identity/internal/azuresim/simtest"
)

// output is a log that a test reads while it is written.
type output struct {
	mu   sync.Mutex
	text bytes.Buffer
	wake chan struct{}
}

func newOutput() *output { return &output{wake: make(chan struct{}, 1)} }

func (o *output) Write(p []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	select {
	case o.wake <- struct{}{}:
	default:
	}
	return o.text.Write(p)
}

// await blocks until the log matches, and returns the first group.
func (o *output) await(t *testing.T, pattern string, ended <-chan error) string {
	t.Helper()
	for {
		o.mu.Lock()
		found := regexp.MustCompile(pattern).FindStringSubmatch(o.text.String())
		o.mu.Unlock()
		if found != nil {
			return found[1]
		}
		select {
		case <-o.wake:
		case err := <-ended:
			t.Fatalf("ended early: %v", err)
		}
	}
}

func TestProcessServesAStateFileAndKeepsItsCA(t *testing.T) {
	dir := t.TempDir()
	state, cert, key := filepath.Join(dir, "state.yaml"), filepath.Join(dir, "ca.pem"), filepath.Join(dir, "ca.key")
	check(t, os.WriteFile(state, []byte("identities:\n- id: "+demoID+"\n"), 0o600))
	var first []byte
	for range 2 {
		log := newOutput()
		options, err := azuresim.ParseOptions([]string{
			"--https-address=127.0.0.1:0", "--imds-address=127.0.0.1:0", "--control-address=127.0.0.1:0",
			"--state=" + state, "--ca-cert=" + cert, "--ca-key=" + key, "--tenant=" + tenant, "--arm-latency=0s",
		}, log)
		check(t, err)
		ctx, cancel := context.WithCancel(t.Context())
		ended := make(chan error, 1)
		go func() { ended <- azuresim.Run(ctx, options) }()
		c := control.New("http://"+log.await(t, `surface=control address=(\S+)`, ended), nil)
		doc, err := c.State(t.Context())
		check(t, err)
		if doc.Tenant != tenant || len(doc.Identities) != 1 {
			t.Errorf("got %+v", doc)
		}
		served, err := c.CA(t.Context())
		check(t, err)
		written, err := os.ReadFile(cert)
		check(t, err)
		if first == nil {
			first = written
		}
		if !bytes.Equal(served, written) || !bytes.Equal(first, written) {
			t.Error("the CA served, written and kept are not one")
		}
		cancel()
		check(t, <-ended)
	}
}

func TestProcessRefusesToStart(t *testing.T) {
	taken := simtest.Listen(t)
	defer taken.Close()
	dir := t.TempDir()
	bad := filepath.Join(dir, "bad.yaml")
	check(t, os.WriteFile(bad, []byte("identitys: []"), 0o600))
	lonely := filepath.Join(dir, "lonely.pem")
	check(t, os.WriteFile(lonely, nil, 0o600))
	for name, test := range map[string]struct {
		args  []string
		words string
	}{
		"no state file":        {[]string{"--state=" + dir + "/none"}, "reading --state"},
		"a bad state file":     {[]string{"--state=" + bad}, `unknown field "identitys"`},
		"a bad tenant":         {[]string{"--tenant=contoso"}, `"contoso" is not a GUID`},
		"a port in use":        {[]string{"--imds-address=" + taken.Addr().String()}, "listening at --imds-address"},
		"an address of nobody": {[]string{"--control-address=nowhere"}, "listening at --control-address"},
		"half a CA":            {[]string{"--ca-cert=" + lonely, "--ca-key=" + dir + "/none"}, "only one of"},
		"a clock that stands":  {[]string{"--clock-factor=-1"}, "clockFactor is -1"},
	} {
		t.Run(name, func(t *testing.T) {
			args := append([]string{"--https-address=127.0.0.1:0", "--imds-address=127.0.0.1:0", "--control-address=127.0.0.1:0"}, test.args...)
			options, err := azuresim.ParseOptions(args, newOutput())
			check(t, err)
			ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
			defer cancel()
			if err := azuresim.Run(ctx, options); err == nil || !strings.Contains(err.Error(), test.words) {
				t.Errorf("got %v, want an error that says %q", err, test.words)
			}
		})
	}
}

func TestFailedStartLeavesTheCAOfAnotherAlone(t *testing.T) {
	taken := simtest.Listen(t)
	defer taken.Close()
	cert := filepath.Join(t.TempDir(), "ca.pem")
	check(t, os.WriteFile(cert, []byte("another's"), 0o600))
	options, err := azuresim.ParseOptions([]string{"--https-address=" + taken.Addr().String(), "--ca-cert=" + cert}, newOutput())
	check(t, err)
	if err := azuresim.Run(t.Context(), options); err == nil {
		t.Error("it started on a port in use")
	}
	if text, err := os.ReadFile(cert); err != nil || string(text) != "another's" {
		t.Errorf("the CA is now %q, %v", text, err)
	}
}

func TestParseOptions(t *testing.T) {
	for name, test := range map[string]struct {
		args  []string
		words string
	}{
		"unknown flag":        {[]string{"--azure"}, "unknown flag: --azure"},
		"an argument":         {[]string{"run"}, `unexpected "run"`},
		"a latency of no use": {[]string{"--arm-latency=soon"}, "soon"},
		"a negative latency":  {[]string{"--arm-latency=-1s"}, "want a duration such as 2s"},
		"an IMDS of no use":   {[]string{"--imds-latency=soon"}, "--imds-latency"},
		"a key alone":         {[]string{"--ca-key=x"}, "--ca-key needs --ca-cert"},
	} {
		t.Run(name, func(t *testing.T) {
			if _, err := azuresim.ParseOptions(test.args, newOutput()); err == nil || !strings.Contains(err.Error(), test.words) {
				t.Errorf("got %v, want an error that says %q", err, test.words)
			}
		})
	}
	help := newOutput()
	if _, err := azuresim.ParseOptions([]string{"--help"}, help); !errors.Is(err, pflag.ErrHelp) || !strings.Contains(help.text.String(), "--arm-latency") {
		t.Errorf("--help: got %v and %q", err, help.text.String())
	}
	for _, flag := range []string{"--arm-throttling", "--clock-factor", "--seed", "--imds-limits", "--imds-latency", "--imds-token-cache"} {
		if !strings.Contains(help.text.String(), flag) {
			t.Errorf("--help does not tell of %s", flag)
		}
	}
	options, err := azuresim.ParseOptions(nil, help)
	check(t, err)
	for _, address := range []string{options.HTTPSAddress, options.IMDSAddress, options.ControlAddress} {
		if host, _, err := net.SplitHostPort(address); err != nil || host != "127.0.0.1" {
			t.Errorf("%s is not on loopback by default", address)
		}
	}
}
