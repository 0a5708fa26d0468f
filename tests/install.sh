#!/usr/bin/env bash
# Says what the tests need, and asks apt for what is missing. It starts none of the daemons that it
# installs, now or at the next boot: the tests start their own, on ports of their own.
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
    valgrind:valgrind
)
PATH="$PATH:/usr/sbin:/sbin"

packages=()
for need in "${needs[@]}"; do
    command -v "${need%%:*}" >/dev/null || packages+=("${need#*:}")
done
# The image that the tests make holds busybox and no library: the linked one would not run in it.
if ! command -v busybox >/dev/null || ldd "$(command -v busybox)" >/dev/null 2>&1; then
    packages+=(busybox-static)
fi
# With AppArmor in the kernel, Docker starts no container without its tools.
if grep -qs Y /sys/module/apparmor/parameters/enabled && ! command -v apparmor_parser >/dev/null; then
    packages+=(apparmor)
fi
if [ ${#packages[@]} -eq 0 ]; then
    echo "The tests need docker, containerd, podman, skopeo, buildah, docker-registry, curl, busybox, valgrind: all here."
    exit 0
fi
mapfile -t packages < <(printf '%s\n' "${packages[@]}" | sort -u)
echo "The tests need these Debian packages too: ${packages[*]}"
if ! command -v apt-get >/dev/null; then
    echo "There is no apt-get here. Please install them by other means and run this again." >&2
    exit 1
fi

root=()
if [ "$(id -u)" -ne 0 ]; then
    root=(sudo)
fi
apt() {
    "${root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get -qq -o Dpkg::Use-Pty=0 "$@" >/dev/null
}

# Debian asks this file whether a package may start its service; 101 is no.
policy=/usr/sbin/policy-rc.d
if [ ! -e "$policy" ]; then
    printf '#!/bin/sh\nexit 101\n' | "${root[@]}" install -m 755 /dev/stdin "$policy"
    trap '"${root[@]}" rm -f "$policy"' EXIT
fi
apt update
apt install -y --no-install-recommends "${packages[@]}"
# From Debian 13 on, the command line of Docker is a package of its own.
command -v docker >/dev/null || apt install -y --no-install-recommends docker-cli

if command -v systemctl >/dev/null; then
    for package in "${packages[@]}"; do
        case "$package" in
        docker.io) services=(docker.service docker.socket) ;;
        containerd | docker-registry) services=("$package.service") ;;
        podman) services=(podman.service podman.socket podman-restart.service podman-auto-update.timer) ;;
        *) services=() ;;
        esac
        for service in "${services[@]}"; do
            "${root[@]}" systemctl disable --quiet "$service" 2>/dev/null || true
        done
    done
    echo "They are installed, and none of their services is switched on."
fi
