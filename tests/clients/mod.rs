//! Real clients and registries with the real program.
//!
//! Every test starts its own daemons on free loopback ports, in its own folder, and stops them however it ends. Nothing
//! leaves the machine: a client that falls back to the internet fails. A missing program fails the test; `make test`
//! installs it. The tests need root, as `dockerd` and `podman run` do.

mod attested;
mod bad_line;
mod buildah;
mod busybox;
mod certificates;
mod chains;
mod containerd;
mod containers;
mod created_registries;
mod docker;
mod folder;
mod full_disk;
mod image;
mod imported;
mod login;
mod modern;
mod network;
mod node_pods;
mod podman;
mod program;
mod prometheus;
mod read_only;
mod readme;
mod registry;
mod reverse_proxies;
mod shapes;
mod skopeo;
mod tls;

use crate::support::Image;
use crate::support::process::ServerProcess;
use crate::support::settings::Settings;
use registry::Registry;

/// Two registries, each with its own image: `repository:tag` at the first one and `team/tool:v1` at the second one.
async fn two_registries(repository: &str, tag: &str) -> [(Registry, Image); 2] {
    let (hub, github) = (Registry::start(), Registry::start());
    let (from_hub, from_github) = (busybox::image("from the hub"), busybox::image("from github"));
    hub.push(repository, tag, &from_hub).await;
    github.push("team/tool", "v1", &from_github).await;
    [(hub, from_hub), (github, from_github)]
}

/// Roadstead with these upstreams, the first of which is the default.
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
