#!/usr/bin/env bash
# Builds the programs of programs.txt into a cache outside the repository. A program whose version is there is not built
# again. If one cannot be built, the others are, and its tests say why.
#
# Usage: build.sh [NAME...]    all programs, or those of these names
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
tools=${CLIENT_TOOLS:-${XDG_CACHE_HOME:-$HOME/.cache}/roadstead/tools}
scratch=$(mktemp -d)
trap 'chmod -R u+w "$scratch"; rm -rf "$scratch"' EXIT
export CGO_ENABLED=0

# Builds the commands of a module at exactly this version.
from_module() { # module version commands options target
    local command
    for command in ${3//,/ }; do
        GOBIN=$5/bin go install -trimpath -ldflags='-s -w' ${4:+"$4"} "$1/$command@$2"
    done
}

# Builds them in a copy of the module, because `go install` refuses replacements in its go.mod, or because that file has
# another name.
from_copy() { # module version commands - target
    local folder command
    folder=$(go mod download -json "$1@$2" | sed -n 's/^\t"Dir": "\(.*\)",$/\1/p')
    rm -rf "$scratch/copy"
    cp -r "$folder" "$scratch/copy"
    chmod -R u+w "$scratch/copy"
    cd "$scratch/copy"
    if [ -e vendor.mod ]; then
        mv vendor.mod go.mod
        mv vendor.sum go.sum
        # It is not complete in what the module proxy serves.
        rm -rf vendor
    fi
    for command in ${3//,/ }; do
        GOBIN=$5/bin go install -trimpath -buildvcs=false -ldflags="-s -w \
            -X $1/cli/version.Version=${2%+*} -X $1/version.Version=$2" "./$command"
    done
}

# An apt of its own, which knows only this suite of Debian, at the mirror that this machine uses.
apt_of() { # suite
    local mirror keys=/usr/share/keyrings/debian-archive-keyring.gpg
    command -v apt-get >/dev/null || { echo "apt-get not found: this program comes from Debian" >&2; return 1; }
    mirror=$(apt-get indextargets --format '$(ORIGIN) $(LABEL) $(SITE) $(REPO_URI)' 'Created-By: Packages' |
        sed -n 's/^Debian Debian [^ ]* //p' | head -1)
    [ -n "$mirror" ] || { echo "no mirror of Debian is known: run 'apt-get update'" >&2; return 1; }
    mkdir -p "$scratch"/apt/{lists,cache,sources.list.d}
    : >"$scratch/apt/status"
    echo "deb [signed-by=$keys] $mirror $1 main" >"$scratch/apt/sources.list.d/debian.list"
    cat >"$scratch/apt/conf" <<CONF
Dir::Etc::SourceList "/dev/null";
Dir::Etc::SourceParts "$scratch/apt/sources.list.d";
Dir::Etc::PreferencesParts "/dev/null";
Dir::State::Lists "$scratch/apt/lists";
Dir::State::Status "$scratch/apt/status";
Dir::Cache "$scratch/apt/cache";
APT::Install-Recommends "false";
CONF
    [ -e "$scratch/apt/cache/pkgcache.bin" ] || APT_CONFIG=$scratch/apt/conf apt-get -qq update
}

# Unpacks packages of another Debian with their libraries into a folder. Their commands run with this folder as their root,
# in which only `/tmp` and the file systems of the kernel are those of the machine.
from_debian() { # suite version packages - target
    local packages=${3//,/ } root=$5/root command
    apt_of "$1"
    rm -rf "$scratch"/apt/cache/archives
    APT_CONFIG=$scratch/apt/conf apt-get -qq -y --download-only install \
        "${packages%% *}=$2*" $(echo "$packages" | cut -s -d' ' -f2-) >/dev/null
    mkdir -p "$root" "$5/bin"
    for package in "$scratch"/apt/cache/archives/*.deb; do
        dpkg-deb --extract "$package" "$root"
    done
    rm -rf "$root"/usr/share/{doc,locale,man} "$root"/{run,bin,sbin,lib,lib64}
    mkdir -p "$root"/{proc,sys,dev,tmp,run,var/tmp}
    ln -sf usr/{bin,sbin,lib,lib64} "$root"
    echo 'root:x:0:0:root:/root:/bin/sh' >"$root/etc/passwd"
    command=${packages%% *}
    cat >"$5/bin/$command" <<'WRAPPER'
#!/bin/sh
# The root must be a mount of its own, because podman changes it.
root=$(dirname "$(dirname "$(realpath "$0")")")/root
exec unshare --mount -- sh -ec '
    mount --bind "$0" "$0"
    cd "$0"
    for folder in proc sys dev tmp; do mount --rbind "/$folder" "$folder"; done
    mount -t tmpfs none run
    mkdir run/old
    pivot_root . run/old
    umount -l /run/old
    cd /
    exec "$@"' "$root" "$(basename "$0")" "$@"
WRAPPER
    chmod +x "$5/bin/$command"
}

build() { # version source packages options target
    case $2 in
    debian:*) from_debian "${2#debian:}" "$1" "$3" "$4" "$5" ;;
    github.com/docker/cli | github.com/moby/buildkit) from_copy "$2" "$1" "$3" "$4" "$5" ;;
    *) from_module "$2" "$1" "$3" "$4" "$5" ;;
    esac
}

mkdir -p "$tools"
missing=()
while read -r name version source packages options; do
    target=$tools/$name-$version
    case $name in '' | '#'*) continue ;; esac
    if [ $# -gt 0 ] && [[ " $* " != *" $name "* ]] || [ -d "$target" ]; then
        continue
    fi
    echo "building $name $version"
    rm -rf "$target.new"
    started=$SECONDS
    # In a shell of its own, because `set -e` has no effect inside a condition.
    set +e
    (set -e; build "$version" "$source" "$packages" "$options" "$target.new") >"$target.log" 2>&1 </dev/null
    status=$?
    set -e
    if [ $status -eq 0 ]; then
        mv "$target.new" "$target"
        echo "built $name in $((SECONDS - started)) s"
    else
        missing+=("$name: $(tail -1 "$target.log") (see $target.log)")
    fi
done <"$here/programs.txt"
if [ ${#missing[@]} -gt 0 ]; then
    printf 'not built: %s\n' "${missing[@]}"
fi
