# Targets for developers and CI. On a fresh Debian machine with Rust, `make test` also installs what the tests need.

.PHONY: bench build check clients deb deb-try deny dist eviction figures image instructions kubernetes million pieces reference soak test

build:
	cargo build --release

# Builds the container image as an OCI layout in target/image, without Docker and without network. Takes a release build.
image: build
	deploy/docker/layout.sh target/release/roadstead target/image

# Builds the Debian package. Takes a release build. Needs: cargo install --locked cargo-deb
deb: build
	deploy/debian/build.sh target/release/roadstead

# Installs, upgrades and removes the Debian package in a container with systemd. Needs root, and Debian's debootstrap,
# systemd-container and lintian.
deb-try: build
	rm -rf target/debian
	deploy/debian/build.sh target/release/roadstead target/debian/old
	DEB_REVISION=2 deploy/debian/build.sh target/release/roadstead target/debian/new
	lintian --allow-root --fail-on error,warning target/debian/new/*.deb
	deploy/debian/try.sh target/debian/old/*.deb target/debian/new/*.deb

# Builds the files of a release, twice, and compares the two. See deploy/release/dist.sh for what it needs.
dist:
	deploy/release/dist.sh

check:
	cargo fmt --check
	cargo clippy --quiet --all-targets -- -D warnings

# Checks licences, sources, duplicate and unmaintained dependencies. Needs: cargo install --locked cargo-deny
deny:
	cargo deny --log-level warn check

# Compares Roadstead with nginx and docker-registry, for docs/benchmarks.md. Takes a release build, 50 minutes, 30 GiB of
# disk, and Debian's nginx-light, docker-registry, wrk and strace. `make bench ARGS="--rounds 1 --only blob"` takes less.
bench:
	cargo bench --quiet --bench compare -- $(ARGS)

# Measures the figures of docs/figures.md. Takes a release build, three minutes, 1.5 GiB of memory and 1.5 GiB of disk.
figures:
	cargo bench --quiet --bench figures

# Microbenchmarks of the parts of a hit, to see the effect of a change to one of them.
pieces:
	cargo bench --quiet --bench pieces -- $(ARGS)

# Counts the instructions of a hit with valgrind's callgrind and compares them with benches/instructions.txt, which
# `make instructions ARGS=--write` updates. Uses the optimised dev profile: a release build would double the time of CI.
# Incremental compilation would divide the code in another way, and change the counts.
instructions:
	CARGO_INCREMENTAL=0 cargo bench --quiet --profile dev --config profile.dev.opt-level=2 --bench instructions -- $(ARGS)

# Writes the pages of docs/reference from the code. A test fails if one of them is outdated.
reference:
	WRITE_REFERENCE=1 cargo test --quiet --lib reference::

# Simulates the figures of docs/eviction.md. Takes a release build and a minute.
eviction:
	cargo bench --quiet --bench eviction

# Measures a store of a million blobs, for docs/figures.md. Takes a million inodes and some minutes.
million:
	cargo bench --quiet --bench million

# Kills the program two hundred times while clients push and pull. Takes three minutes and prints the seed of the run.
soak:
	CRASH_ROUNDS=200 cargo test --quiet --test it -- --nocapture crash::acknowledged

# Gives the manifests and the Helm chart to an API server of Kubernetes. Needs Go, which builds the API server, etcd and Helm
# into a cache (ROADSTEAD_TOOLS, by default ~/.cache/roadstead/tools), which takes long the first time.
kubernetes:
	tests/kubernetes/check.sh

# The tests in `clients` start dockerd and run containers, which needs root.
ifeq ($(shell id -u),0)
test:
	tests/install.sh
	cargo test --quiet
else
test:
	tests/install.sh
	cargo test --quiet -- --skip clients::
	cargo test --quiet --test it --config 'target."cfg(all())".runner = "sudo -E"' -- clients::
endif

# The tests in `clients::modern` run today's versions of clients and registries. This target builds them with Go, outside
# the repository, and once for each version: tests/clients/programs.txt lists them. `make clients CLIENTS="crane oras"` takes
# only these.
CLIENTS =
CLIENT_TESTS = $(if $(CLIENTS),$(CLIENTS:%=clients::modern::%::),clients::modern::)
CLIENT_TOOLS ?= $(or $(XDG_CACHE_HOME),$(HOME)/.cache)/roadstead/tools
export CLIENT_TOOLS
clients:
	tests/install.sh
	tests/clients/build.sh $(CLIENTS)
ifeq ($(shell id -u),0)
	cargo test --quiet --test it -- --ignored $(CLIENT_TESTS)
else
	cargo test --quiet --test it --config 'target."cfg(all())".runner = "sudo -E"' -- --ignored $(CLIENT_TESTS)
endif
