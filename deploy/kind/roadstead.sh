#!/bin/sh
# Configures every node of the kind cluster that CLUSTER names ("kind" if it is not set). No restart is needed.
# roadstead:5000 must be a name or an address that the nodes can reach. 127.0.0.1 is the node itself.
# kind before 0.27 needs config_path = "/etc/containerd/certs.d" in a containerdConfigPatches entry of the cluster.
# Roadstead answers for docker.io, gcr.io, ghcr.io, mcr.microsoft.com, nvcr.io, public.ecr.aws, quay.io, registry.gitlab.com, registry.k8s.io.
# To test: docker exec NODE crictl pull docker.io/library/busybox:latest
# The pull appears in Roadstead's log.
set -eu
put() {
    docker exec -i "$1" sh -c "mkdir -p '/etc/containerd/certs.d/$2' && cat >'/etc/containerd/certs.d/$2/hosts.toml'"
}
for node in $(kind get nodes --name "${CLUSTER:-kind}"); do
    put "$node" _default <<'END'
[host."http://roadstead:5000"]
  capabilities = ["pull", "resolve"]
END
    put "$node" 'roadstead:5000' <<'END'
server = "http://roadstead:5000"

[host."http://roadstead:5000"]
  capabilities = ["pull", "resolve", "push"]
END
done
