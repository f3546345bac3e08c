package armclient

import (
	"encoding/json"
	"fmt"
	"os"
	"strings"

	"github.com/Azure/azure-sdk-for-go/sdk/azcore/cloud"
)

// EnvironmentFileVariable names the file that describes AzureStackCloud.
const EnvironmentFileVariable = "AZURE_ENVIRONMENT_FILEPATH"

// environmentFile holds what is used of the file that describes a cloud of
// one's own. The keys are those of the Azure Stack tools.
type environmentFile struct {
	ResourceManagerEndpoint string `json:"resourceManagerEndpoint"`
	ActiveDirectoryEndpoint string `json:"activeDirectoryEndpoint"`
	TokenAudience           string `json:"tokenAudience"`
	ServiceManagement       string `json:"serviceManagementEndpoint"`
}

// parseCloud returns the endpoints of a cloud, by its name in any case. Only
// AzureStackCloud reads the file; custom says that it was that one.
func parseCloud(name, file string) (configuration cloud.Configuration, custom bool, err error) {
	switch strings.ToLower(name) {
	case "azurepubliccloud", "azurecloud":
		return cloud.AzurePublic, false, nil
	case "azureusgovernment", "azureusgovernmentcloud":
		return cloud.AzureGovernment, false, nil
	case "azurechinacloud":
		return cloud.AzureChina, false, nil
	case "azurestackcloud":
		configuration, err = readEnvironment(file)
		return configuration, true, err
	case "azuregermancloud":
		return cloud.Configuration{}, false, fmt.Errorf("cloud %q was closed by Microsoft in 2021", name)
	}
	return cloud.Configuration{}, false, fmt.Errorf("cloud %q is unknown: want AzurePublicCloud, AzureUSGovernment, AzureChinaCloud or AzureStackCloud", name)
}

func readEnvironment(file string) (cloud.Configuration, error) {
	if file == "" {
		return cloud.Configuration{}, fmt.Errorf("cloud AzureStackCloud needs the variable %s: set it to the file that describes the cloud", EnvironmentFileVariable)
	}
	content, err := os.ReadFile(file) //nolint:gosec // the operator names the file
	if err != nil {
		return cloud.Configuration{}, fmt.Errorf("reading the cloud's description: %w", err)
	}
	var environment environmentFile
	if err := json.Unmarshal(content, &environment); err != nil {
		return cloud.Configuration{}, fmt.Errorf("reading the cloud's description %s: %w", file, err)
	}
	audience := environment.TokenAudience
	if audience == "" {
		audience = environment.ServiceManagement
	}
	for key, value := range map[string]string{
		"resourceManagerEndpoint": environment.ResourceManagerEndpoint,
		"activeDirectoryEndpoint": environment.ActiveDirectoryEndpoint,
		"tokenAudience":           audience,
	} {
		if value == "" {
			return cloud.Configuration{}, fmt.Errorf("the cloud's description %s has no %s", file, key)
		}
	}
	return cloud.Configuration{
		ActiveDirectoryAuthorityHost: environment.ActiveDirectoryEndpoint,
		Services: map[cloud.ServiceName]cloud.ServiceConfiguration{
			cloud.ResourceManager: {Audience: audience, Endpoint: strings.TrimSuffix(environment.ResourceManagerEndpoint, "/")},
		},
	}, nil
}
