#!/usr/bin/env bash
# Builds what check.sh needs into a cache outside the repository: helm, etcd and kube-apiserver. A program whose version is
# there is not built again. Needs Go 1.26.
set -euo pipefail
tools=${ROADSTEAD_TOOLS:-${XDG_CACHE_HOME:-$HOME/.cache}/roadstead/tools}
helm=v4.3.2
etcd=v3.7.3
kubernetes=v1.37.2
gateway_api=v1.6.1
prometheus_operator=v0.85.0

scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT

# The folder of a module's source.
source_of() { # module version
    local answer
    answer=$(cd "$scratch" && go mod download -json "$1@$2") || { echo "$answer" >&2; return 1; }
    sed -n 's/^\t"Dir": "\(.*\)",$/\1/p' <<<"$answer"
}

# Builds a command in a module of our own, because `go install` refuses modules with replacements.
build() { # name version package
    local target="$tools/$1-$2/bin"
    mkdir -p "$target"
    echo "building $1 $2"
    go build -trimpath -ldflags="-s -w ${ldflags:-}" -o "$target/$1.new" "$3"
    mv "$target/$1.new" "$target/$1"
}

begin_module() {
    mkdir -p "$scratch/$1"
    cd "$scratch/$1"
}

build_helm() {
    begin_module helm
    go mod init build.invalid/helm 2>/dev/null
    go get "helm.sh/helm/v4/cmd/helm@$helm" 2>/dev/null
    build helm "$helm" helm.sh/helm/v4/cmd/helm
}

build_etcd() {
    begin_module etcd
    go mod init build.invalid/etcd 2>/dev/null
    go get "go.etcd.io/etcd/server/v3@$etcd" 2>/dev/null
    build etcd "$etcd" go.etcd.io/etcd/server/v3
}

# Kubernetes replaces its own libraries by folders that are not in the module. Each is published with the same version, as 0.
build_kube_apiserver() {
    local module source
    begin_module kubernetes
    source=$(source_of k8s.io/kubernetes "$kubernetes")
    sed 's#^module .*#module build.invalid/kubernetes#' "$source/go.mod" >go.mod
    for module in $(sed -n 's#^\t\(k8s\.io/[a-z0-9-]*\) v0\.0\.0\( //.*\)\?$#\1#p' go.mod); do
        go mod edit -replace "$module=$module@v0.${kubernetes#v1.}"
    done
    go mod edit -require "k8s.io/kubernetes@$kubernetes"
    export GOFLAGS="${GOFLAGS:-} -mod=mod"
    ldflags="-X k8s.io/component-base/version.gitVersion=$kubernetes" \
        build kube-apiserver "$kubernetes" k8s.io/kubernetes/cmd/kube-apiserver
}

# The kinds HTTPRoute and ServiceMonitor, which the API server does not have by itself.
copy_definitions() {
    local target="$tools/definitions-$gateway_api-$prometheus_operator.new" gateway prometheus
    gateway=$(source_of sigs.k8s.io/gateway-api "$gateway_api")
    prometheus=$(source_of github.com/prometheus-operator/prometheus-operator "$prometheus_operator")
    rm -rf "$target"
    mkdir -p "$target"
    cp "$gateway/config/crd/standard/gateway.networking.k8s.io_httproutes.yaml" \
        "$prometheus/example/prometheus-operator-crd/monitoring.coreos.com_servicemonitors.yaml" "$target"
    mv "$target" "${target%.new}"
}

for name in helm etcd kube-apiserver; do
    version=$name
    [ "$name" != kube-apiserver ] || version=kubernetes
    if [ ! -x "$tools/$name-${!version}/bin/$name" ]; then
        (build_"${name//-/_}")
    fi
done
[ -d "$tools/definitions-$gateway_api-$prometheus_operator" ] || copy_definitions

# check.sh reads the paths.
cat >"$tools/kubernetes.env" <<ENV
helm="$tools/helm-$helm/bin/helm"
etcd="$tools/etcd-$etcd/bin/etcd"
apiserver="$tools/kube-apiserver-$kubernetes/bin/kube-apiserver"
definitions="$tools/definitions-$gateway_api-$prometheus_operator"
ENV
