package entra

import (
	// The public certificate authorities, for an image that is one program and
	// nothing else. Where the system or SSL_CERT_DIR names some, those count.
	_ "golang.org/x/crypto/x509roots/fallback"
)
