# What people and CI run here. `make test` is all that a fresh Debian machine with Rust needs.

.PHONY: bench build check deny eviction figures instructions million pieces soak test

build:
	cargo build --release

check:
	cargo fmt --check
	cargo clippy --quiet --all-targets -- -D warnings

# Licences, sources, doubled and abandoned dependencies: cargo install --locked cargo-deny
deny:
	cargo deny --log-level warn check

# Roadstead beside nginx and docker-registry, as docs/benchmarks.md reports it: a release build, half an hour, 15 GiB of disk,
# and Debian's nginx-light, docker-registry, wrk and strace. `make bench ARGS="--rounds 1 --only blob"` takes less.
bench:
	cargo bench --quiet --bench compare -- $(ARGS)

# What docs/figures.md reports: a release build and three minutes, with 1.5 GiB of memory and as much of disk.
figures:
	cargo bench --quiet --bench figures

# The pieces of a hit, each by itself: for whoever changes one of them.
pieces:
	cargo bench --quiet --bench pieces -- $(ARGS)

# Instructions of a hit by valgrind's callgrind, beside those in benches/instructions.txt; `make instructions ARGS=--write`
# writes them. Built beside the tests and as they are, but optimised: a release build would take CI as long as everything else.
instructions:
	cargo bench --quiet --profile dev --config profile.dev.opt-level=2 --bench instructions -- $(ARGS)

# What docs/eviction.md reports: a release build and a minute.
eviction:
	cargo bench --quiet --bench eviction

# What docs/figures.md says of a store of a million blobs: as many inodes, and some minutes.
million:
	cargo bench --quiet --bench million

# The program, killed two hundred times while clients push and pull: three minutes. It prints the seed of the run.
soak:
	CRASH_ROUNDS=200 cargo test --quiet --test it -- --nocapture crash::whatever

# The tests named clients:: start dockerd and run containers, and that takes root.
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
