// Package controlapi serves the simulator's control API: plain HTTP and JSON by
// which a test or a demo sets Azure up, breaks it and reads what happened.
//
// It is not Azure: a program under test must not need anything that it serves, and
// its own requests stay out of the journal. It has no authentication, so it
// listens on loopback unless told otherwise.
package controlapi

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"strconv"
	"time"

	"github.com/aad-pod-identity/aad-pod-identity/internal/azuresim/fault"
	"github.com/aad-pod-identity/aad-pod-identity/internal/azuresim/journal"
	"github.com/aad-pod-identity/aad-pod-identity/internal/azuresim/model"
	"github.com/aad-pod-identity/aad-pod-identity/internal/azuresim/poison"
	"github.com/aad-pod-identity/aad-pod-identity/internal/azuresim/settings"
	"github.com/aad-pod-identity/aad-pod-identity/internal/azuresim/state"
)

// maxBody bounds a document, in bytes; maxWait a poll of the journal.
const (
	maxBody = 16 << 20
	maxWait = 30 * time.Second
)

// Server serves the control API.
type Server struct {
	State   *state.State
	Journal *journal.Journal
	Faults  *fault.Set
	Burst   func(model.Burst) (model.BurstResult, error) // see [arm.Server.Burst]
	CertPEM []byte
	Log     *slog.Logger
}

// refusal is an answer with words for whoever wrote the request.
type refusal struct {
	status int
	err    error
}

func (r *refusal) Error() string { return r.err.Error() }
func (r *refusal) Unwrap() error { return r.err }

// endpoint reads a request's body and returns what to answer as JSON.
type endpoint func(r *http.Request, body []byte) (any, error)

// Handler returns the whole API.
func (s *Server) Handler() http.Handler {
	mux := http.NewServeMux()
	for pattern, serve := range map[string]endpoint{
		"GET /healthz":                 func(*http.Request, []byte) (any, error) { return map[string]string{"status": "ok"}, nil },
		"GET /state":                   func(*http.Request, []byte) (any, error) { return s.State.Snapshot(), nil },
		"PUT /state":                   s.replace,
		"POST /state":                  s.add,
		"GET /settings":                func(*http.Request, []byte) (any, error) { return s.State.Settings(), nil },
		"PUT /settings":                s.behave,
		"POST /bursts":                 s.burst,
		"POST /deletions":              s.delete,
		"POST /poison":                 one(s, func(d *model.Document) *[]poison.Poison { return &d.Poison }),
		"DELETE /poison":               s.cure,
		"POST /identities":             one(s, func(d *model.Document) *[]model.Identity { return &d.Identities }),
		"POST /applications":           one(s, func(d *model.Document) *[]model.Application { return &d.Applications }),
		"POST /scaleSets":              one(s, func(d *model.Document) *[]model.ScaleSet { return &d.ScaleSets }),
		"POST /virtualMachines":        one(s, func(d *model.Document) *[]model.VirtualMachine { return &d.VirtualMachines }),
		"POST /nodes":                  one(s, func(d *model.Document) *[]model.Node { return &d.Nodes }),
		"POST /roleAssignments":        one(s, func(d *model.Document) *[]model.RoleAssignment { return &d.RoleAssignments }),
		"POST /vaults":                 one(s, func(d *model.Document) *[]model.Vault { return &d.Vaults }),
		"POST /storageAccounts":        one(s, func(d *model.Document) *[]model.StorageAccount { return &d.StorageAccounts }),
		"POST /vaults/{vault}/secrets": s.putSecret,
		"POST /attachments":            attachment(s.State.Attach),
		"DELETE /attachments":          attachment(s.State.Detach),
		"GET /faults":                  func(*http.Request, []byte) (any, error) { return nonNil(s.Faults.List()), nil },
		"POST /faults":                 s.addFault,
		"DELETE /faults":               s.clearFaults,
		"DELETE /faults/{id}":          s.removeFault,
		"GET /journal":                 s.journal,
		"GET /counts":                  func(*http.Request, []byte) (any, error) { return s.Journal.Counts(), nil },
	} {
		mux.Handle(pattern, s.serve(serve))
	}
	mux.HandleFunc("GET /ca", s.ca)
	mux.Handle("/", s.serve(func(r *http.Request, _ []byte) (any, error) {
		return nil, &refusal{http.StatusNotFound, fmt.Errorf("the control API has no %s %s", r.Method, r.URL.Path)}
	}))
	return mux
}

func (s *Server) serve(serve endpoint) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, maxBody))
		var answer any
		if err == nil {
			answer, err = serve(r, body)
		}
		status := http.StatusOK
		if err != nil {
			status, answer = statusOf(err), map[string]string{"error": err.Error()}
		}
		s.write(w, status, answer)
	})
}

func (s *Server) write(w http.ResponseWriter, status int, answer any) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	encoder := json.NewEncoder(w)
	encoder.SetIndent("", "  ")
	encoder.SetEscapeHTML(false)
	if err := encoder.Encode(answer); err != nil {
		s.Log.Debug("writing an answer", "err", err) // the client is gone
	}
}

func statusOf(err error) int {
	if refused, ok := errors.AsType[*refusal](err); ok {
		return refused.status
	}
	switch {
	case errors.Is(err, state.ErrNotFound):
		return http.StatusNotFound
	case errors.Is(err, state.ErrBusy):
		return http.StatusConflict
	}
	return http.StatusBadRequest
}

func (s *Server) replace(_ *http.Request, body []byte) (any, error) {
	doc, err := model.Parse(body)
	if err != nil {
		return nil, err
	}
	if err := s.State.Replace(doc); err != nil {
		return nil, err
	}
	return s.State.Snapshot(), nil
}

func (s *Server) add(_ *http.Request, body []byte) (any, error) {
	doc, err := model.Parse(body)
	if err != nil {
		return nil, err
	}
	return s.State.Add(doc)
}

// one serves the creation of a single item as a document that holds only it.
func one[T any](s *Server, list func(*model.Document) *[]T) endpoint {
	return func(_ *http.Request, body []byte) (any, error) {
		var item T
		if err := model.Decode(body, &item); err != nil {
			return nil, err
		}
		var doc model.Document
		*list(&doc) = []T{item}
		added, err := s.State.Add(doc)
		if err != nil {
			return nil, err
		}
		return (*list(&added))[0], nil
	}
}

func (s *Server) putSecret(r *http.Request, body []byte) (any, error) {
	var secret model.VaultSecret
	if err := model.Decode(body, &secret); err != nil {
		return nil, err
	}
	return s.State.PutSecret(r.PathValue("vault"), secret)
}

// attachment serves what an operator does to an identity on a resource.
func attachment(change func(model.Attachment) (model.Resource, error)) endpoint {
	return func(_ *http.Request, body []byte) (any, error) {
		var a model.Attachment
		if err := model.Decode(body, &a); err != nil {
			return nil, err
		}
		return change(a)
	}
}

func (s *Server) behave(_ *http.Request, body []byte) (any, error) {
	var as settings.Settings
	if err := model.Decode(body, &as); err != nil {
		return nil, err
	}
	return as, s.State.Behave(as)
}

func (s *Server) burst(_ *http.Request, body []byte) (any, error) {
	var b model.Burst
	if err := model.Decode(body, &b); err != nil {
		return nil, err
	}
	return s.Burst(b)
}

func (s *Server) delete(_ *http.Request, body []byte) (any, error) {
	var d model.Deletion
	if err := model.Decode(body, &d); err != nil {
		return nil, err
	}
	return d, s.State.Delete(d)
}

// cure ends the poison whose identity the body names.
func (s *Server) cure(_ *http.Request, body []byte) (any, error) {
	var p poison.Poison
	if err := model.Decode(body, &p); err != nil {
		return nil, err
	}
	return p, s.State.Cure(p.Identity)
}

func (s *Server) addFault(_ *http.Request, body []byte) (any, error) {
	var f fault.Fault
	if err := model.Decode(body, &f); err != nil {
		return nil, err
	}
	return s.Faults.Add(f)
}

func (s *Server) clearFaults(*http.Request, []byte) (any, error) {
	s.Faults.Clear()
	return []fault.Fault{}, nil
}

func (s *Server) removeFault(r *http.Request, _ []byte) (any, error) {
	if id := r.PathValue("id"); !s.Faults.Remove(id) {
		return nil, &refusal{http.StatusNotFound, fmt.Errorf("there is no fault %q", id)}
	}
	return nonNil(s.Faults.List()), nil
}

// journal answers the entries above since. With wait it stays open until there
// is one, or for at most that long, and then answers an empty list.
func (s *Server) journal(r *http.Request, _ []byte) (any, error) {
	query := r.URL.Query()
	for name := range query {
		if name != "since" && name != "wait" {
			return nil, fmt.Errorf("unknown query parameter %q: want since and wait", name)
		}
	}
	since, wait := uint64(0), time.Duration(0)
	var err error
	if query.Has("since") {
		if since, err = strconv.ParseUint(query.Get("since"), 10, 64); err != nil {
			return nil, fmt.Errorf("parsing since: %w", err)
		}
	}
	if query.Has("wait") {
		if wait, err = time.ParseDuration(query.Get("wait")); err != nil {
			return nil, fmt.Errorf("parsing wait: %w", err)
		}
	}
	if wait > 0 {
		ctx, cancel := context.WithTimeout(r.Context(), min(wait, maxWait))
		defer cancel()
		// an error means that the time is up: then there is nothing to answer
		_, _ = s.Journal.WaitAfter(ctx, since, func(journal.Entry) bool { return true })
	}
	return nonNil(s.Journal.Since(since)), nil
}

func (s *Server) ca(w http.ResponseWriter, _ *http.Request) {
	w.Header().Set("Content-Type", "application/x-pem-file")
	if _, err := w.Write(s.CertPEM); err != nil {
		s.Log.Debug("writing an answer", "err", err) // the client is gone
	}
}

// nonNil makes an empty list [] in JSON, and not null.
func nonNil[T any](list []T) []T {
	if list == nil {
		return []T{}
	}
	return list
}
