#!/usr/bin/env bash
# Prints the folder of kube-apiserver and etcd, building them from their Go modules first if need be.
# KUBEBUILDER_ASSETS, or programs on the PATH, are used where they are.
set -euo pipefail
cd "$(dirname "$0")/.."

complete() { [ -x "$1/kube-apiserver" ] && [ -x "$1/etcd" ]; }

if [ -n "${KUBEBUILDER_ASSETS:-}" ]; then
	complete "$KUBEBUILDER_ASSETS" || { echo "KUBEBUILDER_ASSETS=$KUBEBUILDER_ASSETS lacks kube-apiserver or etcd" >&2; exit 1; }
	echo "$KUBEBUILDER_ASSETS"
	exit
fi

if apiserver=$(command -v kube-apiserver) && etcd=$(command -v etcd) && [ "$(dirname "$apiserver")" = "$(dirname "$etcd")" ]; then
	dirname "$apiserver"
	exit
fi

out=$PWD/.cache/kubernetes
version=$(sed -n 's#^[[:space:]]*k8s.io/kubernetes \(v[0-9.]*\).*#\1#p' lab/go.mod | head -n 1)
stamp=$out/.version-$version-$(sha256sum lab/go.sum | cut -c1-12)
if ! complete "$out" || [ ! -e "$stamp" ]; then
	echo "building kube-apiserver $version and etcd from their Go modules: about 6 minutes on 2 cold cores" >&2
	# Prints every hundredth package, so that a cold build shows that it moves.
	progress() { awk 'NR % 100 == 0 { print "  " NR " packages compiled"; fflush() } !/^[a-z0-9.\/_-]+$/ { print; fflush() }' >&2; }
	mkdir -p "$out"
	rm -f "$out"/.version-*
	p=k8s.io/component-base/version
	minor=${version#v1.}
	(
		cd lab
		export CGO_ENABLED=0 GOFLAGS=-buildvcs=false
		go build -v -o "$out/kube-apiserver" -ldflags "-s -w -X $p.gitVersion=$version -X $p.gitMajor=1 -X $p.gitMinor=${minor%%.*} -X $p.gitTreeState=clean" k8s.io/kubernetes/cmd/kube-apiserver
		go build -v -o "$out/etcd" -ldflags '-s -w' go.etcd.io/etcd/server/v3
	) 2>&1 | progress
	touch "$stamp"
fi
echo "$out"
