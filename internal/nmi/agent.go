package nmi

import (
	"context"
	"errors"
	"net/netip"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"go.opentelemetry.io/otel/attribute"
	"k8s.io/apimachinery/pkg/types"

	v1 "github.com/aad-pod-identity/aad-pod-identity/api/v1"
	"github.com/aad-pod-identity/aad-pod-identity/internal/audit"
	"github.com/aad-pod-identity/aad-pod-identity/internal/azure/imds"
	"github.com/aad-pod-identity/aad-pod-identity/internal/binding"
	"github.com/aad-pod-identity/aad-pod-identity/internal/identity"
	"github.com/aad-pod-identity/aad-pod-identity/internal/nmi/caller"
	"github.com/aad-pod-identity/aad-pod-identity/internal/nmi/resolve"
	"github.com/aad-pod-identity/aad-pod-identity/internal/nmi/server"
	"github.com/aad-pod-identity/aad-pod-identity/internal/nmi/tokensource"
	"github.com/aad-pod-identity/aad-pod-identity/internal/obs/tracing"
	"github.com/aad-pod-identity/aad-pod-identity/internal/refusal"
)

// objects is what the API server said, as far as it has been seen.
type objects interface {
	binding.Catalog
	resolve.Cluster
	Assigned(pod identity.Key) []*v1.AzureAssignedIdentity
	Exceptions(namespace string) []*v1.AzurePodIdentityException
	Changed() <-chan struct{}
	Unsynced() []string
	Stale() []string
}

// agent is the flow of one request through the stages: caller, resolve,
// tokensource.
type agent struct {
	node    string
	managed bool
	policy  binding.Policy
	callers *caller.Index
	objects objects
	tokens  issuer
	// credentials says which credential a service principal has.
	credentials credentials
	warnings    warnings
	// wait bounds how long a request waits for what may come by itself.
	wait time.Duration

	ready     atomic.Bool // objects were synced once, and so stay
	decisions decisions
}

var _ server.Agent = (*agent)(nil)

// credentials knows the Secrets of service principals.
type credentials interface {
	Current(ctx context.Context, id identity.Identity) (tokensource.Credential, error)
}

// issuer keeps tokens and gets them.
type issuer interface {
	Token(ctx context.Context, ask tokensource.Ask) (imds.Token, error)
}

// warnings tells the people who run a pod what they can mend.
type warnings interface {
	Warn(pod identity.Key, uid types.UID, reason v1.Reason, message string)
}

// Identify names the calling pod. Before everything that decides has been seen,
// it refuses: a pod without its exception, or a binding without its identity,
// would be judged by half the facts.
func (a *agent) Identify(ctx context.Context, remote netip.Addr, wait bool, record *audit.Record) (server.Caller, error) {
	if err := a.synced(); err != nil {
		return nil, err
	}
	pod, err := a.callers.Find(remote)
	if err != nil && wait {
		pod, err = a.callers.Lookup(ctx, remote)
	}
	if err != nil {
		return nil, err
	}
	_, excepted := binding.Exception(rulePod(pod), a.objects.Exceptions(pod.Namespace))
	return a.caller(podCaller{pod: pod, remote: remote, excepted: excepted}, record), nil
}

// Named finds a pod of this node for a program of the node.
func (a *agent) Named(ctx context.Context, key identity.Key, record *audit.Record) (server.Caller, error) {
	if err := a.synced(); err != nil {
		return nil, err
	}
	pod, err := a.callers.LookupNamed(ctx, key)
	if err != nil {
		return nil, err
	}
	return a.caller(podCaller{pod: pod, named: true}, record), nil
}

func (a *agent) caller(p podCaller, record *audit.Record) *podCaller {
	record.Pod, record.UID, record.ServiceAccount = p.pod.Key, p.pod.UID, p.pod.ServiceAccount
	p.agent = a
	return &p
}

func (a *agent) synced() error {
	if a.ready.Load() {
		return a.fresh()
	}
	missing := a.objects.Unsynced()
	if len(missing) == 0 {
		a.ready.Store(true)
		return nil
	}
	slices.Sort(missing)
	return refusal.New(v1.ReasonNotReady, "the agent has not yet read from the API server: %s", strings.Join(missing, ", "))
}

// fresh refuses what would be decided by facts that are too old.
func (a *agent) fresh() error {
	if stale := a.objects.Stale(); len(stale) > 0 {
		return refusal.New(v1.ReasonStale, "the API server has said nothing for longer than this agent may go on without it (flag --max-cache-staleness): %s", strings.Join(stale, ", "))
	}
	return nil
}

func rulePod(pod caller.Pod) binding.Pod {
	return binding.Pod{Namespace: pod.Namespace, Name: pod.Name, Labels: pod.Labels}
}

// podCaller is one pod that asks.
type podCaller struct {
	agent    *agent
	pod      caller.Pod
	remote   netip.Addr
	excepted bool
	// named says that a program of the node named the pod. It gets no tokens of
	// auxiliary tenants.
	named bool
}

// Excepted reports whether an AzurePodIdentityException selects the pod.
func (p *podCaller) Excepted() bool { return p.excepted }

// Token answers, or waits for a while on the watch if what is missing may come
// by itself. What the pod's owner can mend becomes an Event on the pod.
func (p *podCaller) Token(ctx context.Context, request imds.TokenRequest, record *audit.Record) (imds.Answer, error) {
	var patience <-chan time.Time
	for {
		changed := p.agent.objects.Changed()
		answer, err := p.attempt(ctx, request, record)
		if err == nil {
			return answer, nil
		}
		if patience == nil {
			patience = time.After(p.agent.wait)
		}
		if !resolve.Waits(refusal.Of(err).Reason) || !until(ctx, changed, patience) {
			p.warn(err)
			return imds.Answer{}, err
		}
		if err := p.refresh(); err != nil {
			return imds.Answer{}, err
		}
	}
}

// until waits for a change; false if ctx or the patience ended first.
func until(ctx context.Context, changed <-chan struct{}, patience <-chan time.Time) bool {
	select {
	case <-patience:
		return false
	default:
	}
	select {
	case <-changed:
		return true
	case <-patience:
	case <-ctx.Done():
	}
	return false
}

// refresh looks at the pod again, which may have got a label meanwhile, or have
// ended and left its address to another.
func (p *podCaller) refresh() error {
	pod, err := p.find()
	if err != nil {
		return err
	}
	if pod.UID != p.pod.UID {
		return refusal.New(v1.ReasonCallerUnknown, "pod %s has ended", p.pod.Key)
	}
	p.pod = pod
	return nil
}

func (p *podCaller) find() (caller.Pod, error) {
	if p.named {
		return p.agent.callers.FindNamed(p.pod.Key)
	}
	return p.agent.callers.Find(p.remote)
}

func (p *podCaller) attempt(ctx context.Context, request imds.TokenRequest, record *audit.Record) (imds.Answer, error) {
	query := resolve.Query{ClientID: request.ClientID, ObjectID: request.ObjectID, ResourceID: request.ResourceID}
	choice, refused := p.decide(ctx, query)
	if refused != nil {
		return imds.Answer{}, refused
	}
	if request.ObjectID != "" {
		return p.byObjectID(ctx, choice, request, record)
	}
	chosen := choice.Identities[0]
	record.Identity = chosen.Key
	if choice.Several {
		p.tell(v1.ReasonSeveralIdentities,
			"the pod asked for no identity in particular and has several: it gets AzureIdentity "+chosen.String()+"; give client_id or the resource ID to choose")
	}
	return p.issue(ctx, chosen, request)
}

// issue gets the token of an identity, and those of its auxiliary tenants. All
// of them come, or none does.
func (p *podCaller) issue(ctx context.Context, id identity.Identity, request imds.TokenRequest) (imds.Answer, error) {
	token, err := p.token(ctx, id.In(id.TenantID), request)
	if err != nil {
		return imds.Answer{}, err
	}
	answer := imds.Answer{Token: token}
	for _, tenant := range id.AuxiliaryTenants {
		if tenant == "" || p.named {
			break
		}
		if token, err = p.token(ctx, id.In(tenant), request); err != nil {
			return imds.Answer{}, err
		}
		answer.Auxiliary = append(answer.Auxiliary, token)
	}
	return answer, nil
}

// token gets one token. A service principal's credential is looked at first: a
// token that was got with another one is not served any more.
func (p *podCaller) token(ctx context.Context, id identity.Identity, request imds.TokenRequest) (imds.Token, error) {
	wanted := tokensource.Ask{
		Request: tokensource.Request{Identity: id, Resource: request.Resource, Fresh: request.BypassCache}, Pod: p.pod.Key, UID: p.pod.UID,
	}
	if id.Credential != (identity.Key{}) {
		current, err := p.agent.credentials.Current(ctx, id)
		if err != nil {
			return imds.Token{}, err
		}
		for _, warning := range current.Warnings {
			p.tell(warning.Reason, warning.Message)
		}
		wanted.Version = current.Version
	}
	return p.agent.tokens.Token(ctx, wanted)
}

func (p *podCaller) decide(ctx context.Context, query resolve.Query) (resolve.Choice, *refusal.Error) {
	_, span := tracing.Child(ctx, "decide")
	defer span.End()
	choice, refused := p.resolve(query)
	if refused != nil && span.On() {
		span.Set(attribute.String("podidentity.reason", string(refused.Reason)))
	}
	return choice, refused
}

// resolve decides, or knows what was decided of the same things.
func (p *podCaller) resolve(query resolve.Query) (resolve.Choice, *refusal.Error) {
	now := p.agent.objects.Changed()
	asked := question{uid: p.pod.UID, selector: rulePod(p.pod).Selector(), query: query}
	if known, ok := p.agent.decisions.of(now, asked); ok {
		return known, nil
	}
	choice, refused := resolve.Resolve(query, p.candidates(), p.agent.objects)
	if refused == nil {
		p.agent.decisions.keep(now, asked, choice)
	}
	return choice, refused
}

func (p *podCaller) candidates() resolve.Candidates {
	a := p.agent
	if a.managed {
		return resolve.Managed(rulePod(p.pod), a.objects)
	}
	return resolve.Standard(resolve.StandardInput{
		Pod: rulePod(p.pod), Node: a.node, Catalog: a.objects, Policy: a.policy, Assigned: a.objects.Assigned(p.pod.Key),
	})
}

// byObjectID asks for the tokens of the pod's identities until one says that it
// is for the principal that was asked for: no AzureIdentity knows its object ID,
// but the tokens, which come straight from the service, do. A token for another
// principal never gets out. Where an identity could not be looked at, that is
// the answer rather than "not found".
func (p *podCaller) byObjectID(ctx context.Context, choice resolve.Choice, request imds.TokenRequest, record *audit.Record) (imds.Answer, error) {
	var failures []error
	for _, candidate := range choice.Identities {
		token, err := p.token(ctx, candidate.In(candidate.TenantID), request)
		if err != nil {
			failures = append(failures, err)
			continue
		}
		if oid, ok := token.ObjectID(); ok && strings.EqualFold(oid, request.ObjectID) {
			record.Identity = candidate.Key
			return p.issue(ctx, candidate, request)
		}
	}
	if len(failures) > 0 {
		return imds.Answer{}, errors.Join(failures...)
	}
	return imds.Answer{}, choice.Otherwise
}

// warn tells the owners of the pod what they can mend. A pod without the label
// has nothing to do with pod identity, and every SDK tries the metadata service
// once; what is merely not attached yet mends itself.
func (p *podCaller) warn(err error) {
	refused := refusal.Of(err)
	switch refused.Reason {
	case v1.ReasonNoBinding, v1.ReasonIdentityNotFound, v1.ReasonNotAssigned, v1.ReasonNotBound, v1.ReasonUnknownIdentity,
		v1.ReasonNamespaceMismatch, v1.ReasonInvalidBinding, v1.ReasonInvalidIdentity, v1.ReasonNameConflict,
		v1.ReasonUnsupportedIdentityType, v1.ReasonUpstreamRefused,
		v1.ReasonSecretNotFound, v1.ReasonInvalidSecret, v1.ReasonSecretForbidden, v1.ReasonAuthorityForbidden:
		p.tell(refused.Reason, refused.Message)
	}
}

func (p *podCaller) tell(reason v1.Reason, message string) {
	p.agent.warnings.Warn(p.pod.Key, p.pod.UID, reason, message)
}
