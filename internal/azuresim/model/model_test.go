package model_test

import (
	"bytes"
	"fmt"
	"log/slog"
	"net/netip"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/aad-pod-identity/aad-pod-identity/internal/azuresim/model"
)

func TestParse(t *testing.T) {
	want := model.Document{
		Tenant: "t",
		Nodes:  []model.Node{{Name: "node-0", ScaleSet: "v", Instance: 3, Prefixes: []netip.Prefix{netip.MustParsePrefix("10.0.0.4/32")}}},
	}
	for name, text := range map[string]string{
		"YAML": "tenant: t\nnodes:\n- name: node-0\n  scaleSet: v\n  instance: 3\n  prefixes: [10.0.0.4/32]\n",
		"JSON": `{"tenant":"t","nodes":[{"name":"node-0","scaleSet":"v","instance":3,"prefixes":["10.0.0.4/32"]}]}`,
	} {
		t.Run(name, func(t *testing.T) {
			got, err := model.Parse([]byte(text))
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(want, got, cmpopts.EquateComparable(netip.Prefix{})); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
		})
	}
}

func TestParseRefuses(t *testing.T) {
	for name, test := range map[string]struct{ text, words string }{
		"an unknown field":        {"tenants: [a]", `unknown field "tenants"`},
		"an unknown inner field":  {"nodes: [{name: a, scaleset: b, prefix: c}]", `unknown field`},
		"a key twice":             {"tenant: a\ntenant: b", "already set"},
		"a prefix that is none":   {"nodes: [{name: a, prefixes: [10.0.0.4]}]", "10.0.0.4"},
		"text that is no mapping": {"hello", "cannot unmarshal"},
	} {
		t.Run(name, func(t *testing.T) {
			if _, err := model.Parse([]byte(test.text)); err == nil || !strings.Contains(err.Error(), test.words) {
				t.Errorf("got %v, want an error that says %q", err, test.words)
			}
		})
	}
}

func TestSecretNeverShows(t *testing.T) {
	secret := model.Secret("s3cr3t")
	app := model.Application{Secrets: []model.Secret{secret}}
	var log bytes.Buffer
	slog.New(slog.NewJSONHandler(&log, nil)).Info("x", "secret", secret)
	shown := fmt.Sprintf("%v %s %#v %+v %#v", secret, secret, secret, app, app) + log.String()
	if strings.Contains(shown, "s3cr3t") || !strings.Contains(shown, "[redacted]") {
		t.Errorf("the secret shows in %s", shown)
	}
}
