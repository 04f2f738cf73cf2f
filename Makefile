# make demo and make test do all their own set-up: Go, git and make are enough.

TOOLS := $(CURDIR)/.tools
BIN   := $(TOOLS)/bin
RPUSH := $(TOOLS)/rpush

# What the tests, the demo and the bench run, each a module of its own version.
registry      := github.com/distribution/distribution/v3/cmd/registry@v3.1.1
crane         := github.com/google/go-containerregistry/cmd/crane@v0.22.1
versitygw     := github.com/versity/versitygw/cmd/versitygw@v1.8.0
nfpm          := github.com/goreleaser/nfpm/v2/cmd/nfpm@v2.44.2
golangci-lint := github.com/golangci/golangci-lint/v2/cmd/golangci-lint@v2.15.0

export RPUSH_TOOLS := $(BIN)

# The race detector needs a C compiler.
RACE := $(shell command -v $${CC:-gcc} >/dev/null 2>&1 && echo -race)

# What is published is built from a commit: its version, hash and time decide
# every byte.
VERSION ?= $(shell git describe --tags --exact-match 2>/dev/null | sed 's/^v//' | grep . || TZ=UTC git log -1 --date=format-local:%Y%m%d%H%M%S --format=0.0.0-%cd-%h --abbrev=12)
COMMIT  := $(shell git rev-parse HEAD)
EPOCH   := $(shell git log -1 --format=%ct)

.PHONY: all build demo quick test engine29 bench lint cross fuzz tools debian dist dist-test docs clean

all: build

# The command, as ./rpush.
build:
	go build -trimpath -o rpush ./cmd/rpush

# All that is published of a version, in dist/: binaries, packages, an image,
# checksums. The same commit gives the same bytes in any directory.
dist: $(BIN)/nfpm
	go run ./internal/release -version '$(VERSION)' -commit $(COMMIT) -time $(EPOCH) -nfpm $(BIN)/nfpm -out dist
	@cat dist/SHA256SUMS

# What make dist has built pushes through resets: on this machine, by qemu for
# other processors, and by wine for Windows if it is installed.
dist-test: tools debian
	RPUSH_DIST=$(CURDIR)/dist go test -count=1 -timeout 20m -run TestRelease -v ./internal/release

# The reference of flags and exit codes, from the code.
docs:
	go run ./internal/release -reference docs/reference.md

# A push through resets, before your eyes.
demo: $(BIN)/registry $(BIN)/crane $(RPUSH)
	go run ./internal/demo -rpush $(RPUSH)

# Everything that must hold. Breaks at every single byte are tried without the
# race detector, and at some with it. What waits for a line runs beside what
# computes. What needs a missing tool is skipped with the
# reason; with RPUSH_TEST_REQUIRE=1, as in CI, that is a failure. The timeouts
# only end what hangs: a busy machine may take ten times as long as an idle one.
test: tools debian lint cross
	go test $(RACE) -short -timeout 60m $$(go list ./... | grep -v -e /internal/e2e -e /internal/enginetest -e /internal/matrix -e /internal/simulator -e /internal/conntracklab)
	go test -timeout 60m ./pusher ./resume ./internal/compress
	RPUSH_SIM_SEEDS=500 go test $(RACE) -short -count=1 -timeout 60m ./internal/simulator
	go test -count=1 -timeout 60m ./internal/conntracklab
	go test -p 2 -count=1 -timeout 60m ./internal/e2e ./internal/enginetest ./internal/release
	go test -p 2 -count=1 -timeout 60m -parallel 6 ./internal/matrix ./internal/simulator
	cd examples && go vet ./... && go test ./...
	scripts/ggcr-remote-tests

# The tests that matter for most changes, without the race detector, in less than
# a minute.
quick:
	RPUSH_SIM_SEEDS=100 go test -short $$(go list ./... | grep -v -e /internal/e2e -e /internal/enginetest -e /internal/matrix -e /internal/conntracklab)

# The tests with the Docker engine against one that no distribution has yet, with
# each of its stores. It is built first, which takes minutes. As root.
engine29: tools
	scripts/with-engine classic go test -count=1 -timeout 10m ./internal/enginetest
	scripts/with-engine containerd go test -count=1 -timeout 10m ./internal/enginetest

# rpush beside crane and docker push: figures, no assertions.
bench: $(BIN)/registry $(BIN)/crane $(RPUSH)
	go run ./internal/bench -rpush $(RPUSH)
	@if docker version >/dev/null 2>&1; then go run ./internal/enginebench -rpush $(RPUSH); \
		else echo "no Docker engine answers: nothing to set beside docker push"; fi

lint: $(BIN)/golangci-lint
	@test -z "$$(gofmt -l .)" || { echo "gofmt would change:"; gofmt -l .; exit 1; }
	go mod tidy -diff
	cd examples && go mod tidy -diff
	go vet ./...
	$(BIN)/golangci-lint run --allow-parallel-runners ./...
	cd examples && $(BIN)/golangci-lint run --allow-parallel-runners --config ../.golangci.yml ./...

# Other systems have at least to build, tests included.
cross:
	GOOS=darwin CGO_ENABLED=0 go vet ./...
	GOOS=windows CGO_ENABLED=0 go vet ./...

# A minute for each parser of foreign input.
fuzz:
	scripts/fuzz 60s

tools: $(BIN)/registry $(BIN)/crane $(BIN)/nfpm $(BIN)/versitygw $(BIN)/golangci-lint

# Real parts that Debian has, installed where that is allowed. RUNLEVEL=1 keeps
# them from starting as services.
DEBIAN := nginx haproxy docker-registry skopeo buildah podman redis-server prometheus iproute2 iptables nftables procps man-db qemu-user-static
debian:
	@if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
		missing=$$(for p in $(DEBIAN); do dpkg -s $$p >/dev/null 2>&1 || echo $$p; done); \
		if [ -n "$$missing" ]; then \
			apt-get update -qq && RUNLEVEL=1 DEBIAN_FRONTEND=noninteractive \
				apt-get install -y -qq --no-install-recommends $$missing; \
		fi; \
	fi

# A tool is installed again when its version above changes.
$(BIN)/%: $(TOOLS)/versions/%
	GOBIN=$(BIN) GOFLAGS=-mod=mod CGO_ENABLED=0 go install $($*)
	@touch $@

.PRECIOUS: $(TOOLS)/versions/%
$(TOOLS)/versions/%: FORCE
	@mkdir -p $(@D)
	@echo '$($*)' | cmp -s - $@ || echo '$($*)' > $@

.PHONY: FORCE
FORCE:

.PHONY: $(RPUSH)
$(RPUSH):
	@mkdir -p $(@D)
	CGO_ENABLED=0 go build -trimpath -o $@ ./cmd/rpush

clean:
	rm -rf $(TOOLS) rpush dist
