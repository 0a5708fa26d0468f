//! containerd: `_default/hosts.toml`, for every registry without a file of its own. Its requests name the registry (`ns`).

use super::list_of_upstreams;
use super::server_url::ServerUrl;
use crate::config::Config;

/// The folder in which containerd has a folder for each registry.
const CERTS_FOLDER: &str = "/etc/containerd/certs.d";

pub(super) fn files(url: &ServerUrl, config: &Config) -> String {
    format!(
        "# {CERTS_FOLDER}/_default/hosts.toml\n\
         # One mirror for every registry. containerd reads the file at each pull, without a restart. containerd 1 needs\n\
         # config_path = \"{CERTS_FOLDER}\" in [plugins.\"io.containerd.grpc.v1.cri\".registry] of its config.toml.\n\
         {upstreams}\
         # It refuses other registries at once, and containerd then asks them directly.\n\
         # To test: ctr image pull --hosts-dir {CERTS_FOLDER} docker.io/library/busybox:latest\n\
         # The pull appears in Roadstead's log.\n\
         {default}\n\
         # For pushes, create {CERTS_FOLDER}/{host}/hosts.toml with the following lines, uncommented.\n\
         {own}",
        upstreams = list_of_upstreams(config),
        default = default_hosts(url),
        host = url.host(),
        own = commented(&own_hosts(url)),
    )
}

/// The hosts files: the folder of each below containerd's folder, and its content.
pub(super) fn hosts_files(url: &ServerUrl) -> [(&str, String); 2] {
    [("_default", default_hosts(url)), (url.host(), own_hosts(url))]
}

/// `file` as comment lines, so that the output is one valid file.
fn commented(file: &str) -> String {
    file.lines().map(|line| if line.is_empty() { "#\n".to_owned() } else { format!("#{line}\n") }).collect()
}

/// A script that writes the same files into the nodes of a kind cluster, which are containers.
pub(super) fn kind_script(url: &ServerUrl, config: &Config) -> String {
    let host = url.host();
    format!(
        "#!/bin/sh\n\
         # Configures every node of the kind cluster that CLUSTER names (\"kind\" if it is not set). No restart is needed.\n\
         # {host} must be a name or an address that the nodes can reach. 127.0.0.1 is the node itself.\n\
         # kind before 0.27 needs config_path = \"{CERTS_FOLDER}\" in a containerdConfigPatches entry of the cluster.\n\
         {upstreams}\
         # To test: docker exec NODE crictl pull docker.io/library/busybox:latest\n\
         # The pull appears in Roadstead's log.\n\
         set -eu\n\
         put() {{\n    \
         docker exec -i \"$1\" sh -c \"mkdir -p '{CERTS_FOLDER}/$2' && cat >'{CERTS_FOLDER}/$2/hosts.toml'\"\n\
         }}\n\
         for node in $(kind get nodes --name \"${{CLUSTER:-kind}}\"); do\n    \
         put \"$node\" _default <<'END'\n\
         {default}END\n    \
         put \"$node\" '{host}' <<'END'\n\
         {own}END\n\
         done\n",
        upstreams = list_of_upstreams(config),
        default = default_hosts(url),
        own = own_hosts(url),
    )
}

fn default_hosts(url: &ServerUrl) -> String {
    format!("{}[host.\"{url}\"]\n  capabilities = [\"pull\", \"resolve\"]\n", authority(url))
}

fn own_hosts(url: &ServerUrl) -> String {
    format!(
        "server = \"{url}\"\n\n{}[host.\"{url}\"]\n  capabilities = [\"pull\", \"resolve\", \"push\"]\n",
        authority(url)
    )
}

fn authority(url: &ServerUrl) -> &'static str {
    match url.is_https() {
        true => "# If a private CA has signed the certificate, add below: ca = \"/etc/containerd/roadstead-ca.pem\"\n",
        false => "",
    }
}
