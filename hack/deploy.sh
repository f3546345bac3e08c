#!/usr/bin/env bash
# Renders deploy/infra from the chart, for those who do not use helm. With --check it fails if a file there is out of date.
set -euo pipefail
cd "$(dirname "$0")/.."
[ -x bin/helm ] || { echo "bin/helm is missing: run make helm" >&2; exit 1; }

chart=charts/aad-pod-identity
kinds=$chart/crds/aadpodidentity.k8s.io_
out=deploy/infra
if [ "${1:-}" = --check ]; then
	out=$(mktemp -d)
	trap 'rm -rf "$out"' EXIT
fi

# render NAMESPACE ARGS… prints the chart's objects without what only helm needs, its hooks among it.
render() {
	bin/helm template aad-pod-identity "$chart" --no-hooks --namespace "$@" |
		sed -e '/^# Source: /d' -e '/^ *helm.sh\/chart: /d' -e '/^ *app.kubernetes.io\/managed-by: Helm$/d'
}

# header TEXT… prints what a file begins with.
header() {
	echo "# Rendered from $chart by make generate: change the chart instead."
	printf '# %s\n' "$@"
}

images="Set the images first: they are named as loaded onto the nodes, localhost/aad-pod-identity/…"
# kubectl cannot apply a definition and an object of its kind from one file, so that the exceptions have a file of their own.
exceptions="Then apply mic-exception.yaml: without it MIC, and the add-ons of AKS, get no tokens on a node with NMI."
mkdir -p "$out/noazurejson"
{
	header "Standard mode in the namespace default, MIC with the nodes' azure.json." "$images" "$exceptions"
	cat "$kinds"*.yaml
	render default --set installMICException=false
} > "$out/deployment-rbac.yaml"
{
	header "Standard mode in the namespace default, MIC with credentials of its own:" \
		"kubectl -n default create secret generic aadpodidentity-admin-secret --from-literal=Cloud=AzurePublicCloud \\" \
		"  --from-literal=TenantID=… --from-literal=ClientID=… --from-literal=ClientSecret=…" \
		"or, with a managed identity of the nodes, Cloud, UseMSI=true and UserAssignedMSIClientID=…" "$images" "$exceptions"
	cat "$kinds"*.yaml
	render default --set installMICException=false,mic.credentialsSecret=aadpodidentity-admin-secret
} > "$out/noazurejson/deployment-rbac.yaml"
{
	header "Managed mode in the namespace kube-system: you attach the identities to the nodes." "$images" \
		"On AKS, then apply the object aks-addon-exception of mic-exception.yaml."
	cat "$kinds"{azureidentities,azureidentitybindings,azureidentitynodereports,azurepodidentityexceptions}.yaml
	render kube-system --set installMICException=false,operationMode=managed
} > "$out/managed-mode-deployment.yaml"
{
	header "What reaches the node's IMDS although NMI is there: MIC's own pods, and the add-ons of AKS." "Apply it after deployment-rbac.yaml, which defines the kind."
	render default --show-only templates/exceptions.yaml
} > "$out/mic-exception.yaml"

[ "$out" = deploy/infra ] || diff -r deploy/infra "$out" || { echo "deploy/infra is out of date: run make generate" >&2; exit 1; }
