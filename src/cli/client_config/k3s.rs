//! k3s, RKE2 and k3d: one entry in registries.yaml for all registries, which they make into containerd's `_default`.

use super::list_of_upstreams;
use super::server_url::ServerUrl;
use crate::config::Config;

pub(super) fn file(url: &ServerUrl, config: &Config) -> String {
    let head = "# /etc/rancher/k3s/registries.yaml on every node (RKE2: /etc/rancher/rke2/registries.yaml), then:\n\
                # systemctl restart k3s (on agents k3s-agent)\n";
    format!("{head}{}", rest(url, config, "k3s crictl pull docker.io/library/busybox:latest"))
}

pub(super) fn k3d_file(url: &ServerUrl, config: &Config) -> String {
    let head = format!(
        "# registries.yaml for: k3d cluster create --registry-config registries.yaml\n\
         # {} has to be a name or an address that the nodes reach: this machine is host.k3d.internal to them.\n",
        url.host()
    );
    format!("{head}{}", rest(url, config, "kubectl run test --image busybox -- sleep 60"))
}

fn rest(url: &ServerUrl, config: &Config, test: &str) -> String {
    let tls = match url.is_https() {
        false => String::new(),
        true => format!(
            "# If the certificate is signed by an authority of your own:\n\
             # configs:\n#   \"{}\":\n#     tls:\n#       ca_file: /etc/rancher/roadstead-ca.pem\n",
            url.host()
        ),
    };
    format!(
        "{}# It refuses any other registry at once, and the node asks that one directly.\n\
         # Test it: {test}, and see it in Roadstead's log.\n\
         {tls}mirrors:\n  \"*\":\n    endpoint:\n      - \"{url}\"\n",
        list_of_upstreams(config)
    )
}
