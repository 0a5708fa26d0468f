//! containerd: `_default/hosts.toml`, for every registry that has no file of its own. Its requests say which one they mean.

use super::list_of_upstreams;
use super::server_url::ServerUrl;
use crate::config::Config;

/// Where containerd looks for one folder per registry.
const FOLDER: &str = "/etc/containerd/certs.d";

pub(super) fn files(url: &ServerUrl, config: &Config) -> String {
    format!(
        "# {FOLDER}/_default/hosts.toml\n\
         # Every registry through one mirror. It is read at each pull: nothing has to be restarted. containerd 1 needs\n\
         # config_path = \"{FOLDER}\" in [plugins.\"io.containerd.grpc.v1.cri\".registry] of its config.toml.\n\
         {upstreams}\
         # It refuses any other registry at once, and containerd asks that one directly.\n\
         # Test it: ctr image pull --hosts-dir {FOLDER} docker.io/library/busybox:latest, and see it in Roadstead's log.\n\
         {default}\n\
         # For pushes, below: {FOLDER}/{host}/hosts.toml, without the marks.\n\
         {own}",
        upstreams = list_of_upstreams(config),
        default = default_hosts(url),
        host = url.host(),
        own = commented(&own_hosts(url)),
    )
}

/// What is printed is one file that is right as it stands.
fn commented(file: &str) -> String {
    file.lines().map(|line| if line.is_empty() { "#\n".to_owned() } else { format!("#{line}\n") }).collect()
}

/// The same for nodes that are containers.
pub(super) fn kind_script(url: &ServerUrl, config: &Config) -> String {
    let host = url.host();
    format!(
        "#!/bin/sh\n\
         # Sets up every node of the kind cluster that CLUSTER names (\"kind\" if it is not set), before or after pulls.\n\
         # {host} has to be a name or an address that the nodes reach: 127.0.0.1 is the node itself.\n\
         # kind before 0.27 needs config_path = \"{FOLDER}\" in a containerdConfigPatches entry of the cluster.\n\
         {upstreams}\
         # Test it: docker exec NODE crictl pull docker.io/library/busybox:latest, and see it in Roadstead's log.\n\
         set -eu\n\
         put() {{\n    \
         docker exec -i \"$1\" sh -c \"mkdir -p '{FOLDER}/$2' && cat >'{FOLDER}/$2/hosts.toml'\"\n\
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
        true => {
            "# If the certificate is signed by an authority of your own, add below: ca = \"/etc/containerd/roadstead-ca.pem\"\n"
        }
        false => "",
    }
}
