//! podman, buildah, skopeo and CRI-O: `registries.conf`. Their requests name the upstream at the beginning of the path, so
//! each upstream has a block.

use std::fmt::Write;

use super::server_url::ServerUrl;
use super::upstreams;
use crate::config::Config;

pub(super) fn file(url: &ServerUrl, config: &Config) -> String {
    let host = url.host();
    let mut file =
        "# /etc/containers/registries.conf.d/roadstead.conf, read at each pull (CRI-O: systemctl reload crio)\n\
                    # To test: podman pull docker.io/library/busybox. The pull appears in Roadstead's log.\n"
            .to_owned();
    if url.is_https() {
        let _ = writeln!(
            file,
            "# If a private CA has signed the certificate, put the CA's certificate into /etc/containers/certs.d/{host}/ca.crt"
        );
    }
    let insecure = if url.is_https() { "" } else { "insecure = true\n" };
    for name in upstreams(config) {
        if name.contains(':') {
            let _ = writeln!(file, "\n# {name} cannot be mirrored this way, because a path cannot hold its port.");
            continue;
        }
        let _ = write!(
            file,
            "\n[[registry]]\nlocation = \"{name}\"\n[[registry.mirror]]\nlocation = \"{host}/{name}\"\n{insecure}"
        );
    }
    if !url.is_https() {
        let _ = write!(
            file,
            "\n# Roadstead under its own name, for images that were pushed to it.\n[[registry]]\nlocation = \"{host}\"\n{insecure}"
        );
    }
    file
}
