#!/bin/sh
# Builds the files of a release from the committed sources into target/dist: archive, Debian package, image, SBOM, checksums.
# The program is built twice, in different folders, and the two must be the same. Takes two release builds.
# Needs Debian with Rust, and: cargo install --locked cargo-auditable cargo-cyclonedx cargo-deb
set -eu

here=$(cd "$(dirname "$0")/../.." && pwd)
dist=$here/target/dist
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

fail() {
    echo "dist.sh: $1" >&2
    exit 1
}

for tool in auditable cyclonedx deb; do
    command -v "cargo-$tool" >/dev/null || fail "there is no cargo-$tool; run: cargo install --locked cargo-$tool"
done
git="git -c safe.directory=$here -C $here"
commit=$($git rev-parse HEAD) || fail "the sources are no clone of the repository; a release is built from a commit"
[ -z "$($git status --porcelain --untracked-files=no)" ] || fail "there are changes that are not committed; commit or stash them"

version=$(sed -n 's/^version = "\(.*\)"$/\1/p' "$here/Cargo.toml" | head -1)
tag=$($git tag --points-at HEAD --list 'v*')
[ -z "$tag" ] || [ "$tag" = "v$version" ] || fail "the tag is $tag and the version in Cargo.toml is $version; make them agree"
SOURCE_DATE_EPOCH=$($git log -1 --format=%ct)
export SOURCE_DATE_EPOCH CARGO_INCREMENTAL=0 REVISION="$commit"
architecture=$(dpkg --print-architecture)

# Builds the committed sources in a new folder. Neither its path nor that of the crates gets into the program.
build() {
    mkdir -p "$1"
    $git archive "$commit" | tar --extract --directory "$1"
    (
        cd "$1"
        RUSTFLAGS="--remap-path-prefix=$1=/roadstead --remap-path-prefix=${CARGO_HOME:-$HOME/.cargo}=/cargo" \
            cargo auditable build --quiet --locked --release
    )
}

build "$work/one"
build "$work/another-folder"
cmp "$work/one/target/release/roadstead" "$work/another-folder/target/release/roadstead" ||
    fail "two builds of $commit differ"
rm -rf "$work/another-folder/target"

rm -rf "$dist"
mkdir -p "$dist"
cd "$work/one"
program=target/release/roadstead
strip "$program"
# Also writes the manual pages and completions.
deploy/debian/build.sh "$program" "$dist"

# Packs a folder with times of the commit and without the name of the user.
pack() {
    tar --create --directory "$1" --format=gnu --sort=name --mtime="@$SOURCE_DATE_EPOCH" --owner=0 --group=0 \
        --numeric-owner "$2"
}

name=roadstead-$version-linux-$architecture
mkdir -p "$work/archive/$name/completions"
cp target/deb/roadstead.* "$work/archive/$name/completions/"
cp -r "$program" target/deb/man README.md CHANGELOG.md LICENSE-MIT LICENSE-APACHE config deploy "$work/archive/$name/"
pack "$work/archive" "$name" | gzip --no-name --best >"$dist/$name.tar.gz"

deploy/docker/layout.sh "$program" "$work/image"
pack "$work/image" . >"$dist/$name.oci.tar"

cargo cyclonedx --quiet --format json --override-filename sbom
mv sbom.json "$dist/roadstead-$version-linux-$architecture.cdx.json"

(cd "$dist" && sha256sum -- * >"SHA256SUMS-$architecture")
echo "target/dist has roadstead $version for $architecture, built twice from $commit with the same result:"
ls -l "$dist"
