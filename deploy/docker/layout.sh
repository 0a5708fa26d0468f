#!/bin/sh
# Makes the container image as an OCI layout, without Docker and without network: layout.sh BINARY FOLDER.
# FOLDER is replaced. To load it: skopeo copy oci:FOLDER:VERSION docker-daemon:roadstead:VERSION
# The same program, libraries and certificates give the same digest: times are those of the commit (SOURCE_DATE_EPOCH).
set -eu

[ $# -eq 2 ] || { echo "usage: layout.sh BINARY FOLDER" >&2; exit 2; }
binary=$1 layout=$2
here=$(cd "$(dirname "$0")/../.." && pwd)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

# git refuses a folder of another user, and an archive of the sources has no history.
git="git -c safe.directory=$here -C $here"
: "${SOURCE_DATE_EPOCH:=$($git log -1 --format=%ct 2>/dev/null || echo 0)}"
revision=${REVISION:-$($git rev-parse HEAD 2>/dev/null || echo unknown)}
version=$("$binary" --version | cut -d' ' -f2)
created=$(date -u -d "@$SOURCE_DATE_EPOCH" +%Y-%m-%dT%H:%M:%SZ)
case $(uname -m) in
x86_64) architecture=amd64 ;;
aarch64) architecture=arm64 ;;
*) architecture=$(uname -m) ;;
esac

rm -rf "$layout"
mkdir -p "$layout/blobs/sha256"

# Stores a file as a blob, and prints its digest without the algorithm.
store() {
    digest=$(sha256sum "$1" | cut -d' ' -f1)
    mv "$1" "$layout/blobs/sha256/$digest"
    echo "$digest"
}

size_of() {
    stat -c %s "$layout/blobs/sha256/$1"
}

# Packs the entries of the tree that tar's arguments name, with the owner and group of the first two arguments.
pack() {
    owner=$1 group=$2 archive=$3
    shift 3
    tar --create --file "$archive" --directory "$work/root" --format=gnu --sort=name --mtime="@$SOURCE_DATE_EPOCH" \
        --owner="$owner" --group="$group" --numeric-owner --no-recursion "$@"
}

"$here/deploy/docker/rootfs.sh" "$binary" "$work/root"

# Two layers: the program changes with each version, and what it runs on seldom does.
(cd "$work/root" && find . -mindepth 1 ! -path ./var/lib/registry ! -path ./usr/bin/roadstead | LC_ALL=C sort) >"$work/system"
pack 0 0 "$work/system.tar" --files-from "$work/system"
pack 0 65532 "$work/data.tar" ./var/lib/registry
tar --concatenate --file "$work/system.tar" "$work/data.tar"
pack 0 0 "$work/program.tar" ./usr/bin/roadstead

for layer in system program; do
    eval "${layer}_diff=$(sha256sum "$work/$layer.tar" | cut -d' ' -f1)"
    gzip --no-name --best "$work/$layer.tar"
    eval "$layer=$(store "$work/$layer.tar.gz")"
done

labels="\"org.opencontainers.image.title\":\"Roadstead\",\
\"org.opencontainers.image.description\":\"A container registry for pushes, and a pull-through cache of other registries\",\
\"org.opencontainers.image.source\":\"https://github.com/roadstead/roadstead\",\
\"org.opencontainers.image.licenses\":\"MIT OR Apache-2.0\",\
\"org.opencontainers.image.version\":\"$version\",\
\"org.opencontainers.image.revision\":\"$revision\""

# The health check is Docker's own addition to the format; others ignore it. Times are in nanoseconds.
cat >"$work/config.json" <<END
{"created":"$created","architecture":"$architecture","os":"linux","config":{
"Env":["PATH=/usr/bin","ROADSTEAD_IMAGE=1"],"Entrypoint":["roadstead"],"Cmd":["serve"],
"ExposedPorts":{"5000/tcp":{}},"Volumes":{"/var/lib/registry":{}},
"Healthcheck":{"Test":["CMD","roadstead","health"],"Interval":10000000000,"Timeout":5000000000,"StartPeriod":30000000000,"Retries":3},
"Labels":{$labels}},
"rootfs":{"type":"layers","diff_ids":["sha256:$system_diff","sha256:$program_diff"]},
"history":[{"created":"$created","created_by":"libraries, certificates, data folder"},{"created":"$created","created_by":"roadstead $version"}]}
END
config=$(store "$work/config.json")

layer_type=application/vnd.oci.image.layer.v1.tar+gzip
cat >"$work/manifest.json" <<END
{"schemaVersion":2,"mediaType":"application/vnd.oci.image.manifest.v1+json",
"config":{"mediaType":"application/vnd.oci.image.config.v1+json","digest":"sha256:$config","size":$(size_of "$config")},
"layers":[{"mediaType":"$layer_type","digest":"sha256:$system","size":$(size_of "$system")},
{"mediaType":"$layer_type","digest":"sha256:$program","size":$(size_of "$program")}]}
END
manifest=$(store "$work/manifest.json")

echo '{"imageLayoutVersion":"1.0.0"}' >"$layout/oci-layout"
cat >"$layout/index.json" <<END
{"schemaVersion":2,"mediaType":"application/vnd.oci.image.index.v1+json","manifests":[
{"mediaType":"application/vnd.oci.image.manifest.v1+json","digest":"sha256:$manifest","size":$(size_of "$manifest"),
"platform":{"architecture":"$architecture","os":"linux"},"annotations":{"org.opencontainers.image.ref.name":"$version"}}]}
END

bytes=$(($(size_of "$system") + $(size_of "$program")))
echo "$layout: roadstead $version, $architecture, $((bytes / 1000000)) MB compressed, sha256:$manifest"
# What somebody waits for at the first start.
max=30000000
[ "$bytes" -le "${MAX_IMAGE_BYTES:-$max}" ] || { echo "layout.sh: the image is larger than $max bytes" >&2; exit 1; }
