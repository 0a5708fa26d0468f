//! podman, buildah, skopeo and CRI-O: the upstream is the beginning of the path, so each has its block.

use std::fmt::Write;

use super::server_url::ServerUrl;
use super::upstreams;
use crate::config::Config;

pub(super) fn file(url: &ServerUrl, config: &Config) -> String {
    let host = url.host();
    let mut file =
        "# /etc/containers/registries.conf.d/roadstead.conf, read at each pull (CRI-O: systemctl reload crio)\n\
                    # Test it: podman pull docker.io/library/busybox, and see it in Roadstead's log.\n"
            .to_owned();
    if url.is_https() {
        let _ = writeln!(
            file,
            "# If the certificate is signed by an authority of your own, put that into /etc/containers/certs.d/{host}/ca.crt"
        );
    }
    let insecure = if url.is_https() { "" } else { "insecure = true\n" };
    for name in upstreams(config) {
        if name.contains(':') {
            let _ = writeln!(file, "\n# {name} cannot be a mirror here: a path has no room for its port.");
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
            "\n# Roadstead by its own name: what was pushed to it.\n[[registry]]\nlocation = \"{host}\"\n{insecure}"
        );
    }
    file
}
