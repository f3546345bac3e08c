package entra

import (
	"net/http"
	"net/url"

	"github.com/aad-pod-identity/aad-pod-identity/internal/azuresim/token"
	"github.com/aad-pod-identity/aad-pod-identity/internal/azuresim/wire"
)

type instanceBody struct {
	TenantDiscoveryEndpoint string             `json:"tenant_discovery_endpoint"`
	APIVersion              string             `json:"api-version"`
	Metadata                []instanceMetadata `json:"metadata"`
}

type instanceMetadata struct {
	PreferredNetwork string   `json:"preferred_network"`
	PreferredCache   string   `json:"preferred_cache"`
	Aliases          []string `json:"aliases"`
}

// instanceDiscovery tells a client whether an authority is one of Entra's.
func (s *Server) instanceDiscovery(call *wire.Call) (wire.Reply, error) {
	if call.Method != http.MethodGet {
		return wire.Reply{}, wire.Unexpected(http.StatusMethodNotAllowed, "invalid_request", "AADSTS900561: The endpoint only accepts GET requests.")
	}
	query, err := wire.Query(call, "api-version", "authorization_endpoint")
	if err != nil {
		return wire.Reply{}, err
	}
	if version := query.Get("api-version"); version != "1.1" && version != "1.0" {
		return wire.Reply{}, wire.Unexpected(http.StatusBadRequest, "invalid_request", "AADSTS9000411: The api-version '%s' is not supported.", version)
	}
	authority, err := url.Parse(query.Get("authorization_endpoint"))
	if err != nil || authority.Host != Host {
		return wire.Reply{}, wire.Refuse(http.StatusBadRequest, "invalid_instance",
			"AADSTS50049: Unknown or invalid instance.")
	}
	tenant := tenantOf(authority.Path)
	return wire.Reply{Body: instanceBody{
		TenantDiscoveryEndpoint: "https://" + Host + "/" + tenant + "/v2.0/.well-known/openid-configuration",
		APIVersion:              query.Get("api-version"),
		Metadata: []instanceMetadata{{
			PreferredNetwork: Host, PreferredCache: "login.windows.net",
			Aliases: []string{Host, "login.windows.net", "login.microsoft.com", "sts.windows.net"},
		}},
	}}, nil
}

func tenantOf(path string) string {
	for i := 1; i < len(path); i++ {
		if path[i] == '/' {
			return path[1:i]
		}
	}
	return "common"
}

type openIDBody struct {
	TokenEndpoint         string   `json:"token_endpoint"`
	AuthMethods           []string `json:"token_endpoint_auth_methods_supported"`
	JWKSURI               string   `json:"jwks_uri"`
	ResponseModes         []string `json:"response_modes_supported"`
	SubjectTypes          []string `json:"subject_types_supported"`
	SigningAlgorithms     []string `json:"id_token_signing_alg_values_supported"`
	ResponseTypes         []string `json:"response_types_supported"`
	Scopes                []string `json:"scopes_supported"`
	Issuer                string   `json:"issuer"`
	AuthorizationEndpoint string   `json:"authorization_endpoint"`
	CloudInstance         string   `json:"cloud_instance_name"`
}

// openID serves the discovery document of version 2.0 or 1.0.
func (s *Server) openID(tenant string, v2 bool) func(*wire.Call) (wire.Reply, error) {
	base := "https://" + Host + "/" + tenant
	body := openIDBody{
		AuthMethods:   []string{"client_secret_post", "private_key_jwt"},
		ResponseModes: []string{"query", "fragment", "form_post"}, SubjectTypes: []string{"pairwise"},
		SigningAlgorithms: []string{"RS256"}, ResponseTypes: []string{"code"}, Scopes: []string{"openid", "profile", "email", "offline_access"},
		CloudInstance: "microsoftonline.com",
		TokenEndpoint: base + "/oauth2/token", JWKSURI: base + "/discovery/keys",
		Issuer: token.IssuerURL(tenant), AuthorizationEndpoint: base + "/oauth2/authorize",
	}
	if v2 {
		body.TokenEndpoint, body.JWKSURI = base+"/oauth2/v2.0/token", base+"/discovery/v2.0/keys"
		body.Issuer, body.AuthorizationEndpoint = base+"/v2.0", base+"/oauth2/v2.0/authorize"
	}
	return func(call *wire.Call) (wire.Reply, error) {
		if _, err := wire.Query(call, "appid"); err != nil {
			return wire.Reply{}, err
		}
		return wire.Reply{Body: body}, nil
	}
}

type keySet struct {
	Keys []token.Key `json:"keys"`
}

func (s *Server) keys(call *wire.Call) (wire.Reply, error) {
	if _, err := wire.Query(call, "appid"); err != nil {
		return wire.Reply{}, err
	}
	return wire.Reply{Body: keySet{s.Tokens.Keys()}}, nil
}
