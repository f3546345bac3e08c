package credential_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"

	v1 "github.com/aad-pod-identity/aad-pod-identity/api/v1"
	"github.com/aad-pod-identity/aad-pod-identity/internal/azure/entra"
	"github.com/aad-pod-identity/aad-pod-identity/internal/identity"
	"github.com/aad-pod-identity/aad-pod-identity/internal/nmi/tokensource"
	"github.com/aad-pod-identity/aad-pod-identity/internal/nmi/tokensource/credential"
	"github.com/aad-pod-identity/aad-pod-identity/internal/refusal"
)

const hidden = "s3cr3t-value"

// secrets is an API server with one Secret.
type secrets struct {
	mu     sync.Mutex // protects all following fields
	secret *corev1.Secret
	err    error
	reads  int
	gate   chan struct{} // if set, a reading waits until it is closed
}

func (s *secrets) Secret(ctx context.Context, key identity.Key) (*corev1.Secret, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.reads++
	if gate := s.gate; gate != nil {
		s.mu.Unlock()
		select {
		case <-gate:
		case <-ctx.Done():
		}
		s.mu.Lock()
	}
	switch {
	case ctx.Err() != nil:
		return nil, ctx.Err()
	case s.err != nil:
		return nil, s.err
	case s.secret == nil:
		return nil, apierrors.NewNotFound(schema.GroupResource{Resource: "secrets"}, key.Name)
	}
	return s.secret.DeepCopy(), nil
}

func (s *secrets) set(change func(*secrets)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	change(s)
}

func (s *secrets) count() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.reads
}

func secretOf(version string, kind corev1.SecretType, pairs ...string) *corev1.Secret {
	out := &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: "secret", ResourceVersion: version}, Type: kind, Data: map[string][]byte{}}
	for i := 0; i+1 < len(pairs); i += 2 {
		out.Data[pairs[i]] = []byte(pairs[i+1])
	}
	return out
}

func principal(kind identity.Kind) identity.Identity {
	return identity.Identity{Key: identity.Key{Namespace: "ns", Name: "id"}, Kind: kind, TenantID: "t", Credential: identity.Key{Namespace: "ns", Name: "secret"}}
}

func reasonOf(err error) v1.Reason {
	if err == nil {
		return ""
	}
	return refusal.Of(err).Reason
}

func warned(warnings []tokensource.Warning) v1.Reason {
	var out v1.Reason
	for _, w := range warnings {
		out += w.Reason
	}
	return out
}

func TestWhatCountsInASecret(t *testing.T) {
	const sp, cert = identity.ServicePrincipal, identity.ServicePrincipalCertificate
	own := principal(sp)
	far := own
	far.Namespace = "elsewhere"
	for name, test := range map[string]struct {
		id     identity.Identity
		secret *corev1.Secret
		want   string
		warned v1.Reason
		reason v1.Reason
		words  string
	}{
		"the documented key":                {id: own, secret: secretOf("1", corev1.SecretTypeOpaque, "clientSecret", hidden), want: hidden},
		"the documented key among others":   {id: own, secret: secretOf("1", "", "a", "x", "clientSecret", hidden, "z", "y"), want: hidden},
		"the documented key, another type":  {id: own, secret: secretOf("1", "example.com/x", "clientSecret", hidden), want: hidden},
		"one key of another name":           {id: own, secret: secretOf("1", corev1.SecretTypeOpaque, "password", hidden), want: hidden, warned: v1.ReasonUndocumentedKey},
		"one such, in another namespace":    {id: far, secret: secretOf("1", corev1.SecretTypeOpaque, "password", hidden), reason: v1.ReasonInvalidSecret, words: "own namespace only"},
		"one such, of another type":         {id: own, secret: secretOf("1", corev1.SecretTypeDockerConfigJson, ".dockerconfigjson", hidden), reason: v1.ReasonInvalidSecret, words: "Opaque"},
		"several keys of other names":       {id: own, secret: secretOf("1", corev1.SecretTypeOpaque, "a", hidden, "b", hidden), reason: v1.ReasonInvalidSecret, words: "2 others"},
		"the documented key in other case":  {id: own, secret: secretOf("1", corev1.SecretTypeOpaque, "ClientSecret", hidden, "b", hidden), reason: v1.ReasonInvalidSecret, words: "no key clientSecret"},
		"no key":                            {id: own, secret: secretOf("1", ""), reason: v1.ReasonInvalidSecret, words: "empty"},
		"an empty value":                    {id: own, secret: secretOf("1", "", "clientSecret", ""), reason: v1.ReasonInvalidSecret, words: "is empty"},
		"a value with a line break":         {id: own, secret: secretOf("1", "", "clientSecret", hidden+"\n"), reason: v1.ReasonInvalidSecret, words: "echo -n"},
		"a ServiceAccount's token":          {id: own, secret: secretOf("1", corev1.SecretTypeServiceAccountToken, "clientSecret", hidden), reason: v1.ReasonSecretForbidden, words: "never sent to Entra"},
		"a bootstrap token":                 {id: own, secret: secretOf("1", corev1.SecretTypeBootstrapToken, "token-secret", hidden), reason: v1.ReasonSecretForbidden, words: "never sent"},
		"a secret is no certificate":        {id: principal(cert), secret: secretOf("1", "", "clientSecret", hidden), reason: v1.ReasonInvalidSecret, words: "no key certificate"},
		"a certificate that is none":        {id: principal(cert), secret: secretOf("1", "", "certificate", hidden), reason: v1.ReasonInvalidSecret, words: "neither a PFX"},
		"another key is not taken for it":   {id: principal(cert), secret: secretOf("1", "", "tls.crt", hidden), reason: v1.ReasonInvalidSecret, words: "no key certificate"},
		"of another namespace, but allowed": {id: far, secret: secretOf("1", "", "clientSecret", hidden), want: hidden, warned: v1.ReasonCrossNamespaceSecret},
		"there is none":                     {id: own, reason: v1.ReasonSecretNotFound, words: "create it"},
	} {
		t.Run(name, func(t *testing.T) {
			store := credential.New(credential.Options{Reader: &secrets{secret: test.secret}, CrossNamespace: true})
			current, err := store.Current(t.Context(), test.id)
			value, valueErr := store.Credential(t.Context(), test.id)
			if reasonOf(err) != test.reason || reasonOf(valueErr) != test.reason || warned(current.Warnings) != test.warned {
				t.Fatalf("got %+v, %v, %v", current, err, valueErr)
			}
			if test.reason != "" {
				if message := refusal.Of(err).Message; !strings.Contains(message, test.words) || strings.Contains(fmt.Sprintf("%+v", err), hidden) {
					t.Errorf("message: %s", message)
				}
				return
			}
			if value != entra.Credential(entra.NewSecret(test.want)) || current.Version != "1" {
				t.Errorf("not the credential that is meant, or version %q", current.Version)
			}
		})
	}
}

// Who may edit one namespace must not make the agent use another's Secrets.
func TestASecretOfAnotherNamespaceIsNotEvenRead(t *testing.T) {
	reader := &secrets{secret: secretOf("1", "", "clientSecret", hidden)}
	store := credential.New(credential.Options{Reader: reader})
	id := principal(identity.ServicePrincipal)
	id.Namespace = "attacker"
	for range 3 {
		if _, err := store.Credential(t.Context(), id); reasonOf(err) != v1.ReasonSecretForbidden || !strings.Contains(err.Error(), "--allow-cross-namespace-secrets") {
			t.Errorf("got %v", err)
		}
	}
	if _, err := store.Current(t.Context(), principal(identity.ServicePrincipal)); err != nil {
		t.Errorf("the owner: %v", err)
	}
	if _, err := store.Current(t.Context(), id); reasonOf(err) != v1.ReasonSecretForbidden {
		t.Errorf("after the owner: %v", err)
	}
	if reader.count() != 1 {
		t.Errorf("%d readings", reader.count())
	}
}

// readings is the steps of a day in the life of a Secret.
type step struct {
	name    string
	after   time.Duration
	do      func(*secrets, *credential.Store)
	version string
	reason  v1.Reason
	reads   int
}

func TestHowLongASecretIsUsed(t *testing.T) {
	id := principal(identity.ServicePrincipal)
	down := errors.New("connection refused")
	fresh := func(version string) func(*secrets, *credential.Store) {
		return func(r *secrets, _ *credential.Store) {
			r.set(func(s *secrets) { s.secret, s.err = secretOf(version, "", "clientSecret", hidden+version), nil })
		}
	}
	synctest.Test(t, func(t *testing.T) {
		reader := &secrets{}
		failures := 0
		store := credential.New(credential.Options{Reader: reader, Failed: func() { failures++ }})
		for _, s := range []step{
			{"there is none", 0, nil, "", v1.ReasonSecretNotFound, 1},
			{"that is remembered", time.Second, fresh("1"), "", v1.ReasonSecretNotFound, 0},
			{"it comes", time.Minute, nil, "1", "", 1},
			{"it is kept", 59 * time.Second, fresh("2"), "1", "", 0},
			{"a change is seen", 2 * time.Second, nil, "2", "", 1},
			{"Entra refuses it", time.Second, func(_ *secrets, c *credential.Store) { fresh("3")(reader, nil); c.Doubt(id) }, "3", "", 1},
			{"the API server goes", time.Minute, func(r *secrets, _ *credential.Store) { r.set(func(s *secrets) { s.err = down }) }, "3", "", 1},
			{"not every request waits for it", time.Second, nil, "3", "", 0},
			{"it is asked again", 5 * time.Second, nil, "3", "", 1},
			{"an hour later", time.Hour, nil, "3", "", 1},
			{"it is back, nothing has changed", time.Minute, fresh("3"), "3", "", 1},
			{"it is broken", time.Minute, func(r *secrets, _ *credential.Store) {
				r.set(func(s *secrets) { s.secret = secretOf("4", "", "clientSecret", "") })
			}, "4", v1.ReasonInvalidSecret, 1},
			{"the right is gone", time.Minute, func(r *secrets, _ *credential.Store) {
				r.set(func(s *secrets) {
					s.err = apierrors.NewForbidden(schema.GroupResource{Resource: "secrets"}, "secret", errors.New("no"))
				})
			}, "", v1.ReasonSecretForbidden, 1},
			{"the Secret is deleted", time.Minute, func(r *secrets, _ *credential.Store) {
				r.set(func(s *secrets) { s.secret, s.err = nil, nil })
			}, "", v1.ReasonSecretNotFound, 1},
		} {
			<-time.After(s.after)
			if s.do != nil {
				s.do(reader, store)
			}
			before := reader.count()
			current, err := store.Current(t.Context(), id)
			if current.Version != s.version || reasonOf(err) != s.reason || reader.count()-before != s.reads {
				t.Errorf("%s: version %q, %v, %d readings", s.name, current.Version, err, reader.count()-before)
			}
		}
		if failures != 6 {
			t.Errorf("%d failures were told", failures)
		}
	})
}

func TestWithoutAnAPIServer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		reader := &secrets{gate: make(chan struct{})}
		store := credential.New(credential.Options{Reader: reader})
		id := principal(identity.ServicePrincipal)
		begin := time.Now()
		if _, err := store.Current(t.Context(), id); reasonOf(err) != v1.ReasonNotReady || time.Since(begin) != 5*time.Second {
			t.Errorf("%v after %s", err, time.Since(begin))
		}
		// Nothing of it is remembered.
		reader.set(func(s *secrets) { s.gate, s.secret = nil, secretOf("1", "", "clientSecret", hidden) })
		if _, err := store.Current(t.Context(), id); err != nil {
			t.Error(err)
		}
	})
}

// A hundred who ask at once make one reading, which goes on without the first.
func TestOneReadingForAll(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		reader := &secrets{gate: make(chan struct{}), secret: secretOf("1", "", "clientSecret", hidden)}
		store := credential.New(credential.Options{Reader: reader})
		id := principal(identity.ServicePrincipal)
		first, leave := context.WithCancel(t.Context())
		left := make(chan error, 1)
		go func() { _, err := store.Current(first, id); left <- err }()
		synctest.Wait()
		var group sync.WaitGroup
		for range 99 {
			group.Go(func() {
				if current, err := store.Current(t.Context(), id); err != nil || current.Version != "1" {
					t.Errorf("got %+v, %v", current, err)
				}
			})
		}
		synctest.Wait()
		leave()
		if err := <-left; reasonOf(err) != v1.ReasonNotReady {
			t.Errorf("the one that left: %v", err)
		}
		close(reader.gate)
		group.Wait()
		if reader.count() != 1 {
			t.Errorf("%d readings", reader.count())
		}
	})
}

func TestTheStoreIsBounded(t *testing.T) {
	reader := &secrets{secret: secretOf("1", "", "clientSecret", hidden)}
	store := credential.New(credential.Options{Reader: reader, Size: 10})
	ask := func(n int) {
		id := principal(identity.ServicePrincipal)
		id.Credential.Name = fmt.Sprint(n)
		if _, err := store.Current(t.Context(), id); err != nil {
			t.Fatal(err)
		}
	}
	for n := range 100 {
		ask(n)
	}
	before := reader.count()
	for n := range 100 {
		ask(99 - n)
	}
	if again := reader.count() - before; again < 90 || again > 99 {
		t.Errorf("%d of 100 were read again; at most 10 and at least one should have been there", again)
	}
}
