#!/usr/bin/env bash
# Gives the manifests and the Helm chart to an API server of Kubernetes, which validates and admits them as in a cluster.
# There are no nodes and no controllers, so nothing is started. Needs Go, kubectl, curl and openssl.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
deploy=$here/../../deploy
for program in go kubectl curl openssl; do
    command -v "$program" >/dev/null || { echo "skipped: $program is not installed"; exit 0; }
done
"$here/build.sh"
. "${ROADSTEAD_TOOLS:-${XDG_CACHE_HOME:-$HOME/.cache}/roadstead/tools}/kubernetes.env"

# === an API server with an empty etcd, on free ports of 127.0.0.1 ===

scratch=$(mktemp -d)
processes=()
finish() {
    local process
    for process in "${processes[@]}"; do kill "$process" 2>/dev/null || true; done
    wait 2>/dev/null || true
    rm -rf "$scratch"
}
trap finish EXIT

free_port() {
    local port
    while :; do
        port=$((10000 + RANDOM % 20000))
        (echo >"/dev/tcp/127.0.0.1/$port") 2>/dev/null || { echo "$port"; return; }
    done
}
ports=($(free_port) $(free_port) $(free_port))

"$etcd" --data-dir "$scratch/etcd" --log-level error --unsafe-no-fsync \
    --listen-client-urls "http://127.0.0.1:${ports[0]}" --advertise-client-urls "http://127.0.0.1:${ports[0]}" \
    --listen-peer-urls "http://127.0.0.1:${ports[1]}" --initial-advertise-peer-urls "http://127.0.0.1:${ports[1]}" \
    --initial-cluster "default=http://127.0.0.1:${ports[1]}" >"$scratch/etcd.log" 2>&1 &
processes+=($!)
openssl genrsa -out "$scratch/key.pem" 2048 2>/dev/null
token=$(openssl rand -hex 16)
echo "$token,admin,admin,system:masters" >"$scratch/tokens.csv"
"$apiserver" --etcd-servers "http://127.0.0.1:${ports[0]}" --bind-address 127.0.0.1 --secure-port "${ports[2]}" \
    --advertise-address 127.0.0.1 --endpoint-reconciler-type none \
    --cert-dir "$scratch" --service-cluster-ip-range 10.96.0.0/16 --authorization-mode RBAC --token-auth-file "$scratch/tokens.csv" \
    --service-account-issuer https://kubernetes.default.svc --service-account-key-file "$scratch/key.pem" \
    --service-account-signing-key-file "$scratch/key.pem" >"$scratch/apiserver.log" 2>&1 &
processes+=($!)

export KUBECONFIG=$scratch/kubeconfig HELM_CACHE_HOME=$scratch/helm HELM_CONFIG_HOME=$scratch/helm HELM_DATA_HOME=$scratch/helm
cat >"$KUBECONFIG" <<CONFIG
apiVersion: v1
kind: Config
clusters: [{name: test, cluster: {server: "https://127.0.0.1:${ports[2]}", insecure-skip-tls-verify: true}}]
users: [{name: test, user: {token: $token}}]
contexts: [{name: test, context: {cluster: test, user: test}}]
current-context: test
CONFIG
for _ in $(seq 120); do
    kill -0 "${processes[1]}" 2>/dev/null || { tail -5 "$scratch/apiserver.log" >&2; exit 1; }
    kubectl get --raw /readyz >/dev/null 2>&1 && break
    sleep 1
done
kubectl get --raw /readyz >/dev/null
echo "the API server is $(kubectl get --raw /version | sed -n 's/.*"gitVersion": "\(.*\)".*/\1/p')"
# The class exists in every cluster; a controller makes it there.
kubectl get priorityclass system-node-critical >/dev/null

passed=0
failed=0
# Runs a command. It fails if the command does, or if the API server warns about anything, such as a field that it does not know.
check() { # description command...
    local description=$1
    shift
    if "$@" >"$scratch/out" 2>&1 && ! grep -E '^W[0-9]|Warning:' "$scratch/out" | grep -v "'bases' is deprecated" >&2; then
        passed=$((passed + 1))
        echo "ok: $description"
    else
        failed=$((failed + 1))
        echo "FAILED: $description" >&2
        cat "$scratch/out" >&2
    fi
}
refused() { # description part-of-message command...
    local description=$1 part=$2
    shift 2
    if "$@" >"$scratch/out" 2>&1 || ! grep -qF -- "$part" "$scratch/out"; then
        failed=$((failed + 1))
        echo "FAILED: $description" >&2
        cat "$scratch/out" >&2
    else
        passed=$((passed + 1))
        echo "ok: $description"
    fi
}

# === the manifests ===

apply() { kubectl apply --validate=true "$@"; }
dry_run() { kubectl apply --validate=true --dry-run=server "$@"; }

for shape in shared per-node; do
    # Namespaces first: without them, the API server refuses what is in them, also in a dry run.
    check "$shape: namespace" apply -f "$deploy/kubernetes/$shape/namespace.yaml"
    namespace=$(sed -n 's/^  name: //p' "$deploy/kubernetes/$shape/namespace.yaml")
    level=$(sed -n 's/.*enforce: //p' "$deploy/kubernetes/$shape/namespace.yaml")
    # Pods that the level of the namespace forbids are a warning for the StatefulSet or DaemonSet then.
    kubectl label namespace "$namespace" "pod-security.kubernetes.io/warn=$level" >/dev/null
    check "$shape: dry run" dry_run -k "$deploy/kubernetes/$shape"
    check "$shape: applied" apply -k "$deploy/kubernetes/$shape"
    # The server completes volumeClaimTemplates, so kubectl calls a StatefulSet that has them "configured" each time.
    same='unchanged|^statefulset.apps/roadstead configured$'
    check "$shape: applied again, nothing changes" sh -c "! kubectl apply -k '$deploy/kubernetes/$shape' 2>/dev/null | grep -vE '$same'"
done
# The proof that such warnings are seen: hostNetwork is not allowed at this level.
sed 's/namespace: .*/namespace: roadstead/' "$deploy/kubernetes/per-node/daemonset.yaml" >"$scratch/daemonset.yaml"
check_warns() {
    local answer
    # Not a pipe: grep would close it, and kubectl would fail.
    answer=$(kubectl apply --dry-run=server --namespace roadstead -f "$scratch/daemonset.yaml" 2>&1)
    grep -q 'would violate PodSecurity' <<<"$answer"
}
check "the level of the shared namespace forbids pods of nodes" check_warns

# === the chart ===

chart=$deploy/helm/roadstead
kubectl create namespace helm >/dev/null
kubectl label namespace helm pod-security.kubernetes.io/warn=restricted >/dev/null
kubectl create namespace helm-node >/dev/null
check "definitions of HTTPRoute and ServiceMonitor" kubectl apply --server-side -f "$definitions"
kubectl wait --for=condition=Established --timeout=30s crd --all >/dev/null

rendered() { # namespace helm options...
    local namespace=$1
    shift
    "$helm" template test "$chart" --namespace "$namespace" "$@" >"$scratch/rendered.yaml"
    dry_run --namespace "$namespace" -f "$scratch/rendered.yaml"
}
for values in "$here"/values/*.yaml; do
    name=$(basename "$values" .yaml)
    namespace=helm
    grep -q '^mode: per-node' "$values" && namespace=helm-node
    check "chart, $name: lint" "$helm" lint --strict "$chart" --values "$values"
    # The pod of `helm test` needs its account to exist, as the chart makes it.
    kubectl create serviceaccount test-roadstead --namespace "$namespace" --dry-run=client -o yaml | kubectl apply -f - >/dev/null 2>&1
    check "chart, $name: dry run" rendered "$namespace" --values "$values"
    kubectl delete serviceaccount test-roadstead --namespace "$namespace" >/dev/null
    check "chart, $name: install" "$helm" install test "$chart" --namespace "$namespace" --values "$values"
    check "chart, $name: upgrade" "$helm" upgrade test "$chart" --namespace "$namespace" --values "$values" --set-string podAnnotations.a=b
    check "chart, $name: uninstall" "$helm" uninstall test --namespace "$namespace"
done
refused "chart: a misspelt value" "additional properties 'imag' not allowed" "$helm" template test "$chart" --set imag.tag=1
refused "chart: an unknown mode" "/mode" "$helm" template test "$chart" --set mode=cluster
refused "chart: metrics of nodes" "127.0.0.1 of each node only" \
    "$helm" template test "$chart" --set mode=per-node --set serviceMonitor.enabled=true
refused "chart: an ingress without a host" "name at least one host" "$helm" template test "$chart" --set ingress.enabled=true

echo "$passed passed, $failed failed"
[ "$failed" -eq 0 ]
