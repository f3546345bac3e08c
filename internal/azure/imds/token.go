package imds

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"strconv"
	"strings"
	"time"
)

// redacted stands in for a token wherever one could be printed.
const redacted = "[redacted]"

// Token is an access token with what the metadata service says of it. It prints
// as "[redacted]" with every verb, in logs and in JSON; only [Token.AppendWire]
// writes it out.
type Token struct {
	value string
	// ClientID is the principal that the token is for; empty if not said.
	ClientID string
	// Resource is the audience, as the service echoes it.
	Resource string
	// Type is "Bearer".
	Type string
	// NotBefore and ExpiresOn bound the token's life, to the second. NotBefore
	// is zero if not said.
	NotBefore, ExpiresOn time.Time
	// ExtExpiresOn is when the token may be used until in an outage; zero if
	// not said.
	ExtExpiresOn time.Time

	// wire, if set, is what AppendWire appends; see [Token.Encoded].
	wire *wire
}

// wire is an encoded token without what is left of its life, which is another in
// each answer: expires_in stands between the first and the second part,
// ext_expires_in between the second and the third.
type wire [3]string

// Encoded returns the token encoded once for many answers. Its fields must not be
// changed any more.
func (t Token) Encoded() Token {
	var parts wire
	dst := appendField([]byte{'{'}, "access_token", t.value)
	dst = appendField(append(dst, ','), "client_id", t.ClientID)
	parts[0] = string(append(appendName(append(dst, ','), "expires_in"), '"'))
	dst = appendEpoch([]byte(`",`), "expires_on", t.ExpiresOn)
	parts[1] = string(append(appendName(append(dst, ','), "ext_expires_in"), '"'))
	dst = appendEpoch([]byte(`",`), "not_before", t.NotBefore)
	dst = appendField(append(dst, ','), "resource", t.Resource)
	dst = appendField(append(dst, ','), "token_type", t.Type)
	parts[2] = string(append(dst, '}'))
	t.wire = &parts
	return t
}

// NewToken returns fields with the token value.
func NewToken(value string, fields Token) Token {
	fields.value = value
	return fields
}

// Value returns the secret.
func (t Token) Value() string { return t.value }

// Format prints "[redacted]", whatever the verb.
func (t Token) Format(state fmt.State, _ rune) {
	// A fmt.State has nowhere to report an error to.
	_, _ = io.WriteString(state, redacted)
}

// String returns "[redacted]".
func (t Token) String() string { return redacted }

// LogValue returns "[redacted]".
func (t Token) LogValue() slog.Value { return slog.StringValue(redacted) }

// MarshalJSON writes "[redacted]".
func (t Token) MarshalJSON() ([]byte, error) { return []byte(`"` + redacted + `"`), nil }

// ObjectID returns the claim oid of the token: the object ID of the principal.
// The signature is not checked, so it is for tokens only that come straight
// from the service; false if the token says none.
func (t Token) ObjectID() (string, bool) {
	parts := strings.Split(t.value, ".")
	if len(parts) != 3 {
		return "", false
	}
	payload, err := base64.RawURLEncoding.DecodeString(parts[1])
	if err != nil {
		return "", false
	}
	var claims struct {
		OID string `json:"oid"`
	}
	if err := json.Unmarshal(payload, &claims); err != nil {
		return "", false
	}
	return claims.OID, claims.OID != ""
}

// AppendWire appends the JSON object that the service answers with: all values
// are strings, and what is left of the token's life is counted from now.
func (t Token) AppendWire(dst []byte, now time.Time) []byte {
	if t.wire == nil {
		t = t.Encoded()
	}
	dst = appendSeconds(append(dst, t.wire[0]...), t.ExpiresOn.Sub(now))
	dst = appendSeconds(append(dst, t.wire[1]...), t.extended().Sub(now))
	return append(dst, t.wire[2]...)
}

// Answer is what a request for tokens is answered with.
type Answer struct {
	// Token is of the identity's own tenant.
	Token Token
	// Auxiliary are those of further tenants, if the identity has any.
	Auxiliary []Token
}

// AppendWire appends the token as the service answers it. With auxiliary tokens
// it appends an array, the own tenant's first: the service itself knows no such
// answer, and AAD Pod Identity gave it to identities with auxiliary tenants.
func (a Answer) AppendWire(dst []byte, now time.Time) []byte {
	if len(a.Auxiliary) == 0 {
		return a.Token.AppendWire(dst, now)
	}
	dst = a.Token.AppendWire(append(dst, '['), now)
	for _, token := range a.Auxiliary {
		dst = token.AppendWire(append(dst, ','), now)
	}
	return append(dst, ']')
}

// AppendHostWire appends the answer of AAD Pod Identity's route for programs of
// the node: the token of the identity's own tenant, and its client ID.
func (a Answer) AppendHostWire(dst []byte, now time.Time) []byte {
	dst = a.Token.AppendWire(append(dst, `{"token":`...), now)
	return append(appendField(append(dst, ','), "clientid", a.Token.ClientID), '}')
}

func (t Token) extended() time.Time {
	if t.ExtExpiresOn.IsZero() {
		return t.ExpiresOn
	}
	return t.ExtExpiresOn
}

func appendSeconds(dst []byte, d time.Duration) []byte {
	return strconv.AppendInt(dst, max(0, int64(d/time.Second)), 10)
}

func appendEpoch(dst []byte, name string, t time.Time) []byte {
	if t.IsZero() {
		return appendField(dst, name, "")
	}
	return append(strconv.AppendInt(append(appendName(dst, name), '"'), t.Unix(), 10), '"')
}

func appendField(dst []byte, name, value string) []byte {
	return appendString(appendName(dst, name), value)
}

func appendName(dst []byte, name string) []byte {
	return append(append(append(dst, '"'), name...), `":`...)
}

// appendString quotes as the service does, without the escapes for HTML. Tokens
// and URLs are plain, and copied.
func appendString(dst []byte, s string) []byte {
	if !plain(s) {
		return append(dst, quote(s)...)
	}
	return append(append(append(dst, '"'), s...), '"')
}

func plain(s string) bool {
	for i := range len(s) {
		if c := s[i]; c < ' ' || c > '~' || c == '"' || c == '\\' {
			return false
		}
	}
	return true
}

func quote(s string) []byte {
	var out bytes.Buffer
	encoder := json.NewEncoder(&out)
	encoder.SetEscapeHTML(false)
	if err := encoder.Encode(strings.ToValidUTF8(s, "\uFFFD")); err != nil {
		// A string always encodes; were that to change, nothing is said.
		return []byte(`""`)
	}
	return bytes.TrimSuffix(out.Bytes(), []byte("\n"))
}

// flexible is a string, or a number as some proxies of the service write it.
type flexible string

// UnmarshalJSON takes a string, a number or null.
func (f *flexible) UnmarshalJSON(data []byte) error {
	if len(data) > 0 && data[0] == '"' {
		return json.Unmarshal(data, (*string)(f))
	}
	var number json.Number
	if err := json.Unmarshal(data, &number); err != nil {
		return err
	}
	*f = flexible(number)
	return nil
}

type wireToken struct {
	AccessToken  string   `json:"access_token"`
	ClientID     string   `json:"client_id"`
	ExpiresIn    flexible `json:"expires_in"`
	ExpiresOn    flexible `json:"expires_on"`
	ExtExpiresIn flexible `json:"ext_expires_in"`
	NotBefore    flexible `json:"not_before"`
	Resource     string   `json:"resource"`
	TokenType    string   `json:"token_type"`
}

// ParseToken reads the body of a token answer that was received at now. The
// error never quotes the body, which may hold a token.
func ParseToken(body []byte, now time.Time) (Token, error) {
	var wire wireToken
	if err := json.Unmarshal(body, &wire); err != nil {
		return Token{}, errors.New("the answer is not a JSON object with a token")
	}
	if wire.AccessToken == "" {
		return Token{}, errors.New("the answer holds no access_token")
	}
	expires, err := wire.expiry(now)
	if err != nil {
		return Token{}, err
	}
	out := Token{value: wire.AccessToken, ClientID: wire.ClientID, Resource: wire.Resource, Type: wire.TokenType, ExpiresOn: expires}
	if s, ok := number(wire.NotBefore); ok {
		out.NotBefore = time.Unix(s, 0)
	}
	if s, ok := number(wire.ExtExpiresIn); ok {
		out.ExtExpiresOn = now.Add(time.Duration(s) * time.Second).Truncate(time.Second)
	}
	return out, nil
}

func (w *wireToken) expiry(now time.Time) (time.Time, error) {
	if s, ok := number(w.ExpiresOn); ok {
		return time.Unix(s, 0), nil
	}
	if s, ok := number(w.ExpiresIn); ok {
		return now.Add(time.Duration(s) * time.Second).Truncate(time.Second), nil
	}
	return time.Time{}, errors.New("the answer holds no expires_on")
}

// farFuture keeps sums of times and durations in range: the year 9999.
const farFuture = 253402300799

func number(f flexible) (int64, bool) {
	n, err := strconv.ParseInt(string(f), 10, 64)
	return n, err == nil && n > 0 && n <= farFuture
}
