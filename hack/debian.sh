#!/usr/bin/env bash
# Installs the Debian packages of the named programs, where a program is missing: PROGRAM, or PROGRAM:PACKAGE.
set -euo pipefail
missing=()
for program in "$@"; do command -v "${program%%:*}" > /dev/null || missing+=("${program##*:}"); done
[ ${#missing[@]} = 0 ] && exit
command -v apt-get > /dev/null || { echo "please install: ${missing[*]}" >&2; exit 1; }
echo "installing Debian packages: ${missing[*]}" >&2
export DEBIAN_FRONTEND=noninteractive
apt-get update -qq
apt-get install -qq -y --no-install-recommends "${missing[@]}" > /dev/null
