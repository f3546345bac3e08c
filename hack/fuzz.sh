#!/usr/bin/env bash
# Runs every fuzz target of the module for the given time, 60s if none is given. With --list it prints them: folder and name.
set -euo pipefail
cd "$(dirname "$0")/.."
targets() {
	grep -rlE '^func Fuzz' --include='*_test.go' . | xargs -n 1 dirname | sort -u | while read -r dir; do
		grep -hoE '^func Fuzz[A-Za-z0-9_]*' "$dir"/*_test.go | sed "s|^func |$dir |"
	done
}
if [ "${1:-}" = --list ]; then
	targets
	exit
fi
targets | while read -r dir target; do
	echo "$dir $target"
	go test -run '^$' -fuzz "^$target\$" -fuzztime "${1:-60s}" "$dir" < /dev/null
done
