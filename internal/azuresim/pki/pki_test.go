package pki_test

import (
	"bytes"
	"crypto/x509"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/aad-pod-identity/aad-pod-identity/internal/azuresim/pki"
)

func open(t *testing.T, cert, key string) *pki.Authority {
	t.Helper()
	authority, err := pki.Open(cert, key)
	if err != nil {
		t.Fatal(err)
	}
	return authority
}

func TestCertificateIsTrustedForItsNameOnly(t *testing.T) {
	authority := open(t, "", "")
	pair, err := authority.Certificate("management.azure.com")
	if err != nil {
		t.Fatal(err)
	}
	leaf, err := x509.ParseCertificate(pair.Certificate[0])
	if err != nil {
		t.Fatal(err)
	}
	if _, err := leaf.Verify(x509.VerifyOptions{Roots: authority.Pool(), DNSName: "management.azure.com"}); err != nil {
		t.Error(err)
	}
	if _, err := leaf.Verify(x509.VerifyOptions{Roots: authority.Pool(), DNSName: "login.microsoftonline.com"}); err == nil {
		t.Error("it is trusted for another name")
	}
	if _, err := leaf.Verify(x509.VerifyOptions{Roots: open(t, "", "").Pool()}); err == nil {
		t.Error("another authority trusts it")
	}
	again, err := authority.Certificate("management.azure.com")
	if err != nil || again != pair {
		t.Errorf("asked again: got another certificate, %v", err)
	}
}

func TestOpenKeepsTheAuthorityInItsFiles(t *testing.T) {
	dir := t.TempDir()
	cert, key := filepath.Join(dir, "ca.pem"), filepath.Join(dir, "ca.key")
	first := open(t, cert, key)
	if info, err := os.Stat(key); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("the key's file: %v, %v", info.Mode(), err)
	}
	if second := open(t, cert, key); !bytes.Equal(first.CertPEM(), second.CertPEM()) {
		t.Error("the second start has another authority")
	}
	if third := open(t, cert, ""); bytes.Equal(first.CertPEM(), third.CertPEM()) {
		t.Error("without the key it cannot be the same authority")
	}
	if _, err := pki.Open(cert, key); err == nil {
		t.Error("a key that is not the certificate's is taken")
	}
}

func TestOpenRefusesWhatIsNoAuthority(t *testing.T) {
	dir := t.TempDir()
	file := func(name, text string) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	for name, test := range map[string]struct{ cert, key, words string }{
		"text":             {file("text.pem", "hello"), file("text.key", "hello"), "loading the authority"},
		"only the cert":    {file("lonely.pem", ""), filepath.Join(dir, "none"), "only one of"},
		"only the key":     {filepath.Join(dir, "none"), file("lonely.key", ""), "only one of"},
		"nowhere to write": {filepath.Join(dir, "no", "ca.pem"), filepath.Join(dir, "no", "ca.key"), "writing the authority's key"},
	} {
		t.Run(name, func(t *testing.T) {
			if _, err := pki.Open(test.cert, test.key); err == nil || !strings.Contains(err.Error(), test.words) {
				t.Errorf("got %v, want an error that says %q", err, test.words)
			}
		})
	}
}
