//! k3s, RKE2 and k3d: one entry of `registries.yaml` for all registries. They turn it into containerd's `_default`.

use super::list_of_upstreams;
use super::server_url::ServerUrl;
use crate::config::Config;

pub(super) fn file(url: &ServerUrl, config: &Config) -> String {
    let intro = "# /etc/rancher/k3s/registries.yaml on every node (RKE2: /etc/rancher/rke2/registries.yaml), then:\n\
                # systemctl restart k3s (on agents k3s-agent)\n";
    format!("{intro}{}", rest(url, config, "k3s crictl pull docker.io/library/busybox:latest"))
}

pub(super) fn k3d_file(url: &ServerUrl, config: &Config) -> String {
    let intro = format!(
        "# registries.yaml for: k3d cluster create --registry-config registries.yaml\n\
         # {} must be a name or an address that the nodes can reach. This machine is host.k3d.internal to them.\n",
        url.host()
    );
    format!("{intro}{}", rest(url, config, "kubectl run test --image busybox -- sleep 60"))
}

fn rest(url: &ServerUrl, config: &Config, test: &str) -> String {
    let tls = match url.is_https() {
        false => String::new(),
        true => format!(
            "# If a private CA has signed the certificate:\n\
             # configs:\n#   \"{}\":\n#     tls:\n#       ca_file: /etc/rancher/roadstead-ca.pem\n",
            url.host()
        ),
    };
    format!(
        "{}# It refuses other registries at once, and the node then asks them directly.\n\
         # To test: {test}\n\
         # The pull appears in Roadstead's log.\n\
         {tls}mirrors:\n  \"*\":\n    endpoint:\n      - \"{url}\"\n",
        list_of_upstreams(config)
    )
}
