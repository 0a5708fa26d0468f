//! Real programs against real registries, through the real Roadstead.
//!
//! Every test starts its own daemons on free loopback ports, in a folder of its own, and takes them
//! down however it ends. Nothing here leaves the machine: a program that falls back to the internet
//! finds a closed door. A program that is missing fails the test; `make test` installs it.
//! All of it needs root, as `dockerd` and `podman run` do.

mod attested;
mod bad_line;
mod buildah;
mod busybox;
mod chains;
mod containerd;
mod containers;
mod docker;
mod folder;
mod full_disk;
mod podman;
mod program;
mod read_only;
mod readme;
mod registry;
mod shapes;
mod skopeo;
mod tls;

use crate::support::process::ServerProcess;
use crate::support::settings::Settings;
use registry::Registry;

/// Roadstead with these registries behind it, the first of them the default.
fn roadstead(upstreams: &[(&str, &Registry)]) -> ServerProcess {
    roadstead_with(upstreams, "")
}

/// The same with more TOML in its configuration.
fn roadstead_with(upstreams: &[(&str, &Registry)], more: &str) -> ServerProcess {
    let mut settings = Settings::new().config(more);
    for (name, registry) in upstreams {
        settings = settings.upstream_url(name, &registry.url());
    }
    if let Some((first, _)) = upstreams.first() {
        settings = settings.default_upstream(first);
    }
    ServerProcess::start(settings)
}
