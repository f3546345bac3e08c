// Package audit writes one structured line for every decision about a pod's
// request.
//
// A line says who asked for what and how it went. It must never hold a token, a
// secret or a body.
package audit

import (
	"context"
	"log/slog"
	"net/netip"
	"strings"
	"time"

	"k8s.io/apimachinery/pkg/types"

	v1 "github.com/aad-pod-identity/aad-pod-identity/api/v1"
	"github.com/aad-pod-identity/aad-pod-identity/internal/identity"
	"github.com/aad-pod-identity/aad-pod-identity/internal/obs"
)

// Route is the part of the metadata service that was asked; the set is closed
// and labels metrics.
type Route string

// The routes.
const (
	RouteToken    Route = "token"
	RouteHost     Route = "host"
	RouteInstance Route = "instance"
	RouteOther    Route = "other"
)

// Record is one decision. What is not known by the time of a refusal is zero.
type Record struct {
	// At is when it was made.
	At             time.Time
	Remote         netip.Addr
	Route          Route
	Pod            identity.Key
	UID            types.UID
	ServiceAccount string
	Identity       identity.Key
	Resource       string
	Reason         v1.Reason
	// Status is the HTTP status of the answer.
	Status int
	Took   time.Duration
	// Err is what is behind a refusal, beyond what the pod was told.
	Err error
}

// Outcome is "issued", "forwarded" or "refused".
func (r *Record) Outcome() string {
	switch r.Reason {
	case v1.ReasonIssued:
		return "issued"
	case v1.ReasonException, v1.ReasonForwarded:
		return "forwarded"
	}
	return "refused"
}

// Log writes the record. Mistakes of the agent itself are errors, the rest is
// the agent's daily work.
func (r *Record) Log(ctx context.Context, log *slog.Logger) {
	level := slog.LevelInfo
	if r.Reason == v1.ReasonInternalError {
		level = slog.LevelError
	}
	if !log.Enabled(ctx, level) {
		return
	}
	line := slog.NewRecord(r.At, level, "decided", 0)
	line.AddAttrs(
		slog.String("outcome", r.Outcome()),
		slog.String(obs.KeyReason, string(r.Reason)),
		slog.String(obs.KeyPod, text(r.Pod)),
		slog.String("podUID", string(r.UID)),
		slog.String("serviceAccount", r.ServiceAccount),
		slog.String(obs.KeyIdentity, r.IdentityName()),
		slog.String(obs.KeyResource, r.ClippedResource()),
		slog.String("route", string(r.Route)),
		slog.Int(obs.KeyStatus, r.Status),
		slog.String(obs.KeyRemote, r.Remote.String()),
		slog.Duration("took", r.Took),
	)
	if r.Err != nil {
		line.AddAttrs(slog.String("error", r.Err.Error()))
	}
	_ = log.Handler().Handle(ctx, line) // there is nowhere else to complain, as slog.Logger itself has it
}

// maxResource bounds, in bytes, what a line says of the resource, which the
// caller chooses.
const maxResource = 256

// ClippedResource returns the resource, or the beginning of one that is too long.
func (r *Record) ClippedResource() string {
	if len(r.Resource) <= maxResource {
		return r.Resource
	}
	return strings.ToValidUTF8(r.Resource[:maxResource], "") + "…"
}

// IdentityName returns the identity's namespace and name, or nothing.
func (r *Record) IdentityName() string { return text(r.Identity) }

func text(key identity.Key) string {
	if key == (identity.Key{}) {
		return ""
	}
	return key.String()
}
