// Package credential finds the credentials of service principals in Secrets: who
// may have which, what in them counts, and how long they are kept.
//
// It must not send a credential anywhere, nor write one into an error, a log or
// a version.
package credential

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"golang.org/x/sync/singleflight"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"

	v1 "github.com/aad-pod-identity/aad-pod-identity/api/v1"
	"github.com/aad-pod-identity/aad-pod-identity/internal/azure/entra"
	"github.com/aad-pod-identity/aad-pod-identity/internal/identity"
	"github.com/aad-pod-identity/aad-pod-identity/internal/nmi/tokensource"
	"github.com/aad-pod-identity/aad-pod-identity/internal/refusal"
)

// Reader gets a Secret from the API server.
type Reader interface {
	Secret(ctx context.Context, key identity.Key) (*corev1.Secret, error)
}

// Options configure a [Store]. Zero values stand for the defaults.
type Options struct {
	Reader Reader
	// CrossNamespace lets an identity use a Secret of another namespace, with a
	// warning each.
	CrossNamespace bool
	// MaxAge is how long a Secret is used before it is read again, and so how
	// long a changed or deleted one may be in use; 1 minute.
	MaxAge time.Duration
	// Retry is how long nothing is read again after the API server could not be
	// asked, while an older reading is there; 5 seconds.
	Retry time.Duration
	// Timeout bounds one reading; 5 seconds.
	Timeout time.Duration
	// Size bounds the number of Secrets kept; 1024.
	Size int
	// Failed is told of every reading that failed; nil tells nobody.
	Failed func()
	// Now is the clock; nil is the real one.
	Now func() time.Time
}

func (o Options) withDefaults() Options {
	for _, d := range []struct {
		into  *time.Duration
		value time.Duration
	}{{&o.MaxAge, time.Minute}, {&o.Retry, 5 * time.Second}, {&o.Timeout, 5 * time.Second}} {
		if *d.into == 0 {
			*d.into = d.value
		}
	}
	if o.Size == 0 {
		o.Size = 1024
	}
	if o.Failed == nil {
		o.Failed = func() {}
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	return o
}

// Store keeps credentials for a short while. While the API server is away, what
// was read last is used. It is safe for concurrent use.
type Store struct {
	options Options
	reading singleflight.Group

	mu      sync.Mutex // protects all following fields
	entries map[entryKey]entry
}

// entryKey is all that the outcome of a reading depends on: the rules look at the
// identity's type and namespace. Several identities can share one, so that what
// is kept must not name any.
type entryKey struct {
	secret    identity.Key
	namespace string
	kind      identity.Kind
}

// entry is a reading, good or bad.
type entry struct {
	until    time.Time // when to read again
	version  string
	value    entra.Credential
	warnings []tokensource.Warning
	err      error
}

// New returns an empty store.
func New(options Options) *Store {
	return &Store{options: options.withDefaults(), entries: map[entryKey]entry{}}
}

// Current says which credential the identity has. Every error is a
// [*refusal.Error].
func (s *Store) Current(ctx context.Context, id identity.Identity) (tokensource.Credential, error) {
	found, err := s.get(ctx, id)
	return tokensource.Credential{Version: found.version, Warnings: found.warnings}, err
}

// Credential returns the credential itself.
func (s *Store) Credential(ctx context.Context, id identity.Identity) (entra.Credential, error) {
	found, err := s.get(ctx, id)
	return found.value, err
}

// Doubt makes the next one who asks read the Secret again: Entra has refused
// what it held, so it may have been changed.
func (s *Store) Doubt(id identity.Identity) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if known, ok := s.entries[keyOf(id)]; ok {
		known.until = time.Time{}
		s.entries[keyOf(id)] = known
	}
}

func keyOf(id identity.Identity) entryKey {
	return entryKey{secret: id.Credential, namespace: id.Namespace, kind: id.Kind}
}

func (s *Store) get(ctx context.Context, id identity.Identity) (entry, error) {
	if id.Credential.Namespace != id.Namespace && !s.options.CrossNamespace {
		return entry{}, refusal.New(v1.ReasonSecretForbidden,
			"AzureIdentity %s names Secret %s of another namespace, which this install does not allow: copy it beside the identity, or start the agent with --allow-cross-namespace-secrets", id.Key, id.Credential)
	}
	key := keyOf(id)
	s.mu.Lock()
	known, ok := s.entries[key]
	s.mu.Unlock()
	if ok && s.options.Now().Before(known.until) {
		return known, known.err
	}
	// The reading goes on when the one who asked has left: others wait for it.
	reading := s.reading.DoChan(fmt.Sprintf("%+v", key), func() (any, error) {
		return s.read(context.WithoutCancel(ctx), id, known), nil
	})
	select {
	case result := <-reading:
		read, ok := result.Val.(entry)
		if !ok {
			return entry{}, errors.New("reading a Secret: nothing came of it")
		}
		return read, read.err
	case <-ctx.Done():
		return entry{}, unanswered(id, ctx.Err())
	}
}

// read reads the Secret and keeps what came of it. before is the last reading,
// if there was one.
func (s *Store) read(ctx context.Context, id identity.Identity, before entry) entry {
	ctx, cancel := context.WithTimeout(ctx, s.options.Timeout)
	defer cancel()
	secret, err := s.options.Reader.Secret(ctx, id.Credential)
	now := s.options.Now()
	out := entry{until: now.Add(s.options.MaxAge)}
	switch {
	case err == nil && before.value != nil && before.version == secret.ResourceVersion:
		out = before
		out.until = now.Add(s.options.MaxAge)
	case err == nil:
		out.version = secret.ResourceVersion
		out.value, out.warnings, out.err = read(id, secret, now)
		if out.err == nil && id.Credential.Namespace != id.Namespace {
			out.warnings = append(out.warnings, crossing(id))
		}
	default:
		s.options.Failed()
		if out.err = failed(id, err); passing(err) {
			out = s.again(before, out, now)
		}
	}
	s.keep(keyOf(id), out)
	return out
}

// again stands in for a reading that the API server did not answer.
func (s *Store) again(before, failed entry, now time.Time) entry {
	if before.value != nil {
		before.until = now.Add(s.options.Retry)
		return before
	}
	failed.until = now // nothing is kept: the next one asks again
	return failed
}

func (s *Store) keep(key entryKey, value entry) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if _, known := s.entries[key]; !known && len(s.entries) >= s.options.Size {
		s.evict()
	}
	s.entries[key] = value
}

// evict drops what was not read for longest.
func (s *Store) evict() {
	var oldest entryKey
	var first time.Time
	for key, value := range s.entries {
		if first.IsZero() || value.until.Before(first) {
			oldest, first = key, value.until
		}
	}
	delete(s.entries, oldest)
}

func crossing(id identity.Identity) tokensource.Warning {
	return tokensource.Warning{Reason: v1.ReasonCrossNamespaceSecret, Message: fmt.Sprintf(
		"an AzureIdentity of namespace %s uses Secret %s of another namespace: whoever may write identities there can use any Secret; copy it beside the identity", id.Namespace, id.Credential)}
}

// passing reports whether a failure says nothing about the Secret.
func passing(err error) bool {
	return !apierrors.IsNotFound(err) && !apierrors.IsForbidden(err)
}

func failed(id identity.Identity, err error) error {
	switch {
	case apierrors.IsNotFound(err):
		return refusal.New(v1.ReasonSecretNotFound, "Secret %s does not exist: create it", id.Credential)
	case apierrors.IsForbidden(err):
		out := refusal.New(v1.ReasonSecretForbidden,
			"the agent has no right to read Secret %s: the chart gives it with rbac.allowAccessToSecrets", id.Credential)
		out.Err = err
		return out
	}
	return unanswered(id, err)
}

func unanswered(id identity.Identity, err error) error {
	return &refusal.Error{Reason: v1.ReasonNotReady, Err: err,
		Message: fmt.Sprintf("Secret %s cannot be read, the API server does not answer: try again", id.Credential)}
}
