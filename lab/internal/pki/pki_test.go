package pki

import (
	"crypto/rsa"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"net/netip"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func authority(t *testing.T) (*Authority, *x509.CertPool) {
	t.Helper()
	a, err := NewAuthority("test")
	if err != nil {
		t.Fatal(err)
	}
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(a.CertPEM) {
		t.Fatal("the authority's certificate is no certificate")
	}
	return a, pool
}

func leaf(t *testing.T, p Pair) *x509.Certificate {
	t.Helper()
	pair, err := tls.X509KeyPair(p.Cert, p.Key) // checks that they belong together
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(pair.Certificate[0])
	if err != nil {
		t.Fatal(err)
	}
	return cert
}

func TestServer(t *testing.T) {
	a, pool := authority(t)
	pair, err := a.Server([]string{"kubernetes", "kubernetes.default"}, []netip.Addr{netip.MustParseAddr("10.96.0.1")})
	if err != nil {
		t.Fatal(err)
	}
	cert := leaf(t, pair)
	for name, want := range map[string]bool{"kubernetes": true, "kubernetes.default": true, "10.96.0.1": true, "10.96.0.2": false, "other": false} {
		_, err := cert.Verify(x509.VerifyOptions{DNSName: name, Roots: pool})
		if (err == nil) != want {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := cert.Verify(x509.VerifyOptions{Roots: pool, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}}); err == nil {
		t.Error("a server's certificate serves as a client's")
	}
}

func TestClient(t *testing.T) {
	a, pool := authority(t)
	first, err := a.Client("system:node:n1", "system:nodes")
	if err != nil {
		t.Fatal(err)
	}
	second, err := a.Client("admin")
	if err != nil {
		t.Fatal(err)
	}
	cert := leaf(t, first)
	if _, err := cert.Verify(x509.VerifyOptions{Roots: pool, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}}); err != nil {
		t.Error(err)
	}
	if diff := cmp.Diff([]string{"system:nodes"}, cert.Subject.Organization); cert.Subject.CommonName != "system:node:n1" || diff != "" {
		t.Errorf("subject %s", cert.Subject)
	}
	if cert.SerialNumber.Cmp(leaf(t, second).SerialNumber) == 0 {
		t.Error("two certificates share a number")
	}
	_, other := authority(t)
	if _, err := cert.Verify(x509.VerifyOptions{Roots: other, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageAny}}); err == nil {
		t.Error("another authority vouches for it")
	}
}

func TestSignerIsRSA(t *testing.T) {
	pair, err := NewSigner()
	if err != nil {
		t.Fatal(err)
	}
	public, _ := pem.Decode(pair.Cert)
	key, err := x509.ParsePKIXPublicKey(public.Bytes)
	if err != nil {
		t.Fatal(err)
	}
	private, _ := pem.Decode(pair.Key)
	parsed, err := x509.ParsePKCS8PrivateKey(private.Bytes)
	if err != nil {
		t.Fatal(err)
	}
	signer, ok := parsed.(*rsa.PrivateKey)
	if !ok || !signer.PublicKey.Equal(key) || signer.N.BitLen() < 2048 {
		t.Errorf("got a %T", parsed)
	}
}
