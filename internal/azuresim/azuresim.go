// Package azuresim is a simulated Azure that speaks the wire: ARM, IMDS, Entra,
// Key Vault and Storage over one state, strict enough that a real Azure SDK
// client cannot tell.
//
//	listener   surface             package
//	HTTPS   →  by host name     →  arm, entra, keyvault, blob ┐
//	IMDS    →  by source address → imds                       ├→ state (rules, clock)
//	control →                      controlapi                 ┘
//
// How Azure behaves (latencies, limits, a compressed clock) is settings; what it
// was told to do wrong is faults.
//
// Every request to a surface passes wire, which plays the faults and writes the
// journal. This package only wires them. It must not hold a rule of Azure's,
// and only tests, the demo and the simulator's own command may import it.
package azuresim

import (
	"crypto/rsa"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/aad-pod-identity/aad-pod-identity/internal/azuresim/arm"
	"github.com/aad-pod-identity/aad-pod-identity/internal/azuresim/blob"
	"github.com/aad-pod-identity/aad-pod-identity/internal/azuresim/controlapi"
	"github.com/aad-pod-identity/aad-pod-identity/internal/azuresim/entra"
	"github.com/aad-pod-identity/aad-pod-identity/internal/azuresim/fault"
	"github.com/aad-pod-identity/aad-pod-identity/internal/azuresim/imds"
	"github.com/aad-pod-identity/aad-pod-identity/internal/azuresim/journal"
	"github.com/aad-pod-identity/aad-pod-identity/internal/azuresim/keyvault"
	"github.com/aad-pod-identity/aad-pod-identity/internal/azuresim/model"
	"github.com/aad-pod-identity/aad-pod-identity/internal/azuresim/pki"
	"github.com/aad-pod-identity/aad-pod-identity/internal/azuresim/settings"
	"github.com/aad-pod-identity/aad-pod-identity/internal/azuresim/state"
	"github.com/aad-pod-identity/aad-pod-identity/internal/azuresim/throttle"
	"github.com/aad-pod-identity/aad-pod-identity/internal/azuresim/timing"
	"github.com/aad-pod-identity/aad-pod-identity/internal/azuresim/token"
	"github.com/aad-pod-identity/aad-pod-identity/internal/azuresim/wire"
)

// Config says how a simulator behaves. Its zero value is a fresh, empty tenant
// on the real clock whose ARM operations end at once and which limits nothing.
type Config struct {
	State         model.Document    // what is there at the start
	Settings      settings.Settings // how Azure behaves, until a document says otherwise
	ARMLatency    time.Duration     // how long an ARM operation runs; short for a fixed one in Settings
	TokenLifetime time.Duration     // of every token; 0: 24 h for managed identities, 1 h for applications
	Clock         func() time.Time  // nil: the real one
	JournalLimit  int               // entries kept; 0: [journal.DefaultLimit]
	Authority     *pki.Authority    // of the HTTPS certificates; nil: a new one
	SigningKey    *rsa.PrivateKey   // of the tokens; nil: a new one, which takes a part of a second
	Log           *slog.Logger      // nil: none; requests at debug, unexpected ones at warn
}

// Simulator is one simulated Azure. It is safe for concurrent use.
type Simulator struct {
	State   *state.State
	Journal *journal.Journal
	Faults  *fault.Set
	Tokens  *token.Issuer

	authority *pki.Authority
	log       *slog.Logger
	recorder  *wire.Recorder
	meter     *throttle.Meter

	arm, imds, entra, keyVault, storage, unknownHost, control http.Handler
}

// New makes a simulator. It listens on nothing: mount the handlers, or call
// [Simulator.Run].
func New(c Config) (*Simulator, error) {
	c, err := c.withDefaults()
	if err != nil {
		return nil, err
	}
	azure := state.New(state.Options{Now: c.Clock, Settings: c.Settings})
	tokens, err := token.NewIssuer(token.Options{
		Now: c.Clock, Lifetime: c.TokenLifetime, Key: c.SigningKey, Factor: func() float64 { return azure.Settings().Factor() },
	})
	if err != nil {
		return nil, err
	}
	s := &Simulator{
		State:   azure,
		Journal: journal.New(c.JournalLimit, c.Clock),
		Faults: &fault.Set{
			Now:      c.Clock,
			Compress: func(d time.Duration) time.Duration { return azure.Settings().Compress(d) },
		},
		Tokens:    tokens,
		authority: c.Authority,
		log:       c.Log,
		meter:     throttle.New(c.Clock),
	}
	if err := s.State.Replace(c.State); err != nil {
		return nil, fmt.Errorf("loading the state: %w", err)
	}
	s.mount(c)
	return s, nil
}

func (c Config) withDefaults() (Config, error) {
	if c.ARMLatency < 0 || c.TokenLifetime < 0 {
		return c, fmt.Errorf("ARM latency %s and token lifetime %s must not be negative", c.ARMLatency, c.TokenLifetime)
	}
	if c.ARMLatency != 0 {
		c.Settings.ARM.Latency = settings.Latency{ScaleSet: timing.Fixed(c.ARMLatency), VM: timing.Fixed(c.ARMLatency)}
	}
	if err := c.Settings.Validate(); err != nil {
		return c, fmt.Errorf("reading the settings: %w", err)
	}
	if c.Clock == nil {
		c.Clock = time.Now
	}
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	if c.Authority == nil {
		authority, err := pki.New()
		if err != nil {
			return c, err
		}
		c.Authority = authority
	}
	return c, nil
}

// mount builds the handlers. Each surface is a value; the recorder around them
// is one.
func (s *Simulator) mount(c Config) {
	s.recorder = &wire.Recorder{Journal: s.Journal, Faults: s.Faults, NodeAt: s.nodeAt, Log: c.Log}
	s.arm = s.recorder.Handler((&arm.Server{State: s.State, Tokens: s.Tokens, Meter: s.meter}).Surface())
	s.imds = s.recorder.Handler(imds.New(s.State, s.Tokens, c.Clock).Surface())
	s.entra = s.recorder.Handler((&entra.Server{State: s.State, Tokens: s.Tokens, Now: c.Clock}).Surface())
	s.keyVault = s.recorder.Handler((&keyvault.Server{State: s.State, Tokens: s.Tokens}).Surface())
	s.storage = s.recorder.Handler((&blob.Server{State: s.State, Tokens: s.Tokens, Now: c.Clock}).Surface())
	s.unknownHost = s.recorder.Handler(unknownHost())
	s.control = (&controlapi.Server{
		State: s.State, Journal: s.Journal, Faults: s.Faults, Burst: (&arm.Server{State: s.State, Meter: s.meter}).Burst, CertPEM: c.Authority.CertPEM(), Log: c.Log,
	}).Handler()
}

func (s *Simulator) nodeAt(addr netip.Addr) string {
	node, _ := s.State.NodeAt(addr)
	return node.Name
}

// ARM returns Azure Resource Manager alone, whatever the Host header.
func (s *Simulator) ARM() http.Handler { return s.arm }

// IMDS returns the metadata service; the source address says of which node.
func (s *Simulator) IMDS() http.Handler { return s.imds }

// Entra returns the Microsoft identity platform alone.
func (s *Simulator) Entra() http.Handler { return s.entra }

// KeyVault returns all vaults; the Host header says which.
func (s *Simulator) KeyVault() http.Handler { return s.keyVault }

// Storage returns the blob services of all storage accounts; the Host header says
// which.
func (s *Simulator) Storage() http.Handler { return s.storage }

// Control returns the control API.
func (s *Simulator) Control() http.Handler { return s.control }

// HTTPS returns the surfaces that share Azure's HTTPS port, by Host header.
func (s *Simulator) HTTPS() http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch host := hostName(r.Host); {
		case host == arm.Host:
			s.arm.ServeHTTP(w, r)
		case slices.Contains(entra.Hosts(), host):
			s.entra.ServeHTTP(w, r)
		case isOne(host, keyvault.HostSuffix):
			s.keyVault.ServeHTTP(w, r)
		case isOne(host, blob.HostSuffix):
			s.storage.ServeHTTP(w, r)
		default:
			s.unknownHost.ServeHTTP(w, r)
		}
	})
}

func unknownHost() wire.Surface {
	return wire.Surface{
		Name: journal.HTTPS,
		Serve: func(call *wire.Call) (wire.Reply, error) {
			return wire.Reply{}, wire.Unexpected(http.StatusMisdirectedRequest, "UnknownHost", "No simulated service has the host name '%s'.", call.Host)
		},
		Render: func(_ *wire.Call, e *wire.Error) any {
			return map[string]map[string]string{"error": {"code": e.Code, "message": e.Message}}
		},
	}
}

// hostName is a Host header without its port, in lower case.
func hostName(hostPort string) string {
	if host, _, err := net.SplitHostPort(hostPort); err == nil {
		hostPort = host
	}
	return strings.ToLower(hostPort)
}

// isOne reports whether host is one name before the suffix.
func isOne(host, suffix string) bool {
	name, ok := strings.CutSuffix(host, suffix)
	return ok && name != "" && !strings.Contains(name, ".")
}

// isOurs reports whether a surface serves the host name.
func isOurs(host string) bool {
	return host == arm.Host || slices.Contains(entra.Hosts(), host) || isOne(host, keyvault.HostSuffix) || isOne(host, blob.HostSuffix)
}

// Pool returns the certificate pool with which a client trusts the HTTPS
// listener.
func (s *Simulator) Pool() *x509.CertPool { return s.authority.Pool() }

// TLSConfig returns the configuration of the HTTPS listener: a certificate for
// each of Azure's names. A handshake for any other name fails, and stands in the
// journal as unexpected.
func (s *Simulator) TLSConfig() *tls.Config {
	return &tls.Config{MinVersion: tls.VersionTLS12, GetCertificate: s.certificate}
}

func (s *Simulator) certificate(hello *tls.ClientHelloInfo) (*tls.Certificate, error) {
	host := strings.ToLower(hello.ServerName)
	if isOurs(host) {
		return s.authority.Certificate(host)
	}
	e := journal.Entry{
		Surface: journal.TLS, Host: host, Code: "UnknownHost", Unexpected: true,
		Detail: fmt.Sprintf("no simulated service has the server name %q", host),
	}
	if remote, err := netip.ParseAddrPort(hello.Conn.RemoteAddr().String()); err == nil {
		e.Remote = remote.Addr().Unmap()
		e.Node = s.nodeAt(e.Remote)
	}
	s.Journal.Record(e)
	s.log.Warn("tls handshake for an unknown name", "serverName", host, "remote", e.Remote)
	return nil, fmt.Errorf("no simulated service has the server name %q", host)
}
