SHELL := /usr/bin/env bash -o pipefail
