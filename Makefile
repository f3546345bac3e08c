SHELL := /usr/bin/env bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:

export GOFLAGS ?= -buildvcs=false
BIN := $(CURDIR)/bin
VERSION ?= $(shell git describe --tags --always --dirty 2>/dev/null || echo v0.0.0-dev)
LDFLAGS := -s -w -X github.com/aad-pod-identity/aad-pod-identity/internal/obs.version=$(VERSION)
PROGRAMS := mic nmi demo azuresim
# Programs that start from the build's own flags are built by one command, so that packages are compiled once.
# grpcnotrace leaves out a page of gRPC's, and with it 20 MB: for its templates the linker keeps every method of every type.
BUILD := CGO_ENABLED=0 go build -trimpath -tags grpcnotrace -ldflags '$(LDFLAGS)'
COUNT ?= 1

##@ Everyday

.PHONY: help
help: ## Show this text.
	@awk 'BEGIN {FS = ":.*## "} /^##@/ {printf "\n%s\n", substr($$0, 5)} /^[a-zA-Z0-9_-]+:.*## / {printf "  %-14s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

.PHONY: demo
demo: root debian lab $(BIN)/helm ## Show the main job end to end in a real Kubernetes on this machine. KEEP=1 leaves it running.
	@bin/lab build
	@go run ./test/demo

.PHONY: test
test: root debian vet lint generated lab ## Run every check and test, those on a real Kubernetes too; they share the machine, since they mostly wait.
	@bin/lab build
	@$(MAKE) --no-print-directory -j3 --output-sync=line test-all test-lab e2e

.PHONY: lab
lab: ## Build bin/lab, which runs a real Kubernetes without Docker (bin/lab --help).
	@echo "building lab"
	@cd lab && go build -o $(BIN)/lab ./cmd/lab

.PHONY: build
build: ## Build the programs into bin/.
	@echo "building $(PROGRAMS)"
	@$(BUILD) -o $(BIN)/ $(addprefix ./cmd/,$(PROGRAMS))

##@ Checks

# The tests start some sixty API servers, and no process of theirs lives long: memory is cheaper than its collection.
test-all test-lab e2e: export GOGC := 400

.PHONY: vet
vet: ## Run go vet.
	@echo "go vet"
	@go vet -tags e2e ./...
	@cd lab && go vet ./...

.PHONY: lint
lint: $(BIN)/golangci-lint ## Run golangci-lint.
	@echo "golangci-lint"
	@$(BIN)/golangci-lint run --allow-parallel-runners ./...
	@cd lab && $(BIN)/golangci-lint run --allow-parallel-runners ./...

.PHONY: test-all
test-all: build assets $(BIN)/helm ## Run all Go tests, with the race detector.
	@echo "go test -race ./..."
	@KUBEBUILDER_ASSETS="$$(hack/kubernetes.sh)" go test -race -count=$(COUNT) -p 3 -timeout 30m ./...

.PHONY: test-lab
test-lab: root debian lab ## Run the tests of the lab itself.
	@bin/lab build
	@echo "go test -race ./... (lab)"
	@cd lab && go test -race -count=$(COUNT) -timeout 12m ./...

.PHONY: e2e
e2e: root debian lab $(BIN)/helm ## Run the end-to-end scenarios on a lab; logs and the simulator's journal are kept on failure.
	@hack/debian.sh node:nodejs npm
	@bin/lab build
	@echo "go test -tags e2e ./test/lab"
	@go test -tags e2e -v -count=$(COUNT) -parallel 8 -timeout 25m ./test/lab

.PHONY: test-unit
test-unit: ## Run the tests that need neither root nor an API server.
	@go test -race ./internal/azure/... ./internal/identity/... ./internal/binding/...

.PHONY: bench
bench: ## Run the benchmarks.
	@go test -run '^$$' -bench . -benchmem ./internal/binding ./internal/nmi/...

.PHONY: bench-nmi
bench-nmi: root debian build assets ## Measure NMI beside a bare handler, before a metadata service at its limits; a missed goal fails. About 5 minutes.
	@KUBEBUILDER_ASSETS="$$(hack/kubernetes.sh)" go run ./test/bench/nmi

.PHONY: chaos-mic
chaos-mic: build assets ## Try two processes of MIC with violence for 3 minutes. ARGS="--help" shows how to take another seed.
	@KUBEBUILDER_ASSETS="$$(hack/kubernetes.sh)" go run ./test/chaos/mic $(ARGS)

.PHONY: bench-mic
bench-mic: build assets ## Measure MIC in large clusters against a real API server, beside the old figures: about 14 minutes. ARGS="--help" shows how to take a part.
	@KUBEBUILDER_ASSETS="$$(hack/kubernetes.sh)" go run ./test/bench/mic $(ARGS)

FUZZTIME ?= 60s
.PHONY: fuzz
fuzz: ## Run every fuzz target for FUZZTIME (default 60s).
	@hack/fuzz.sh $(FUZZTIME)

##@ Generated files

.PHONY: generate
generate: $(BIN)/controller-gen $(BIN)/helm ## Write deep copies and custom resource definitions from api/, deploy/infra and the table of values from the chart.
	@$(BIN)/controller-gen object paths=./api/... crd paths=./api/... output:crd:dir=charts/aad-pod-identity/crds
	@hack/deploy.sh
	@go test ./test/chart -run TestReadme -args -update

.PHONY: generated
generated: $(BIN)/controller-gen $(BIN)/helm ## Fail if a generated file is out of date.
	@echo "generated files"
	@hack/generated.sh
	@hack/deploy.sh --check

##@ Tools

.PHONY: assets
assets: ## Build kube-apiserver and etcd, unless KUBEBUILDER_ASSETS or the PATH has them.
	@hack/kubernetes.sh > /dev/null

$(BIN)/controller-gen: tools/go.mod tools/go.sum
	@echo "building controller-gen"
	@cd tools && go build -o $@ sigs.k8s.io/controller-tools/cmd/controller-gen

.PHONY: helm
helm: $(BIN)/helm ## Build helm, which the chart's tests and hack/deploy.sh call.

# Without a stamp helm takes every cluster that it does not ask for Kubernetes 1.20.
$(BIN)/helm: tools/helm/go.mod tools/helm/go.sum
	@echo "building helm: about 2 minutes on 2 cold cores"
	@cd tools/helm && p=helm.sh/helm/v3 && minor=$$(go list -m -f '{{.Version}}' k8s.io/client-go | cut -d. -f2) && \
		CGO_ENABLED=0 go build -trimpath -o $@ -ldflags "-s -w -X $$p/internal/version.version=$$(go list -m -f '{{.Version}}' $$p) \
		-X $$p/pkg/chartutil.k8sVersionMajor=1 -X $$p/pkg/chartutil.k8sVersionMinor=$$minor \
		-X $$p/pkg/lint/rules.k8sVersionMajor=1 -X $$p/pkg/lint/rules.k8sVersionMinor=$$minor" $$p/cmd/helm

$(BIN)/golangci-lint: tools/go.mod tools/go.sum
	@echo "building golangci-lint: about 3 minutes on 2 cold cores"
	@cd tools && CGO_ENABLED=0 go build -o $@ github.com/golangci/golangci-lint/v2/cmd/golangci-lint

.PHONY: debian
debian: ## Install the Debian packages that tests and the demo call, where they are missing.
	@hack/debian.sh curl gcc mount runc iptables nft:nftables

.PHONY: root
root:
	@[ "$$(id -u)" = 0 ] || { echo "make $(firstword $(MAKECMDGOALS)) makes network namespaces and so must run as root: try sudo -E make $(firstword $(MAKECMDGOALS))" >&2; exit 1; }

.PHONY: clean
clean: ## Remove what was built.
	@rm -rf $(BIN) .cache
