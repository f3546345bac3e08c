package entra

import (
	"mime"
	"net/http"
	"net/url"
	"slices"
	"strings"

	"github.com/aad-pod-identity/aad-pod-identity/internal/azuresim/model"
	"github.com/aad-pod-identity/aad-pod-identity/internal/azuresim/state"
	"github.com/aad-pod-identity/aad-pod-identity/internal/azuresim/token"
	"github.com/aad-pod-identity/aad-pod-identity/internal/azuresim/wire"
)

// tokenBody is the answer to a token request. Unlike IMDS's it holds numbers.
type tokenBody struct {
	TokenType    string `json:"token_type"`
	ExpiresIn    int    `json:"expires_in"`
	ExtExpiresIn int    `json:"ext_expires_in"`
	AccessToken  string `json:"access_token"`
}

// token serves the client credentials grant.
func (s *Server) token(call *wire.Call) (wire.Reply, error) {
	form, err := s.form(call)
	if err != nil {
		return wire.Reply{}, err
	}
	resource, err := resourceOf(form.Get("scope"))
	if err != nil {
		return wire.Reply{}, err
	}
	call.Entry.Resource = resource
	principal, err := s.client(form)
	if err != nil {
		return wire.Reply{}, err
	}
	call.Entry.Principal = principal.ObjectID
	minted, err := s.Tokens.Mint(s.State.Tenant(), principal, resource)
	if err != nil {
		return wire.Reply{}, err
	}
	seconds := int(minted.ExpiresIn.Seconds())
	return wire.Reply{Body: tokenBody{TokenType: "Bearer", ExpiresIn: seconds, ExtExpiresIn: seconds, AccessToken: minted.Value.Reveal()}}, nil
}

// fields are the form fields of the client credentials grant. claims and
// client_info are what MSAL sends beside it; they do not change the answer.
func fields() []string {
	return []string{"client_id", "scope", "grant_type", "client_secret", "client_assertion", "client_assertion_type", "claims", "client_info"}
}

func (s *Server) form(call *wire.Call) (url.Values, error) {
	if _, err := wire.Query(call); err != nil {
		return nil, err
	}
	media, _, err := mime.ParseMediaType(call.Header.Get("Content-Type"))
	if err != nil || media != "application/x-www-form-urlencoded" {
		return nil, wire.Unexpected(http.StatusBadRequest, "invalid_request", "AADSTS9000411: The request is not a form.")
	}
	form, err := url.ParseQuery(string(call.Body))
	if err != nil {
		return nil, wire.Unexpected(http.StatusBadRequest, "invalid_request", "AADSTS9000411: The request is not properly formatted.")
	}
	for name, values := range form {
		if len(values) > 1 {
			return nil, wire.Refuse(http.StatusBadRequest, "invalid_request",
				"AADSTS9000411: The request is not properly formatted. The parameter '%s' is duplicated.", name)
		}
		if !slices.Contains(fields(), name) {
			return nil, wire.Unexpected(http.StatusBadRequest, "invalid_request", "AADSTS9000411: The parameter '%s' is not simulated.", name)
		}
	}
	for _, name := range []string{"grant_type", "client_id", "scope"} {
		if form.Get(name) == "" {
			return nil, wire.Refuse(http.StatusBadRequest, "invalid_request",
				"AADSTS900144: The request body must contain the following parameter: '%s'.", name)
		}
	}
	if grant := form.Get("grant_type"); grant != "client_credentials" {
		return nil, wire.Unexpected(http.StatusBadRequest, "unsupported_grant_type", "AADSTS70003: The app requested an unsupported grant type '%s'.", grant)
	}
	return form, nil
}

// client authenticates the application.
func (s *Server) client(form url.Values) (state.Principal, error) {
	clientID := form.Get("client_id")
	principal, ok := s.State.Application(clientID)
	if !ok {
		return principal, wire.Refuse(http.StatusBadRequest, "unauthorized_client",
			"AADSTS700016: Application with identifier '%s' was not found in the directory '%s'. This can happen if the application has not been installed by the administrator of the tenant or consented to by any user in the tenant. You may have sent your authentication request to the wrong tenant.",
			clientID, s.State.Tenant())
	}
	if form.Has("client_assertion") {
		return s.byCertificate(principal, form)
	}
	secret := model.Secret(form.Get("client_secret"))
	if secret == "" {
		return principal, wire.Refuse(http.StatusUnauthorized, "invalid_client",
			"AADSTS7000216: 'client_assertion', 'client_secret' or 'request' is required for the 'client_credentials' grant type.")
	}
	if !s.State.HasSecret(clientID, secret) {
		return principal, wire.Refuse(http.StatusUnauthorized, "invalid_client",
			"AADSTS7000215: Invalid client secret provided. Ensure the secret being sent in the request is the client secret value, not the client secret ID, for a secret added to app '%s'.", clientID)
	}
	return principal, nil
}

// resourceOf reads the one resource of a scope. MSAL adds OpenID's scopes, which
// have no meaning here and are let pass as Entra does.
func resourceOf(scope string) (string, error) {
	scopes := slices.DeleteFunc(strings.Fields(scope), func(s string) bool {
		return slices.Contains([]string{"openid", "profile", "offline_access", "email"}, s)
	})
	if len(scopes) == 1 {
		if resource, ok := strings.CutSuffix(scopes[0], "/.default"); ok {
			if !token.ValidResource(resource) {
				return "", wire.Refuse(http.StatusBadRequest, "invalid_resource",
					"AADSTS500011: The resource principal named %s was not found in the tenant.", resource)
			}
			return resource, nil
		}
	}
	return "", wire.Refuse(http.StatusBadRequest, "invalid_scope",
		"AADSTS1002012: The provided value for scope %s is not valid. Client credential flows must have a scope value with /.default suffixed to the resource identifier (application ID URI).", strings.Join(scopes, " "))
}
