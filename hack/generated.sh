#!/usr/bin/env bash
# Fails if `make generate` would change a file.
set -euo pipefail
cd "$(dirname "$0")/.."
fresh=$(mktemp -d)
trap 'rm -rf "$fresh"' EXIT
bin/controller-gen crd paths=./api/... "output:crd:dir=$fresh/crds"
bin/controller-gen object paths=./api/... "output:object:dir=$fresh"
diff -r charts/aad-pod-identity/crds "$fresh/crds" && diff api/v1/zz_generated.deepcopy.go "$fresh/zz_generated.deepcopy.go" ||
	{ echo "generated files are out of date: run make generate" >&2; exit 1; }
