package armclient

import (
	"fmt"
	"maps"
	"os"
	"slices"
	"strings"

	"sigs.k8s.io/yaml"
)

// Config says which cloud and as whom. It is made by [ReadConfig] or
// [ConfigFromEnvironment] and valid.
type Config struct {
	// Cloud is a name of a cloud, in any case.
	Cloud string
	// EnvironmentFile describes AzureStackCloud; unused for others.
	EnvironmentFile string
	// ManagedIdentity uses the node's managed identity, by its client ID, or the
	// system-assigned one if ManagedIdentityClientID is empty.
	ManagedIdentity         bool
	ManagedIdentityClientID string
	// TenantID, ClientID and ClientSecret are of a service principal.
	TenantID, ClientID string
	ClientSecret       Secret
}

// Secret prints as asterisks.
type Secret string

// String hides the secret.
func (Secret) String() string { return "***" }

// GoString hides the secret.
func (Secret) GoString() string { return "***" }

// MarshalText hides the secret, in JSON and logs too.
func (Secret) MarshalText() ([]byte, error) { return []byte("***"), nil }

// field is one setting by its key in azure.json and its environment variable.
type field struct {
	key, variable string
}

var (
	fieldCloud     = field{"cloud", "CLOUD"}                                        //nolint:gochecknoglobals // see above
	fieldTenant    = field{"tenantId", "TENANT_ID"}                                 //nolint:gochecknoglobals // see above
	fieldClient    = field{"aadClientId", "CLIENT_ID"}                              //nolint:gochecknoglobals // see above
	fieldSecret    = field{"aadClientSecret", "CLIENT_SECRET"}                      //nolint:gochecknoglobals // see above
	fieldUseMSI    = field{"useManagedIdentityExtension", "USE_MSI"}                //nolint:gochecknoglobals // see above
	fieldMSIClient = field{"userAssignedIdentityID", "USER_ASSIGNED_MSI_CLIENT_ID"} //nolint:gochecknoglobals // see above
)

// ReadConfig reads azure.json, as AKS and the cloud provider write it, in JSON
// or YAML. Keys that are not used are passed over; one that is needed and spelled
// in the wrong case is an error, where AAD Pod Identity took it for absent. Errors
// name the key and the file.
func ReadConfig(file string, lookup func(variable string) string) (Config, error) {
	content, err := os.ReadFile(file) //nolint:gosec // the operator names the file
	if err != nil {
		return Config{}, fmt.Errorf("reading the cloud configuration: %w", err)
	}
	values := map[string]any{}
	if err := yaml.Unmarshal(content, &values); err != nil {
		return Config{}, fmt.Errorf("reading the cloud configuration %s: %w", file, err)
	}
	get := func(f field) (string, error) { return value(values, f.key) }
	return assemble(get, func(f field) string { return "key " + f.key + " in " + file }, lookup(EnvironmentFileVariable))
}

// ConfigFromEnvironment reads the variables that stand for azure.json where no
// file is given. Errors name the variable.
func ConfigFromEnvironment(lookup func(variable string) string) (Config, error) {
	get := func(f field) (string, error) { return lookup(f.variable), nil }
	return assemble(get, func(f field) string { return "environment variable " + f.variable }, lookup(EnvironmentFileVariable))
}

// value returns a key's value as text. Only text, numbers and booleans have one.
func value(values map[string]any, key string) (string, error) {
	got, ok := values[key]
	if !ok {
		for _, other := range slices.Sorted(maps.Keys(values)) {
			if strings.EqualFold(other, key) {
				return "", fmt.Errorf("spelled %s: keys are case-sensitive", other)
			}
		}
		return "", nil
	}
	switch v := got.(type) {
	case nil:
		return "", nil
	case string:
		return v, nil
	case bool, float64, int64:
		return fmt.Sprint(v), nil
	}
	return "", fmt.Errorf("is a %T: want text", got)
}

// assemble reads what the kind of credential needs and nothing else: a mistake
// in a setting that is not used harms nobody.
func assemble(get func(field) (string, error), place func(field) string, environmentFile string) (Config, error) {
	r := reader{get: get, place: place}
	config := Config{Cloud: r.text(fieldCloud), EnvironmentFile: environmentFile}
	if config.Cloud == "" {
		r.failf("%s is missing: want AzurePublicCloud or another cloud's name", place(fieldCloud))
	}
	config.ManagedIdentity = r.boolean(fieldUseMSI)
	if config.ManagedIdentity {
		config.ManagedIdentityClientID = r.text(fieldMSIClient)
	} else {
		config.TenantID, config.ClientID, config.ClientSecret = r.needed(fieldTenant), r.needed(fieldClient), Secret(r.needed(fieldSecret))
	}
	if r.err != nil {
		return Config{}, r.err
	}
	if _, _, err := parseCloud(config.Cloud, config.EnvironmentFile); err != nil {
		return Config{}, fmt.Errorf("%s: %w", place(fieldCloud), err)
	}
	return config, nil
}

// reader keeps the first mistake.
type reader struct {
	get   func(field) (string, error)
	place func(field) string
	err   error
}

func (r *reader) failf(format string, args ...any) {
	if r.err == nil {
		r.err = fmt.Errorf(format, args...)
	}
}

func (r *reader) text(f field) string {
	text, err := r.get(f)
	if err != nil {
		r.failf("%s: %w", r.place(f), err)
	}
	return text
}

func (r *reader) boolean(f field) bool {
	text := r.text(f)
	switch strings.ToLower(text) {
	case "true":
		return true
	case "", "false":
	default:
		r.failf("%s is %q: want true or false", r.place(f), text)
	}
	return false
}

// needed is text that a service principal cannot be without.
func (r *reader) needed(f field) string {
	text := r.text(f)
	if text == "" {
		r.failf("%s is missing: a service principal needs %s, %s and %s (or use a managed identity: %s true)",
			r.place(f), fieldTenant.key, fieldClient.key, fieldSecret.key, r.place(fieldUseMSI))
	}
	return text
}
