package state

import (
	"crypto/x509"
	"encoding/pem"
	"strings"
)

// readCertificates reads certificates in PEM, one in each text.
func readCertificates(texts []string) ([]*x509.Certificate, error) {
	var out []*x509.Certificate
	for i, text := range texts {
		block, rest := pem.Decode([]byte(text))
		if block == nil || block.Type != "CERTIFICATE" || strings.TrimSpace(string(rest)) != "" {
			return nil, invalid("certificate %d is not one certificate in PEM", i+1)
		}
		certificate, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return nil, invalid("certificate %d: %v", i+1, err)
		}
		out = append(out, certificate)
	}
	return out, nil
}

// writeCertificates is the opposite of readCertificates.
func writeCertificates(certificates []*x509.Certificate) []string {
	var out []string
	for _, certificate := range certificates {
		out = append(out, string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: certificate.Raw})))
	}
	return out
}

// Certificates returns those that the application may sign with.
func (s *State) Certificates(clientID string) []*x509.Certificate {
	s.mu.Lock()
	defer s.mu.Unlock()
	a, ok := s.t.application(clientID)
	if !ok {
		return nil
	}
	return a.certificates
}
