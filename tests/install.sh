#!/usr/bin/env bash
# Installs the Debian packages that the tests need and that are missing. It starts none of their daemons, now or at the
# next boot: the tests start their own, on their own ports.
set -euo pipefail

# program:package
needs=(
    make:make
    dockerd:docker.io
    docker:docker.io
    containerd:containerd
    ctr:containerd
    podman:podman
    skopeo:skopeo
    buildah:buildah
    docker-registry:docker-registry
    curl:curl
    nginx:nginx-light
    caddy:caddy
    haproxy:haproxy
    ip:iproute2
    strip:binutils
    prometheus:prometheus
    valgrind:valgrind
    kubectl:kubernetes-client
)
PATH="$PATH:/usr/sbin:/sbin"

packages=()
for need in "${needs[@]}"; do
    command -v "${need%%:*}" >/dev/null || packages+=("${need#*:}")
done
# The test image contains busybox without libraries, so a dynamically linked busybox would not run.
if ! command -v busybox >/dev/null || ldd "$(command -v busybox)" >/dev/null 2>&1; then
    packages+=(busybox-static)
fi
# With AppArmor in the kernel, Docker needs its tools to start containers.
if grep -qs Y /sys/module/apparmor/parameters/enabled && ! command -v apparmor_parser >/dev/null; then
    packages+=(apparmor)
fi
if [ ${#packages[@]} -eq 0 ]; then
    echo "Everything that the tests need is installed."
    exit 0
fi
mapfile -t packages < <(printf '%s\n' "${packages[@]}" | sort -u)
echo "Installing Debian packages for the tests: ${packages[*]}"
if ! command -v apt-get >/dev/null; then
    echo "apt-get not found: install these packages by other means and run this script again." >&2
    exit 1
fi

root=()
if [ "$(id -u)" -ne 0 ]; then
    root=(sudo)
fi
apt() {
    "${root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get -qq -o Dpkg::Use-Pty=0 "$@" >/dev/null
}

# Debian runs this file to decide whether a package may start its service; exit code 101 forbids it.
policy=/usr/sbin/policy-rc.d
if [ ! -e "$policy" ]; then
    printf '#!/bin/sh\nexit 101\n' | "${root[@]}" install -m 755 /dev/stdin "$policy"
    trap '"${root[@]}" rm -f "$policy"' EXIT
fi
apt update
apt install -y --no-install-recommends "${packages[@]}"
# From Debian 13 on, the Docker client is a separate package.
command -v docker >/dev/null || apt install -y --no-install-recommends docker-cli

if command -v systemctl >/dev/null; then
    for package in "${packages[@]}"; do
        case "$package" in
        docker.io) services=(docker.service docker.socket) ;;
        containerd | docker-registry | caddy) services=("$package.service") ;;
        nginx-light) services=(nginx.service) ;;
        podman) services=(podman.service podman.socket podman-restart.service podman-auto-update.timer) ;;
        *) services=() ;;
        esac
        for service in "${services[@]}"; do
            "${root[@]}" systemctl disable --quiet "$service" 2>/dev/null || true
        done
    done
    echo "The packages are installed, and their services are disabled."
fi
