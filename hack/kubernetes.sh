#!/usr/bin/env bash
# Prints the folder of kube-apiserver and etcd, building them from their Go modules first if need be.
# KUBEBUILDER_ASSETS, or programs on the PATH, are used where they are.
# With the argument "all" it is the folder of every Kubernetes program, and always one built here.
set -euo pipefail
cd "$(dirname "$0")/.."

programs=(etcd kube-apiserver kube-controller-manager kube-proxy kube-scheduler kubectl kubelet)
complete() { [ -x "$1/kube-apiserver" ] && [ -x "$1/etcd" ]; }

if [ "${1:-}" != all ]; then
	if [ -n "${KUBEBUILDER_ASSETS:-}" ]; then
		complete "$KUBEBUILDER_ASSETS" || { echo "KUBEBUILDER_ASSETS=$KUBEBUILDER_ASSETS lacks kube-apiserver or etcd" >&2; exit 1; }
		echo "$KUBEBUILDER_ASSETS"
		exit
	fi

	if apiserver=$(command -v kube-apiserver) && etcd=$(command -v etcd) && [ "$(dirname "$apiserver")" = "$(dirname "$etcd")" ]; then
		dirname "$apiserver"
		exit
	fi
fi

out=$PWD/.cache/kubernetes
version=$(sed -n 's#^[[:space:]]*k8s.io/kubernetes \(v[0-9.]*\).*#\1#p' lab/kubernetes/go.mod | head -n 1)
stamp=$out/.version-$version-$(cat lab/kubernetes/go.sum lab/kubernetes/main.go | sha256sum | cut -c1-12)
mkdir -p "$out"
exec 9>"$out/.lock"
flock 9 # one build at a time; others wait for it and find it done
if ! complete "$out" || [ ! -e "$stamp" ]; then
	echo "building Kubernetes $version and etcd from their Go modules: about 6 minutes on 2 cold cores" >&2
	# Prints every hundredth package, so that a cold build shows that it moves.
	progress() { awk 'NR % 100 == 0 { print "  " NR " packages compiled"; fflush() } !/^[a-zA-Z0-9.\/_-]+$/ && !/^go: downloading/ { print; fflush() }' >&2; }
	rm -f "$out"/.version-*
	minor=${version#v1.}
	flags="-s -w"
	for p in k8s.io/component-base/version k8s.io/client-go/pkg/version; do
		flags="$flags -X $p.gitVersion=$version -X $p.gitMajor=1 -X $p.gitMinor=${minor%%.*} -X $p.gitTreeState=clean"
	done
	(
		cd lab/kubernetes
		export CGO_ENABLED=0 GOFLAGS=-buildvcs=false
		go build -v -o "$out/kubernetes" -ldflags "$flags" .
	) 2>&1 | progress
	for program in "${programs[@]}"; do
		ln -sfn kubernetes "$out/$program"
	done
	touch "$stamp"
fi
echo "$out"
