// Package pki is the simulator's certificate authority: it makes a certificate
// for each of Azure's host names when a client first asks for it.
//
// It must be trusted by nothing but the clients of one simulation. It must not
// know which names are Azure's: its user says.
package pki

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"math/big"
	"os"
	"sync"
	"time"
)

// validity of the authority and of its certificates. Clients check it against
// the real clock, whatever the simulation's says.
const validity = 90 * 24 * time.Hour

// Authority signs certificates. It is safe for concurrent use.
type Authority struct {
	cert    *x509.Certificate
	key     *ecdsa.PrivateKey
	certPEM []byte

	mu     sync.Mutex // protects all following fields
	leaves map[string]*tls.Certificate
}

// New makes an authority with a new key.
func New() (*Authority, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("making the authority's key: %w", err)
	}
	template, err := newTemplate("azuresim root")
	if err != nil {
		return nil, err
	}
	template.IsCA, template.BasicConstraintsValid, template.MaxPathLenZero = true, true, true
	template.KeyUsage = x509.KeyUsageCertSign | x509.KeyUsageCRLSign
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		return nil, fmt.Errorf("making the authority's certificate: %w", err)
	}
	return fromDER(der, key)
}

func fromDER(der []byte, key *ecdsa.PrivateKey) (*Authority, error) {
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, fmt.Errorf("reading the authority's certificate: %w", err)
	}
	return &Authority{
		cert: cert, key: key, leaves: map[string]*tls.Certificate{},
		certPEM: pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}),
	}, nil
}

// Open loads the authority from the two files. If neither is there it makes one
// and writes them, the key for its owner only. An empty path is not written; an
// authority is loaded only if both are given.
func Open(certFile, keyFile string) (*Authority, error) {
	if certFile != "" && keyFile != "" {
		authority, err := load(certFile, keyFile)
		if err == nil || !errors.Is(err, fs.ErrNotExist) {
			return authority, err
		}
		if exists(certFile) || exists(keyFile) {
			return nil, fmt.Errorf("loading the authority: only one of %s and %s is there: remove it or bring the other: %w", certFile, keyFile, err)
		}
	}
	authority, err := New()
	if err != nil {
		return nil, err
	}
	return authority, authority.save(certFile, keyFile)
}

func exists(file string) bool {
	_, err := os.Stat(file)
	return err == nil
}

func load(certFile, keyFile string) (*Authority, error) {
	pair, err := tls.LoadX509KeyPair(certFile, keyFile)
	if err != nil {
		return nil, fmt.Errorf("loading the authority: %w", err)
	}
	key, ok := pair.PrivateKey.(*ecdsa.PrivateKey)
	if !ok {
		return nil, fmt.Errorf("loading the authority: %s holds no ECDSA key", keyFile)
	}
	authority, err := fromDER(pair.Certificate[0], key)
	if err != nil {
		return nil, err
	}
	if !authority.cert.IsCA {
		return nil, fmt.Errorf("loading the authority: %s is not a CA certificate", certFile)
	}
	if time.Now().After(authority.cert.NotAfter) {
		return nil, fmt.Errorf("loading the authority: %s expired on %s: remove both files for a new one", certFile, authority.cert.NotAfter)
	}
	return authority, nil
}

func (a *Authority) save(certFile, keyFile string) error {
	if keyFile != "" {
		der, err := x509.MarshalPKCS8PrivateKey(a.key)
		if err != nil {
			return fmt.Errorf("encoding the authority's key: %w", err)
		}
		if err := os.WriteFile(keyFile, pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}), 0o600); err != nil {
			return fmt.Errorf("writing the authority's key: %w", err)
		}
	}
	if certFile == "" {
		return nil
	}
	if err := os.WriteFile(certFile, a.certPEM, 0o644); err != nil { //nolint:gosec // a certificate is public
		return fmt.Errorf("writing the authority's certificate: %w", err)
	}
	return nil
}

// CertPEM returns the authority's certificate for a client to trust.
func (a *Authority) CertPEM() []byte { return a.certPEM }

// Pool returns a pool with only this authority.
func (a *Authority) Pool() *x509.CertPool {
	pool := x509.NewCertPool()
	pool.AddCert(a.cert)
	return pool
}

// Certificate returns the certificate of a host name, the same each time.
func (a *Authority) Certificate(host string) (*tls.Certificate, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if leaf, ok := a.leaves[host]; ok {
		return leaf, nil
	}
	leaf, err := a.issue(host)
	if err != nil {
		return nil, fmt.Errorf("making the certificate of %s: %w", host, err)
	}
	a.leaves[host] = leaf
	return leaf, nil
}

func (a *Authority) issue(host string) (*tls.Certificate, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	template, err := newTemplate(host)
	if err != nil {
		return nil, err
	}
	template.DNSNames = []string{host}
	template.KeyUsage = x509.KeyUsageDigitalSignature
	template.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}
	der, err := x509.CreateCertificate(rand.Reader, template, a.cert, &key.PublicKey, a.key)
	if err != nil {
		return nil, err
	}
	return &tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}, nil
}

func newTemplate(name string) (*x509.Certificate, error) {
	serial, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 120))
	if err != nil {
		return nil, fmt.Errorf("making a serial number: %w", err)
	}
	now := time.Now()
	return &x509.Certificate{
		SerialNumber: serial, Subject: pkix.Name{CommonName: name}, NotBefore: now.Add(-time.Hour), NotAfter: now.Add(validity),
	}, nil
}
