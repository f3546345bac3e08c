package chart_test

import (
	"strings"
	"testing"
)

func TestRefusals(t *testing.T) {
	for name, test := range map[string]struct{ value, words string }{
		"an unknown value":                     {`foo=1`, `at '': additional properties 'foo' not allowed`},
		"a misspelled value":                   {`nmi.probeport=1`, `at '/nmi': additional properties 'probeport' not allowed`},
		"a mode that does not exist":           {`operationMode="manged"`, `at '/operationMode': value must be one of 'standard', 'managed'`},
		"a word that is no boolean":            {`forceNamespaced="yes"`, `at '/forceNamespaced': value must be one of true, false, 'true', 'false'`},
		"a port that does not exist":           {`nmi.probePort=70000`, `at '/nmi/probePort': maximum: got 70,000, want 65,535`},
		"a duration without a unit":            {`mic.leaderElection.duration=15`, `at '/mic/leaderElection/duration': got number, want string`},
		"a relative path":                      {`mic.cloudConfig="azure.json"`, `at '/mic/cloudConfig': 'azure.json' does not match pattern`},
		"a log format that does not exist":     {`nmi.loggingFormat="xml"`, `at '/nmi/loggingFormat': value must be one of '', 'text', 'json'`},
		"a timeout that is none":               {`nmi.uninstallJob.timeout="soon"`, `at '/nmi/uninstallJob/timeout': 'soon' does not match pattern`},
		"a target that does not exist":         {`nmi.redirectTarget="dummy"`, `at '/nmi/redirectTarget': value must be one of '', 'loopback', 'link'`},
		"half a digest":                        {`mic.tag="sha256:abc"`, `at '/mic/tag': 'sha256:abc' does not match pattern`},
		"an argument that is no flag":          {`mic.extraArgs=["x"]`, `at '/mic/extraArgs/0': 'x' does not match pattern`},
		"credentials without a cloud":          {`adminsecret={"useMSI":"true"}`, `at '/adminsecret': missing property 'cloud'`},
		"half a service principal":             {`adminsecret={"cloud":"AzurePublicCloud","tenantID":"t"}`, `at '/adminsecret': missing properties 'clientID', 'clientSecret'`},
		"a budget of both kinds":               {`mic.podDisruptionBudget={"minAvailable":1,"maxUnavailable":1}`, `at '/mic/podDisruptionBudget': maxProperties: got 2, want 1`},
		"an identity without a resource ID":    {`azureIdentities.a={"clientID":"c","binding":{"selector":"s"}}`, `at '/azureIdentities/a': missing property 'resourceID'`},
		"an identity with an empty one":        {`azureIdentities.a={"clientID":"c","resourceID":"","binding":{"selector":"s"}}`, `at '/azureIdentities/a/resourceID': minLength: got 0, want 1`},
		"an identity that nobody can use":      {`azureIdentities.a={"clientID":"c","resourceID":"/r"}`, `at '/azureIdentities/a': missing property 'binding'`},
		"a service principal without a secret": {`azureIdentities.a={"type":1,"tenantID":"t","clientID":"c","binding":{"selector":"s"}}`, `at '/azureIdentities/a': missing property 'clientPassword'`},
		"a type that does not exist":           {`azureIdentities.a={"type":3,"clientID":"c","resourceID":"/r","binding":{"selector":"s"}}`, `at '/azureIdentities/a/type': value must be one of 0, 1, 2`},
		"four auxiliary tenants":               {`azureIdentities.a={"clientID":"c","resourceID":"/r","auxiliaryTenantIDs":["1","2","3","4"],"binding":{"selector":"s"}}`, `at '/azureIdentities/a/auxiliaryTenantIDs': maxItems: got 4, want 3`},
		"a clientPassword that is no JSON":     {`azureIdentities.a={"type":1,"tenantID":"t","clientID":"c","clientPassword":"secret","binding":{"selector":"s"}}`, `azureIdentities.a.clientPassword is "secret": want {"name":"…","namespace":"…"} of a Secret`},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			_, err := template(t, test.value)
			if err == nil {
				t.Fatalf("%s was accepted", test.value)
			}
			if !strings.Contains(err.Error(), test.words) {
				t.Errorf("got %v\nwant the words %s", err, test.words)
			}
		})
	}
}

// accepted are forms of values beside their defaults, as users' files have them.
func accepted() map[string][]string {
	return map[string][]string{
		"the defaults":       nil,
		"managed":            {`operationMode="managed"`},
		"a startup taint":    {`startupTaintKey="example.com/agent"`},
		"managed, with one":  {`startupTaintKey="aadpodidentity.k8s.io/agent-not-ready"`, `operationMode="managed"`, `nmi.maxCacheStaleness="1h"`},
		"namespaced":         {`forceNamespaced=true`, `installMICException=true`},
		"the tutorial's":     {`nmi.allowNetworkPluginKubenet=true`},
		"a tag with digest":  {`mic.tag="latest@` + digest + `"`, `nmi.tag="latest"`},
		"what may be null":   {`azureIdentities=null`, `mic.resources=null`, `nmi.affinity=null`, `mic.podDisruptionBudget=null`},
		"of an older chart":  {`nmi.uninstallJob=null`},
		"no uninstall job":   {`nmi.uninstallJob.enabled="false"`},
		"values for others":  {`global={"x":1}`},
		"a managed identity": {`adminsecret={"cloud":"AzurePublicCloud","subscriptionID":"s","resourceGroup":"g","vmType":"vmss","tenantID":"t","clientID":"msi","clientSecret":"msi","useMSI":"true","userAssignedMSIClientID":"u"}`},
		"a Secret of one's own, and a cloud": {
			`mic.credentialsSecret="mine"`, `mic.customCloud.enabled="true"`,
		},
		"every knob": {
			`mic.podDisruptionBudget={"maxUnavailable":"50%"}`, `mic.probePort=8081`, `mic.prometheusPort="8889"`, `nmi.prometheusPort=9091`,
			`mic.clientQps="20"`, `mic.immutableUserMSIs=["00000000-0000-0000-0000-000000000001"]`, `nmi.blockInstanceMetadata=true`,
			`mic.leaderElection={"instance":"","namespace":"kube-system","name":"lock","duration":"1m30s"}`, `customUserAgent="x/1"`,
			`mic.topologySpreadConstraints=[{"maxSkew":1,"topologyKey":"zone","whenUnsatisfiable":"ScheduleAnyway"}]`,
			`nmi.retryAttemptsForCreated=2`, `nmi.retryAttemptsForAssigned=2`, `nmi.findIdentityRetryIntervalInSeconds=1`, `nmi.ipTableUpdateTimeIntervalInSeconds=30`,
			`mic.loggingFormat="json"`, `nmi.loggingFormat="text"`, `mic.extraArgs=["--gather-window=1s"]`, `nmi.extraArgs=["--assignment-wait=8s"]`,
			`rbac.createUserFacingClusterRoles=true`, `imagePullSecrets=[{"name":"x"}]`, `mic.priorityClassName="system-cluster-critical"`,
			`mic.podAnnotations={"a":"b"}`, `nmi.podAnnotations={"a":"b"}`, `nmi.uninstallJob.timeout="10m"`, `nmi.uninstallJob.priorityClassName="high"`, `adminsecret={"cloud":"c","tenantID":"t","clientID":"c","clientSecret":"s"}`,
		},
		"identities of all types": {
			`azureIdentities={"mi":{"resourceID":"` + resourceID + `","clientID":"` + clientID + `","binding":{"name":"b","selector":"s"}},` +
				`"sp":{"type":1,"namespace":"default","name":"other","tenantID":"` + clientID + `","clientID":"` + clientID + `","clientPassword":"{\"name\":\"n\",\"namespace\":\"default\"}","auxiliaryTenantIDs":["` + clientID + `"],"binding":{"selector":"s"}},` +
				`"cert":{"type":2,"tenantID":"` + clientID + `","clientID":"` + clientID + `","clientPassword":{"name":"n","namespace":"default"},"binding":{"selector":"s"}}}`,
		},
		"no rights of the chart's": {`rbac.enabled=false`, `installMICException=false`},
	}
}

const (
	clientID   = "00000000-0000-4000-8000-000000000001"
	resourceID = "/subscriptions/11111111-2222-3333-4444-555555555555/resourceGroups/g/providers/Microsoft.ManagedIdentity/userAssignedIdentities/i"
)
