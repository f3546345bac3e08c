#!/usr/bin/env bash
# Prints the folder of kube-apiserver and etcd, building them from their Go modules first if need be.
# KUBEBUILDER_ASSETS, or programs on the PATH, are used where they are.
# With the argument "all" it is the folder of every Kubernetes program, and always one built here; "all vX.Y.Z" is
# another version than lab/kubernetes/go.mod pins, in a folder of its own.
set -euo pipefail
cd "$(dirname "$0")/.."

programs=(etcd kube-apiserver kube-controller-manager kube-proxy kube-scheduler kubectl kubelet)
oldest=30 # the first minor version that is supported
complete() { [ -x "$1/kube-apiserver" ] && [ -x "$1/etcd" ]; }
fail() { echo "$*" >&2; exit 1; }

if [ "${1:-}" != all ]; then
	if [ -n "${KUBEBUILDER_ASSETS:-}" ]; then
		complete "$KUBEBUILDER_ASSETS" || fail "KUBEBUILDER_ASSETS=$KUBEBUILDER_ASSETS lacks kube-apiserver or etcd"
		echo "$KUBEBUILDER_ASSETS"
		exit
	fi

	if apiserver=$(command -v kube-apiserver) && etcd=$(command -v etcd) && [ "$(dirname "$apiserver")" = "$(dirname "$etcd")" ]; then
		dirname "$apiserver"
		exit
	fi
fi

# Prints the go.mod of a version of Kubernetes.
go_mod() {
	(cd / && GOFLAGS=-mod=mod go list -m -f '{{.GoMod}}' "k8s.io/kubernetes@$1") ||
		fail "there is no Kubernetes $1 to build: \`go list -m -versions k8s.io/kubernetes\` shows which versions there are"
}

# Writes a module around a version of Kubernetes: with the replacements that its own go.mod makes of its staging folders,
# and otherwise with every version that it was tested with, that of etcd among them. The build completes it.
write_module() {
	local version=$1 module=$2 mod
	mod=$(go_mod "$version")
	mkdir -p "$module"
	cp lab/kubernetes/main.go "$module/main.go"
	rm -f "$module/go.sum"
	{
		echo "module kubernetes"
		grep '^go ' "$mod"
		echo "require k8s.io/kubernetes $version"
		awk -v version="v0${version#v1}" '$1 ~ /^k8s\.io\// && $2 == "v0.0.0" { print "replace " $1 " => " $1 " " version }' "$mod"
	} > "$module/go.mod"
}

pinned=$(sed -n 's#^[[:space:]]*k8s.io/kubernetes \(v[0-9.]*\).*#\1#p' lab/kubernetes/go.mod | head -n 1)
version=${2:-$pinned}
if [ "$version" = "$pinned" ]; then
	out=$PWD/.cache/kubernetes
	module=lab/kubernetes
	sources=(lab/kubernetes/go.sum lab/kubernetes/main.go)
else
	[[ $version =~ ^v1\.(0|[1-9][0-9]*)\.(0|[1-9][0-9]*)$ ]] || fail "$version is no version of Kubernetes: want one such as $pinned"
	[ "${BASH_REMATCH[1]}" -ge "$oldest" ] || fail "Kubernetes $version is too old: want v1.$oldest.0 or newer"
	out=$PWD/.cache/kubernetes-$version
	module=$out/module
	sources=(hack/kubernetes.sh lab/kubernetes/main.go)
	[ -d "$out" ] || go_mod "$version" > /dev/null # nothing is made for a version that there is not
fi
stamp=$out/.version-$version-$(cat "${sources[@]}" | sha256sum | cut -c1-12)
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
	goflags=-buildvcs=false
	if [ "$version" != "$pinned" ]; then
		write_module "$version" "$module"
		goflags="$goflags -mod=mod"
	fi
	(
		cd "$module"
		export CGO_ENABLED=0 GOFLAGS=$goflags
		go build -v -o "$out/kubernetes" -ldflags "$flags" .
	) 2>&1 | progress
	for program in "${programs[@]}"; do
		ln -sfn kubernetes "$out/$program"
	done
	touch "$stamp"
fi
echo "$out"
