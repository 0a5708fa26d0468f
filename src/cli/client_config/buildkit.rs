//! buildkit: a mirror for each registry; its requests say which one they mean.

use std::fmt::Write;

use super::server_url::ServerUrl;
use super::upstreams;
use crate::config::Config;

pub(super) fn file(url: &ServerUrl, config: &Config) -> String {
    let host = url.host();
    let mut file = "# /etc/buildkit/buildkitd.toml, then restart buildkitd; with buildx:\n\
                    # docker buildx create --driver docker-container --buildkitd-config buildkitd.toml --use\n\
                    # Test it: build something FROM busybox with --no-cache --pull, and see it in Roadstead's log.\n"
        .to_owned();
    for name in upstreams(config) {
        let _ = write!(file, "[registry.\"{name}\"]\n  mirrors = [\"{host}\"]\n");
    }
    let _ = match url.is_https() {
        false => write!(file, "[registry.\"{host}\"]\n  http = true\n"),
        true => write!(
            file,
            "# If the certificate is signed by an authority of your own:\n\
             # [registry.\"{host}\"]\n#   ca = [\"/etc/buildkit/roadstead-ca.pem\"]\n"
        ),
    };
    file
}
