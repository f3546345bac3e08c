package entra

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/rsa"
	"crypto/x509"
	"encoding/base64"
	"encoding/pem"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"software.sslmate.com/src/go-pkcs12"
)

// Certificate is a certificate with its private key.
type Certificate struct {
	hidden
	chain []*x509.Certificate // the leaf first
	key   *rsa.PrivateKey
}

// maxKeyBits bounds the time that a signature takes.
const maxKeyBits = 8192

// Leaf returns the certificate that the key belongs to.
func (c Certificate) Leaf() *x509.Certificate { return c.chain[0] }

// ParseCertificate reads a certificate with its RSA key, as PFX (PKCS#12) of any
// age, or as PEM. Other certificates beside it are its chain. The password is of
// the PFX; PEM has none. It must be valid at now. Errors say what to give
// instead, and hold nothing of the content.
func ParseCertificate(content []byte, password string, now time.Time) (Certificate, error) {
	key, certificates, err := decode(content, password)
	if err != nil {
		return Certificate{}, err
	}
	var private *rsa.PrivateKey
	switch k := key.(type) {
	case *rsa.PrivateKey:
		private = k
	case *ecdsa.PrivateKey:
		return Certificate{}, errors.New("the certificate has an EC key, and Azure's SDK signs with RSA keys only: give one with an RSA key")
	default:
		return Certificate{}, fmt.Errorf("the certificate has a key of type %T: give one with an RSA key", key)
	}
	if bits := private.N.BitLen(); bits > maxKeyBits {
		return Certificate{}, fmt.Errorf("the RSA key has %d bits: at most %d are served", bits, maxKeyBits)
	}
	leaf := slices.IndexFunc(certificates, func(c *x509.Certificate) bool {
		public, ok := c.PublicKey.(*rsa.PublicKey)
		return ok && public.Equal(&private.PublicKey)
	})
	if leaf < 0 {
		return Certificate{}, errors.New("no certificate belongs to the private key")
	}
	certificates[0], certificates[leaf] = certificates[leaf], certificates[0]
	if end := certificates[0].NotAfter; now.After(end) {
		return Certificate{}, fmt.Errorf("the certificate expired on %s: renew it", end.UTC().Format(time.DateOnly))
	}
	return Certificate{chain: certificates, key: private}, nil
}

func decode(content []byte, password string) (crypto.PrivateKey, []*x509.Certificate, error) {
	if strings.Contains(string(content), "-----BEGIN ") {
		return decodePEM(content)
	}
	if err := checkIterations(content); err != nil {
		return nil, nil, err
	}
	key, leaf, others, err := pkcs12.DecodeChain(content, password)
	var unknown pkcs12.NotImplementedError
	switch {
	case err == nil:
		return key, append([]*x509.Certificate{leaf}, others...), nil
	case errors.Is(err, pkcs12.ErrIncorrectPassword) && strings.TrimSpace(password) != password:
		return nil, nil, errors.New("the password does not open the PFX: it begins or ends with white space, which often got in unseen")
	case errors.Is(err, pkcs12.ErrIncorrectPassword):
		return nil, nil, errors.New("the password does not open the PFX")
	case errors.As(err, &unknown):
		return nil, nil, fmt.Errorf("the PFX is of a kind that is not known: %w", unknown)
	}
	if der, err := base64.StdEncoding.DecodeString(strings.TrimSpace(string(content))); err == nil && len(der) > 0 {
		return nil, nil, errors.New("the certificate is base64 text: it was encoded twice, give the PFX itself")
	}
	return nil, nil, errors.New("the certificate is neither a PFX with one certificate and its key, nor PEM")
}

func decodePEM(content []byte) (crypto.PrivateKey, []*x509.Certificate, error) {
	var key crypto.PrivateKey
	var certificates []*x509.Certificate
	for block, rest := pem.Decode(content); block != nil; block, rest = pem.Decode(rest) {
		switch {
		case block.Type == "CERTIFICATE":
			certificate, err := x509.ParseCertificate(block.Bytes)
			if err != nil {
				return nil, nil, errors.New("a certificate of the PEM cannot be read")
			}
			certificates = append(certificates, certificate)
		case block.Type == "ENCRYPTED PRIVATE KEY" || block.Headers["DEK-Info"] != "":
			return nil, nil, errors.New("the private key of the PEM is encrypted: give it without a password, or as PFX")
		case strings.HasSuffix(block.Type, "PRIVATE KEY"):
			if key != nil {
				return nil, nil, errors.New("the PEM holds several private keys: leave the certificate's")
			}
			var err error
			if key, err = parseKey(block.Bytes); err != nil {
				return nil, nil, err
			}
		}
	}
	if key == nil || len(certificates) == 0 {
		return nil, nil, errors.New("the PEM must hold a certificate and its private key")
	}
	return key, certificates, nil
}

func parseKey(der []byte) (crypto.PrivateKey, error) {
	if key, err := x509.ParsePKCS8PrivateKey(der); err == nil {
		return key, nil
	}
	if key, err := x509.ParsePKCS1PrivateKey(der); err == nil {
		return key, nil
	}
	if key, err := x509.ParseECPrivateKey(der); err == nil {
		return key, nil
	}
	return nil, errors.New("the private key of the PEM cannot be read")
}
