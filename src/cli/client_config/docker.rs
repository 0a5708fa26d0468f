//! Docker: `registry-mirrors`, which it asks for docker.io and for nothing else.

use std::fmt::Write;

use super::server_url::ServerUrl;
use super::{Recipe, upstreams};
use crate::config::{Config, DOCKER_IO};

pub(super) fn recipe(url: &ServerUrl, config: &Config) -> Recipe {
    let host = url.host();
    let mut keys = Vec::new();
    if let Some(mirror) = mirror(url, config) {
        keys.push(format!("  \"registry-mirrors\": [\"{mirror}\"]"));
    }
    if !url.is_https() && !url.is_loopback() {
        keys.push(format!("  \"insecure-registries\": [\"{host}\"]"));
    }
    let file = format!("{{\n{}\n}}\n", keys.join(",\n"));
    Recipe { file, notes: notes(url, config) }
}

/// Its requests do not always say that they mean docker.io: where names without a host mean another upstream, the path has
/// to (Docker 24 and newer).
fn mirror(url: &ServerUrl, config: &Config) -> Option<String> {
    config.upstream(DOCKER_IO)?;
    match config.default_upstream.as_deref() {
        Some(DOCKER_IO) => Some(url.to_string()),
        _ => Some(format!("{url}/{DOCKER_IO}")),
    }
}

fn notes(url: &ServerUrl, config: &Config) -> String {
    let host = url.host();
    let mut notes =
        "Put this into /etc/docker/daemon.json, beside what is there, then: systemctl restart docker\n".to_owned();
    if url.is_https() {
        let _ = writeln!(
            notes,
            "If the certificate is signed by an authority of your own, put that into /etc/docker/certs.d/{host}/ca.crt"
        );
    }
    if config.upstream(DOCKER_IO).is_some() {
        notes.push_str("Docker asks mirrors for docker.io only. ");
    } else {
        notes.push_str("Docker asks mirrors for docker.io only, and that is no upstream here. ");
    }
    let others: Vec<&str> = upstreams(config).into_iter().filter(|name| *name != DOCKER_IO).collect();
    if let Some(first) = others.iter().find(|name| !name.contains(':')) {
        let _ =
            write!(notes, "For {} put Roadstead in the name: docker pull {host}/{first}/org/app", others.join(", "));
    }
    let image = if config.upstream(DOCKER_IO).is_some() { "busybox" } else { "an image" };
    let _ =
        writeln!(notes, "\nTest it: docker pull {image}, and see it in Roadstead's log; else Docker went around it.");
    notes
}
