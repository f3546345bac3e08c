package imds_test

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"log/slog"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/aad-pod-identity/aad-pod-identity/internal/azure/imds"
)

var now = time.Unix(1_700_000_000, 0)

const body = `{"access_token":"header.payload.signature","client_id":"c0ffee","expires_in":"86399","expires_on":"1700086399","ext_expires_in":"86399","not_before":"1699999700","resource":"https://vault.azure.net","token_type":"Bearer"}`

func TestTokenIsWrittenByteForByteAsItWasRead(t *testing.T) {
	token, err := imds.ParseToken([]byte(body), now)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(body, string(token.AppendWire(nil, now))); diff != "" {
		t.Error(diff)
	}
}

func TestTokenCountsWhatIsLeft(t *testing.T) {
	token, err := imds.ParseToken([]byte(body), now)
	if err != nil {
		t.Fatal(err)
	}
	for name, test := range map[string]struct {
		later time.Duration
		want  string
	}{
		"an hour later":    {time.Hour, "82799"},
		"after its end":    {48 * time.Hour, "0"},
		"half a second on": {500 * time.Millisecond, "86398"},
	} {
		t.Run(name, func(t *testing.T) {
			var got map[string]string
			if err := json.Unmarshal(token.AppendWire(nil, now.Add(test.later)), &got); err != nil {
				t.Fatal(err)
			}
			want := []string{test.want, "1700086399", test.want}
			if diff := cmp.Diff(want, []string{got["expires_in"], got["expires_on"], got["ext_expires_in"]}); diff != "" {
				t.Error(diff)
			}
		})
	}
}

func TestParseTokenTakesOtherSpellings(t *testing.T) {
	for name, test := range map[string]struct {
		body    string
		expires int64
	}{
		"numbers":          {`{"access_token":"a","expires_on":1700000100,"expires_in":100}`, 1_700_000_100},
		"expires_in alone": {`{"access_token":"a","expires_in":"60"}`, 1_700_000_060},
		"null fields":      {`{"access_token":"a","expires_in":"60","not_before":null,"ext_expires_in":null}`, 1_700_000_060},
	} {
		t.Run(name, func(t *testing.T) {
			token, err := imds.ParseToken([]byte(test.body), now)
			if err != nil {
				t.Fatal(err)
			}
			if token.ExpiresOn.Unix() != test.expires {
				t.Errorf("expires on %d, want %d", token.ExpiresOn.Unix(), test.expires)
			}
		})
	}
}

func TestParseTokenRefuses(t *testing.T) {
	for name, body := range map[string]string{
		"empty":         ``,
		"not JSON":      `secret-token`,
		"a list":        `[{"access_token":"secret-token","expires_on":"1"}]`,
		"no token":      `{"expires_on":"1700000100"}`,
		"no expiry":     `{"access_token":"secret-token"}`,
		"absurd expiry": `{"access_token":"secret-token","expires_on":"9223372036854775807"}`,
		"date expiry":   `{"access_token":"secret-token","expires_on":"12/31/2030"}`,
	} {
		t.Run(name, func(t *testing.T) {
			_, err := imds.ParseToken([]byte(body), now)
			if err == nil {
				t.Fatal("accepted")
			}
			if strings.Contains(err.Error(), "secret-token") {
				t.Errorf("the error holds the token: %v", err)
			}
		})
	}
}

func TestTokenIsNeverPrinted(t *testing.T) {
	token := imds.NewToken("very-secret", imds.Token{ClientID: "c"})
	var log bytes.Buffer
	slog.New(slog.NewTextHandler(&log, nil)).Info("m", "token", token, "pointer", &token)
	inJSON, err := json.Marshal(map[string]any{"t": token, "p": &token})
	if err != nil {
		t.Fatal(err)
	}
	nested := struct{ T imds.Token }{token}
	for _, printed := range []string{
		token.String(), log.String(), string(inJSON),
		fmt.Sprintf("%v %+v %#v %s %q %d %x", token, token, token, token, token, token, token),
		fmt.Sprintf("%v %+v %#v", &token, nested, nested),
	} {
		if strings.Contains(printed, "very-secret") || strings.Contains(printed, fmt.Sprintf("%x", "very-secret")) {
			t.Errorf("printed the token: %s", printed)
		}
	}
	if token.Value() != "very-secret" {
		t.Error("lost the value")
	}
}

func TestObjectID(t *testing.T) {
	jwt := func(claims string) string {
		return "h." + base64.RawURLEncoding.EncodeToString([]byte(claims)) + ".s"
	}
	for name, test := range map[string]struct {
		token, want string
	}{
		"a JWT":          {jwt(`{"oid":"o-1","sub":"s"}`), "o-1"},
		"no oid":         {jwt(`{"sub":"s"}`), ""},
		"oid not a text": {jwt(`{"oid":7}`), ""},
		"not a JWT":      {"opaque", ""},
		"bad base64":     {"h.!!.s", ""},
	} {
		t.Run(name, func(t *testing.T) {
			got, ok := imds.NewToken(test.token, imds.Token{}).ObjectID()
			if got != test.want || ok != (test.want != "") {
				t.Errorf("got %q, %v", got, ok)
			}
		})
	}
}

// What is written can be read again and is the same, whatever the strings hold.
func FuzzTokenRoundTrip(f *testing.F) {
	f.Add("a.b.c", "client", "https://vault.azure.net", "Bearer", int64(1_700_000_100))
	f.Add(`"\<>&`, "\u2028", "r\x00", "", int64(1))
	f.Fuzz(func(t *testing.T, value, client, resource, kind string, expires int64) {
		in := imds.NewToken(value, imds.Token{ClientID: client, Resource: resource, Type: kind, ExpiresOn: time.Unix(expires, 0)})
		wire := in.AppendWire(nil, now)
		if !json.Valid(wire) {
			t.Fatalf("not JSON: %q", wire)
		}
		out, err := imds.ParseToken(wire, now)
		if err != nil {
			return
		}
		if again := out.AppendWire(nil, now); !bytes.Equal(wire, again) {
			t.Fatalf("wrote %q, then %q", wire, again)
		}
	})
}

// No body of an answer makes the parser panic, and no error of it quotes a body.
func FuzzParseToken(f *testing.F) {
	f.Add(body)
	f.Add(`{"access_token":{}}`)
	f.Fuzz(func(t *testing.T, body string) {
		token, err := imds.ParseToken([]byte(body), now)
		if err == nil && (token.Value() == "" || token.ExpiresOn.IsZero()) {
			t.Fatalf("accepted %q as a token without a value or an end", body)
		}
	})
}

func TestAnswers(t *testing.T) {
	token := func(value string) imds.Token {
		return imds.NewToken(value, imds.Token{ClientID: "c", Resource: "r", Type: "Bearer", ExpiresOn: now.Add(time.Hour), NotBefore: now})
	}
	wire := func(value string) string { return string(token(value).AppendWire(nil, now)) }
	one, three := imds.Answer{Token: token("a")}, imds.Answer{Token: token("a"), Auxiliary: []imds.Token{token("b"), token("c")}}
	for name, test := range map[string]struct {
		append func([]byte, time.Time) []byte
		want   string
	}{
		"one":                   {one.AppendWire, wire("a")},
		"several":               {three.AppendWire, "[" + wire("a") + "," + wire("b") + "," + wire("c") + "]"},
		"one, for the node":     {one.AppendHostWire, `{"token":` + wire("a") + `,"clientid":"c"}`},
		"several, for the node": {three.AppendHostWire, `{"token":` + wire("a") + `,"clientid":"c"}`},
	} {
		t.Run(name, func(t *testing.T) {
			got := string(test.append(nil, now))
			if diff := cmp.Diff(test.want, got); diff != "" || !json.Valid([]byte(got)) {
				t.Error(diff)
			}
		})
	}
}

func TestATokenEncodedOnceIsRightInEachAnswer(t *testing.T) {
	for name, body := range map[string]string{
		"as the service answers": body,
		"with little in it":      `{"access_token":"t","expires_on":"1700086399"}`,
		"with text to escape":    `{"access_token":"a\"b\\c\u00e9","expires_on":"1700086399","resource":"r<>&"}`,
	} {
		t.Run(name, func(t *testing.T) {
			token, err := imds.ParseToken([]byte(body), now)
			if err != nil {
				t.Fatal(err)
			}
			once := token.Encoded()
			for _, later := range []time.Duration{0, time.Second, 23 * time.Hour, 48 * time.Hour} {
				want := string(token.AppendWire(nil, now.Add(later)))
				if diff := cmp.Diff(want, string(once.AppendWire([]byte("["), now.Add(later))[1:])); diff != "" {
					t.Errorf("%s later: %s", later, diff)
				}
			}
			if allocations := testing.AllocsPerRun(100, func() { once.AppendWire(make([]byte, 0, 4096)[:0], now) }); allocations > 1 {
				t.Errorf("%.0f allocations for an answer", allocations)
			}
		})
	}
}
