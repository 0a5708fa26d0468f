//! buildkit: `buildkitd.toml` with a mirror for each registry. Its requests name the registry (`ns`).

use std::fmt::Write;

use super::server_url::ServerUrl;
use super::upstreams;
use crate::config::Config;

pub(super) fn file(url: &ServerUrl, config: &Config) -> String {
    let host = url.host();
    let mut file = "# /etc/buildkit/buildkitd.toml, then restart buildkitd; with buildx:\n\
                    # docker buildx create --driver docker-container --buildkitd-config buildkitd.toml --use\n\
                    # To test: build something FROM busybox with --no-cache --pull. The pull appears in Roadstead's log.\n"
        .to_owned();
    for name in upstreams(config) {
        let _ = write!(file, "[registry.\"{name}\"]\n  mirrors = [\"{host}\"]\n");
    }
    let _ = match url.is_https() {
        false => write!(file, "[registry.\"{host}\"]\n  http = true\n"),
        true => write!(
            file,
            "# If a private CA has signed the certificate:\n\
             # [registry.\"{host}\"]\n#   ca = [\"/etc/buildkit/roadstead-ca.pem\"]\n"
        ),
    };
    file
}
