#!/bin/sh
# Makes the file tree of the container image: rootfs.sh BINARY FOLDER. FOLDER must not exist.
# The tree has the program with its libraries, certificates and a data folder; it has no shell and no package manager.
# Runs on Debian with glibc, for the architecture of BINARY. Needs no root. The Dockerfile and layout.sh use it.
set -eu

[ $# -eq 2 ] || { echo "usage: rootfs.sh BINARY FOLDER" >&2; exit 2; }
binary=$1 root=$2
here=$(cd "$(dirname "$0")/../.." && pwd)
certificates=${CA_CERTIFICATES:-/etc/ssl/certs/ca-certificates.crt}

fail() {
    echo "rootfs.sh: $1" >&2
    exit 1
}

[ -x "$binary" ] || fail "$binary is no program; build it with: cargo build --release"
[ -s "$certificates" ] || fail "there are no certificates at $certificates; install ca-certificates"
[ ! -e "$root" ] || fail "$root exists; remove it first"

mkdir -p "$root/usr/bin" "$root/etc/ssl/certs" "$root/etc/roadstead" "$root/usr/share/doc/roadstead" \
    "$root/var/lib/registry" "$root/tmp"
install -m 0755 "$binary" "$root/usr/bin/roadstead"
install -m 0644 "$certificates" "$root/etc/ssl/certs/ca-certificates.crt"
install -m 0644 "$here/LICENSE-MIT" "$here/LICENSE-APACHE" "$root/usr/share/doc/roadstead/"

# Debug information is of no use without a debugger, and would be most of the image.
command -v strip >/dev/null || fail "there is no strip; install binutils"
strip "$root/usr/bin/roadstead"

# Each library keeps its path, so that the loader finds it. glibc itself resolves names: no module is needed.
libraries=$(ldd "$binary") || fail "ldd cannot read $binary; is it built for this machine?"
echo "$libraries" | grep -o '/[^ ]*' | while read -r library; do
    install -D -m 0755 "$library" "$root$library"
    package=$(dpkg-query --search "*$library" 2>/dev/null | head -1 | cut -d: -f1)
    licence=/usr/share/doc/$package/copyright
    [ ! -f "$licence" ] || install -D -m 0644 "$licence" "$root$licence"
done

echo 'hosts: files dns' >"$root/etc/nsswitch.conf"
echo 'root:x:0:0:root:/:/usr/bin/roadstead
roadstead:x:65532:65532:roadstead:/:/usr/bin/roadstead' >"$root/etc/passwd"
echo 'root:x:0:
roadstead:x:65532:' >"$root/etc/group"
find "$root" -type d -exec chmod 0755 {} +
chmod 0644 "$root/etc/nsswitch.conf" "$root/etc/passwd" "$root/etc/group"
# Whoever packs the tree gives the data folder to root:65532, so that both users of the image can write it.
chmod 0770 "$root/var/lib/registry"
chmod 1777 "$root/tmp"
