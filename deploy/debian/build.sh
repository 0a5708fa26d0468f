#!/bin/sh
# Builds the Debian package of a program that was built before: build.sh BINARY [FOLDER]. FOLDER is target/debian otherwise.
# Needs: cargo install --locked cargo-deb
set -eu

[ $# -ge 1 ] || { echo "usage: build.sh BINARY [FOLDER]" >&2; exit 2; }
binary=$(realpath "$1")
cd "$(dirname "$0")/../.."
output=${2:-target/debian}
revision=${DEB_REVISION:-1}
command -v cargo-deb >/dev/null || { echo "build.sh: there is no cargo-deb; run: cargo install --locked cargo-deb" >&2; exit 1; }

rm -rf target/deb
mkdir -p target/deb "$output"
"$binary" man target/deb/man
for shell in bash zsh fish; do "$binary" completions "$shell" >"target/deb/roadstead.$shell"; done

version=$("$binary" --version | cut -d' ' -f2)
: "${SOURCE_DATE_EPOCH:=$(git -c safe.directory="$PWD" log -1 --format=%ct 2>/dev/null || echo 0)}"
export SOURCE_DATE_EPOCH
printf 'roadstead (%s-%s) stable; urgency=medium\n\n  * Version %s: see CHANGELOG.md in the repository.\n\n -- %s  %s\n' \
    "$version" "$revision" "$version" "The Roadstead authors <roadstead@users.noreply.github.com>" \
    "$(date -u -R -d "@$SOURCE_DATE_EPOCH")" >target/deb/changelog

cat - LICENSE-MIT >target/deb/license <<'END'
Either of the two licences, at your option: the Apache License 2.0, which is in /usr/share/common-licenses/Apache-2.0 on
Debian systems, or the MIT License:

END

cargo deb --quiet --no-build --deb-revision "$revision" --output "$output/"
