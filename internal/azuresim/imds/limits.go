package imds

import (
	"net/http"
	"time"

	"github.com/aad-pod-identity/aad-pod-identity/internal/azuresim/journal"
	"github.com/aad-pod-identity/aad-pod-identity/internal/azuresim/throttle"
	"github.com/aad-pod-identity/aad-pod-identity/internal/azuresim/wire"
)

// throttled are the words of IMDS. There is no Retry-After beside them.
const throttled = "Temporarily throttled, too many requests"

// enter counts a request of a node and refuses what is too much. Tokens have
// limits of their own.
func (s *Server) enter(call *wire.Call, node string) (leave func(), err error) {
	as := s.state.Settings()
	category, width := "other", throttle.Width{}
	if isIdentity(call) {
		category = "identity"
	}
	if as.IMDS.Limits != nil {
		limits := as.IMDS.Limits.Full()
		width.Window = as.Compress(time.Second)
		if isIdentity(call) {
			width.Most, width.Together = *limits.IdentityPerSecond, *limits.IdentityConcurrent
		} else {
			width.Most = *limits.OtherPerSecond
		}
	}
	key := category + "/" + node
	inside, refused := s.gate.Enter(key, width)
	if refused != "" {
		call.Entry.Throttle = &journal.Throttle{Bucket: "imds/" + category + "/" + refused}
		return nil, wire.Refuse(http.StatusTooManyRequests, "invalid_request", throttled)
	}
	if isIdentity(call) {
		call.Entry.InFlight = inside
	}
	return func() { s.gate.Leave(key) }, nil
}
