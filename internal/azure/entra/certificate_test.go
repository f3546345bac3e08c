package entra_test

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/asn1"
	"encoding/base64"
	"encoding/pem"
	"math/big"
	"strings"
	"sync"
	"testing"
	"time"

	"software.sslmate.com/src/go-pkcs12"

	"github.com/aad-pod-identity/aad-pod-identity/internal/azure/entra"
	"github.com/aad-pod-identity/aad-pod-identity/internal/azuresim/simtest"
)

// rsaKey is shared: making one is slow.
var rsaKey = sync.OnceValues(func() (*rsa.PrivateKey, error) { return rsa.GenerateKey(rand.Reader, 2048) })

func key(t testing.TB) *rsa.PrivateKey {
	t.Helper()
	out, err := rsaKey()
	if err != nil {
		t.Fatal(err)
	}
	return out
}

func pfx(t testing.TB, encoder *pkcs12.Encoder, key any, certificate *x509.Certificate, password string) []byte {
	t.Helper()
	out, err := encoder.Encode(key, certificate, nil, password)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

func block(kind string, der []byte) string {
	return string(pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}))
}

func pkcs8(t testing.TB, key any) string {
	t.Helper()
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	return block("PRIVATE KEY", der)
}

func TestParseCertificate(t *testing.T) {
	now := time.Now()
	private, valid := key(t), simtest.Certify(t, key(t), now.Add(time.Hour))
	ec, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	ecCertificate, asPEM := simtest.Certify(t, ec, now.Add(time.Hour)), block("CERTIFICATE", valid.Raw)
	modern := pfx(t, pkcs12.Modern2023, private, valid, "p")
	pkcs1 := block("RSA PRIVATE KEY", x509.MarshalPKCS1PrivateKey(private))
	sec1, err := x509.MarshalECPrivateKey(ec)
	if err != nil {
		t.Fatal(err)
	}
	for name, test := range map[string]struct {
		content  string
		password string
		words    string
	}{
		"a PFX of OpenSSL 3":           {string(modern), "p", ""},
		"a PFX of 2026":                {string(pfx(t, pkcs12.Modern2026, private, valid, "p")), "p", ""},
		"a PFX of Windows, long ago":   {string(pfx(t, pkcs12.LegacyDES, private, valid, "p")), "p", ""},
		"a PFX of OpenSSL 1":           {string(pfx(t, pkcs12.LegacyRC2, private, valid, "p")), "p", ""},
		"a PFX without a password":     {string(pfx(t, pkcs12.Modern2023, private, valid, "")), "", ""},
		"a PFX, not encrypted":         {string(pfx(t, pkcs12.Passwordless, private, valid, "")), "", ""},
		"PEM, key last":                {asPEM + pkcs8(t, private), "", ""},
		"PEM, key first, of old":       {pkcs1 + asPEM, "", ""},
		"PEM with a chain before it":   {block("CERTIFICATE", ecCertificate.Raw) + asPEM + pkcs1, "", ""},
		"PEM with words around":        {"Bag Attributes\n  friendlyName: x\n" + asPEM + "\n" + pkcs1, "ignored", ""},
		"the wrong password":           {string(modern), "q", "does not open the PFX"},
		"a password with a line break": {string(modern), "p\n", "white space"},
		"encoded twice":                {base64.StdEncoding.EncodeToString(modern), "p", "encoded twice"},
		"an EC key as PFX":             {string(pfx(t, pkcs12.Modern2023, ec, ecCertificate, "p")), "p", "RSA keys only"},
		"an EC key as PEM":             {block("CERTIFICATE", ecCertificate.Raw) + block("EC PRIVATE KEY", sec1), "", "RSA keys only"},
		"an encrypted PEM key":         {asPEM + block("ENCRYPTED PRIVATE KEY", []byte("x")), "p", "without a password"},
		"a key alone":                  {pkcs1, "", "a certificate and its private key"},
		"a certificate alone":          {asPEM, "", "a certificate and its private key"},
		"somebody else's key":          {block("CERTIFICATE", ecCertificate.Raw) + pkcs1, "", "no certificate belongs"},
		"two keys":                     {asPEM + pkcs1 + pkcs1, "", "several private keys"},
		"a broken certificate":         {block("CERTIFICATE", []byte("x")) + pkcs1, "", "cannot be read"},
		"a broken key":                 {asPEM + block("PRIVATE KEY", []byte("x")), "", "cannot be read"},
		"an expired certificate":       {block("CERTIFICATE", simtest.Certify(t, private, now.Add(-time.Hour)).Raw) + pkcs1, "", "expired on"},
		"nothing":                      {"", "", "neither a PFX"},
		"something else":               {"\x30\x03\x02\x01\x05", "", "neither a PFX"},
		"work without end":             {string(iterations(t, 2_000_001)), "p", "iterations"},
		"work that is no number":       {string(iterations(t, new(big.Int).Lsh(big.NewInt(1), 80))), "p", "iterations"},
	} {
		t.Run(name, func(t *testing.T) {
			got, err := entra.ParseCertificate([]byte(test.content), test.password, now)
			if test.words == "" {
				if err != nil || !got.Leaf().Equal(valid) {
					t.Errorf("got %v", err)
				}
				return
			}
			if err == nil || !strings.Contains(err.Error(), test.words) {
				t.Errorf("got %v, want words of %q", err, test.words)
			}
		})
	}
}

// iterations is what of a PFX says how much work it is to open, in the place
// where OpenSSL has it.
func iterations(t testing.TB, count any) []byte {
	t.Helper()
	type parameters struct {
		Salt  []byte
		Count any
	}
	inner, err := asn1.Marshal([]parameters{{[]byte("salt"), count}})
	if err != nil {
		t.Fatal(err)
	}
	out, err := asn1.Marshal(struct {
		Version int
		Safe    []byte
	}{3, inner})
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// No bytes make the parser panic, or take for a certificate what it has no key
// of.
func FuzzParseCertificate(f *testing.F) {
	now := time.Now()
	valid := simtest.Certify(f, key(f), now.Add(time.Hour))
	f.Add(pfx(f, pkcs12.Modern2023, key(f), valid, "p"), "p")
	f.Add(pfx(f, pkcs12.LegacyDES, key(f), valid, ""), "")
	f.Add([]byte(block("CERTIFICATE", valid.Raw)+pkcs8(f, key(f))), "")
	f.Add([]byte("-----BEGIN "+"PRIVATE KEY-----\n"), "p")
	f.Fuzz(func(t *testing.T, content []byte, password string) {
		got, err := entra.ParseCertificate(content, password, now)
		if err == nil && got.Leaf() == nil {
			t.Fatal("a certificate without a leaf")
		}
		if err != nil && len(password) > 8 && strings.Contains(err.Error(), password) {
			t.Fatalf("the error tells the password: %v", err)
		}
	})
}
