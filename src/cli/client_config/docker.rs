//! Docker: `registry-mirrors` in `daemon.json`. Docker asks mirrors for docker.io alone.

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

/// The URL of the mirror. Docker's requests do not always name docker.io (`ns`). If names without a host mean another
/// upstream, the path of the URL names it, which Docker supports from version 24 on.
fn mirror(url: &ServerUrl, config: &Config) -> Option<String> {
    config.upstream(DOCKER_IO)?;
    match config.default_upstream.as_deref() {
        Some(DOCKER_IO) => Some(url.to_string()),
        _ => Some(format!("{url}/{DOCKER_IO}")),
    }
}

fn notes(url: &ServerUrl, config: &Config) -> String {
    let host = url.host();
    let mut notes = "Add this to /etc/docker/daemon.json, then: systemctl restart docker\n".to_owned();
    if url.is_https() {
        let _ = writeln!(
            notes,
            "If a private CA has signed the certificate, put the CA's certificate into /etc/docker/certs.d/{host}/ca.crt"
        );
    }
    if config.upstream(DOCKER_IO).is_some() {
        notes.push_str("Docker asks mirrors for docker.io only. ");
    } else {
        notes.push_str("Docker asks mirrors for docker.io only, which is not an upstream of this server. ");
    }
    let others: Vec<&str> = upstreams(config).into_iter().filter(|name| *name != DOCKER_IO).collect();
    if let Some(first) = others.iter().find(|name| !name.contains(':')) {
        let _ =
            write!(notes, "For {}, name Roadstead in the image: docker pull {host}/{first}/org/app", others.join(", "));
    }
    let image = if config.upstream(DOCKER_IO).is_some() { "busybox" } else { "an image" };
    let _ = writeln!(
        notes,
        "\nTo test: docker pull {image}. If the pull does not appear in Roadstead's log, Docker did not use the mirror."
    );
    notes
}
