package imds

import (
	"net/http"
	"net/url"
	"strconv"
	"strings"

	"github.com/aad-pod-identity/aad-pod-identity/internal/azuresim/state"
	"github.com/aad-pod-identity/aad-pod-identity/internal/azuresim/token"
	"github.com/aad-pod-identity/aad-pod-identity/internal/azuresim/wire"
)

// tokenVersion is the first api-version of the token route, and the one that
// every SDK sends.
const tokenVersion = "2018-02-01"

// tokenBody is the answer to a token request: strings throughout.
type tokenBody struct {
	AccessToken  string `json:"access_token"`
	ClientID     string `json:"client_id"`
	ExpiresIn    string `json:"expires_in"`
	ExpiresOn    string `json:"expires_on"`
	ExtExpiresIn string `json:"ext_expires_in"`
	NotBefore    string `json:"not_before"`
	Resource     string `json:"resource"`
	TokenType    string `json:"token_type"`
}

func (s *Server) token(call *wire.Call, node state.NodeInfo) (wire.Reply, error) {
	values, err := query(call, "api-version", "resource", "bypass_cache", "client_id", "object_id", "msi_res_id", "mi_res_id")
	if err != nil {
		return wire.Reply{}, err
	}
	if err := checkTokenVersion(values.Get("api-version")); err != nil {
		return wire.Reply{}, err
	}
	resource := values.Get("resource")
	if resource == "" {
		return wire.Reply{}, wire.Refuse(http.StatusBadRequest, "invalid_request", "Required query variable 'resource' is missing")
	}
	call.Entry.Resource = resource
	if !token.ValidResource(resource) {
		return wire.Reply{}, wire.Refuse(http.StatusBadRequest, "invalid_resource",
			"AADSTS500011: The resource principal named %s was not found in the tenant named %s.", resource, s.state.Tenant())
	}
	selector, err := selectorOf(values)
	if err != nil {
		return wire.Reply{}, err
	}
	principal, err := s.state.IdentityAt(node.Name, selector)
	if err != nil {
		return wire.Reply{}, refusal(err)
	}
	call.Entry.Principal = principal.ObjectID
	mint := func() (token.Token, error) { return s.tokens.Mint(s.state.Tenant(), principal, resource) }
	var minted token.Token
	if s.state.Settings().IMDS.TokenCache {
		minted, err = s.cache.get(cacheKey{node.Name, principal.ObjectID, resource}, values.Get("bypass_cache") == "true", mint)
	} else {
		minted, err = mint()
	}
	if err != nil {
		return wire.Reply{}, err
	}
	return wire.Reply{Body: encodeToken(minted, principal.ClientID, resource)}, nil
}

func checkTokenVersion(version string) error {
	if version == "" {
		return wire.Refuse(http.StatusBadRequest, "invalid_request", "Required query variable 'api-version' is missing")
	}
	for _, known := range instanceVersions() {
		if version == known && version >= tokenVersion {
			return nil
		}
	}
	return wire.Unexpected(http.StatusBadRequest, "invalid_request", "The api-version '%s' is not supported", version)
}

// selectorOf reads which identity is asked for. IMDS takes one way to name it.
func selectorOf(values url.Values) (state.Selector, error) {
	var want state.Selector
	named := 0
	for name, field := range map[string]*string{
		"client_id": &want.ClientID, "object_id": &want.ObjectID, "msi_res_id": &want.ResourceID, "mi_res_id": &want.ResourceID,
	} {
		if !values.Has(name) {
			continue
		}
		named++
		*field = strings.TrimSpace(values.Get(name))
		if *field == "" {
			return want, wire.Refuse(http.StatusBadRequest, "invalid_request", "The query variable '%s' is empty", name)
		}
	}
	if named > 1 {
		return want, wire.Refuse(http.StatusBadRequest, "invalid_request",
			"Only one of 'client_id', 'object_id' and 'msi_res_id' may be specified")
	}
	return want, nil
}

func encodeToken(t token.Token, clientID, resource string) tokenBody {
	lifetime := strconv.Itoa(int(t.ExpiresIn.Seconds()))
	return tokenBody{
		AccessToken: t.Value.Reveal(), ClientID: clientID, ExpiresIn: lifetime, ExtExpiresIn: lifetime,
		ExpiresOn: strconv.FormatInt(t.ExpiresOn.Unix(), 10), NotBefore: strconv.FormatInt(t.NotBefore.Unix(), 10),
		Resource: resource, TokenType: "Bearer",
	}
}
