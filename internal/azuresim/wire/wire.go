// Package wire is what the surfaces share at the edge: it reads a request,
// plays faults, writes the answer and records both in the journal.
//
// A surface is a function from a [Call] to a [Reply] or an error, and a dialect
// for error bodies. The entry is in the journal before the client sees the
// answer. This package must not know what any surface serves.
package wire

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"net/http"
	"net/netip"
	"time"

	"github.com/aad-pod-identity/aad-pod-identity/internal/azuresim/fault"
	"github.com/aad-pod-identity/aad-pod-identity/internal/azuresim/journal"
)

// maxBody bounds the body of a request, in bytes.
const maxBody = 4 << 20

// Call is one request to a surface.
type Call struct {
	*http.Request
	Body []byte
	// Entry is what the journal will say; the surface adds what it learns.
	Entry *journal.Entry
	// Fault says what becomes of this call's operation, if a fault does.
	Fault fault.Response
}

// ErrGone is returned for a client that did not wait for its answer.
var ErrGone = errors.New("the client is gone")

// Reply is a successful answer. Body is written in the surface's encoding.
type Reply struct {
	Status int // 0: 200
	Header http.Header
	Body   any
}

// Error is a refusal, which the surface's dialect turns into a body.
type Error struct {
	Status     int
	Code       string
	Message    string
	Header     http.Header
	Unexpected bool   // Azure, or this simulator, does not know what was asked
	Detail     string // more for a dialect whose bodies have a place for it
	Target     string // what the detail is about, for such a dialect
}

func (e *Error) Error() string { return fmt.Sprintf("%d %s: %s", e.Status, e.Code, e.Message) }

// Refuse is an error that Azure documents.
func Refuse(status int, code, format string, args ...any) *Error {
	return &Error{Status: status, Code: code, Message: fmt.Sprintf(format, args...)}
}

// Unexpected is an error about what is not of the surface.
func Unexpected(status int, code, format string, args ...any) *Error {
	e := Refuse(status, code, format, args...)
	e.Unexpected = true
	return e
}

// Surface is one of Azure's APIs.
type Surface struct {
	Name  string
	Serve func(*Call) (Reply, error) // an error that is no [*Error] is a 500
	// Render makes the body of an error.
	Render func(*Call, *Error) any
	// Headers are added to every answer; nil: none.
	Headers func() http.Header
	// Encoding is that of every body; the zero value is JSON.
	Encoding Encoding
}

// Encoding writes bodies.
type Encoding struct {
	ContentType string
	Marshal     func(any) ([]byte, error)
}

// orJSON is e, or JSON for the zero value.
func (e Encoding) orJSON() Encoding {
	if e.Marshal != nil {
		return e
	}
	return Encoding{ContentType: "application/json; charset=utf-8", Marshal: marshalJSON}
}

func marshalJSON(v any) ([]byte, error) {
	var body bytes.Buffer
	encoder := json.NewEncoder(&body)
	encoder.SetEscapeHTML(false)
	err := encoder.Encode(v)
	return body.Bytes(), err
}

// Recorder makes surfaces into handlers.
type Recorder struct {
	Journal *journal.Journal
	Faults  *fault.Set
	// NodeAt names the node that an address belongs to, or "".
	NodeAt func(netip.Addr) string
	Log    *slog.Logger
}

// Handler serves s.
func (rec *Recorder) Handler(s Surface) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		call := &Call{Request: r, Entry: rec.entry(s.Name, r)}
		reply, drop := rec.answer(s, call)
		if drop {
			rec.record(call, 0)
			panic(http.ErrAbortHandler) // closes the connection without an answer
		}
		rec.record(call, reply.Status)
		if s.Headers != nil {
			maps.Copy(w.Header(), s.Headers())
		}
		rec.write(w, s.Encoding.orJSON(), reply)
	})
}

func (rec *Recorder) entry(surface string, r *http.Request) *journal.Entry {
	e := &journal.Entry{Surface: surface, Method: r.Method, Host: r.Host, Path: r.URL.Path, Query: maskQuery(r.URL.RawQuery)}
	if remote, err := netip.ParseAddrPort(r.RemoteAddr); err == nil {
		e.Remote = remote.Addr().Unmap()
		e.Node = rec.NodeAt(e.Remote)
	}
	return e
}

// answer plays a fault or serves the call; true means: drop the connection.
func (rec *Recorder) answer(s Surface, call *Call) (Reply, bool) {
	played, ok := rec.Faults.Take(fault.Request{Surface: s.Name, Method: call.Method, Path: call.URL.Path, Node: call.Entry.Node})
	if ok {
		call.Entry.Detail = "fault " + played.ID
		if !call.Pause(time.Duration(played.Response.Delay)) || played.Response.Drop {
			return Reply{}, true
		}
	}
	var reply Reply
	err := readBody(call)
	switch {
	case err != nil:
	case ok && played.Response.Status != 0:
		err = faulted(played.Response)
	default:
		call.Fault = played.Response
		reply, err = s.Serve(call)
	}
	if errors.Is(err, ErrGone) {
		return Reply{}, true
	}
	if err != nil {
		reply = rec.refusal(s, call, err)
	}
	if reply.Status == 0 {
		reply.Status = http.StatusOK
	}
	return reply, played.Response.LoseAnswer
}

func readBody(call *Call) error {
	body, err := io.ReadAll(io.LimitReader(call.Request.Body, maxBody+1))
	if err != nil {
		return Refuse(http.StatusBadRequest, "BadRequest", "The request body could not be read.")
	}
	if len(body) > maxBody {
		return Unexpected(http.StatusRequestEntityTooLarge, "RequestEntityTooLarge", "The request body is larger than %d bytes.", maxBody)
	}
	call.Body = body
	return nil
}

// Pause waits for d, or less if the client goes away: then it reports false.
func (call *Call) Pause(d time.Duration) bool {
	if d <= 0 {
		return true
	}
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-call.Context().Done():
		return false
	}
}

func faulted(r fault.Response) *Error {
	header := http.Header{}
	for name, value := range r.Headers {
		header.Set(name, value)
	}
	return &Error{Status: r.Status, Code: r.Code, Message: r.Message, Header: header}
}

func (rec *Recorder) refusal(s Surface, call *Call, err error) Reply {
	refused, ok := errors.AsType[*Error](err)
	detail := err.Error()
	if ok {
		detail = refused.Message
	} else {
		rec.Log.Error("serving a request", "surface", s.Name, "path", call.URL.Path, "err", err)
		refused = Unexpected(http.StatusInternalServerError, "InternalServerError", "The server encountered an internal error.")
	}
	call.Entry.Code = refused.Code
	if refused.Unexpected {
		call.Entry.Unexpected, call.Entry.Detail = true, detail
	}
	return Reply{Status: refused.Status, Header: refused.Header, Body: s.Render(call, refused)}
}

func (rec *Recorder) record(call *Call, status int) {
	call.Entry.Status = status
	e := rec.Journal.Record(*call.Entry)
	level := slog.LevelDebug
	if e.Unexpected {
		level = slog.LevelWarn
	}
	rec.Log.Log(call.Context(), level, "request", "seq", e.Seq, "surface", e.Surface, "node", e.Node, "remote", e.Remote,
		"method", e.Method, "host", e.Host, "path", e.Path, "status", e.Status, "code", e.Code, "detail", e.Detail)
}

func (rec *Recorder) write(w http.ResponseWriter, encoding Encoding, reply Reply) {
	body, err := encoding.Marshal(reply.Body)
	if err != nil {
		rec.Log.Error("encoding an answer", "err", err)
		http.Error(w, "encoding the answer", http.StatusInternalServerError)
		return
	}
	maps.Copy(w.Header(), reply.Header)
	w.Header().Set("Content-Type", encoding.ContentType)
	w.Header().Set("Cache-Control", "no-cache")
	w.WriteHeader(reply.Status)
	if _, err := w.Write(body); err != nil {
		rec.Log.Debug("writing an answer", "err", err) // the client is gone
	}
}
