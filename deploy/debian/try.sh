#!/bin/bash
# Installs, uses, upgrades, removes and purges the Debian package in a container with systemd: try.sh OLD.deb NEW.deb
# Needs root, systemd-container and debootstrap. Takes a minute, and two more to make the container the first time. The
# container has no network.
set -euo pipefail

[ $# -eq 2 ] || { echo "usage: try.sh OLD.deb NEW.deb" >&2; exit 2; }
old=$(realpath "$1") new=$(realpath "$2")
cd "$(dirname "$0")/../.."
base=${XDG_CACHE_HOME:-$HOME/.cache}/roadstead/debian-12
work=$(mktemp -d /var/tmp/roadstead-deb.XXXXXX)
nspawn=
trap 'stop; rm -rf --one-file-system "$work"' EXIT

stop() {
    [ -z "$nspawn" ] || { kill -TERM "$nspawn" 2>/dev/null || true; wait "$nspawn" || true; }
    nspawn=
}

fail() {
    echo "try.sh: $1" >&2
    within journalctl --no-pager --lines 40 --unit roadstead >&2 || true
    exit 1
}

# Runs a command in the container.
within() {
    nsenter --target "$leader" --all -- "$@"
}

# Repeats a command in the container until it succeeds, for at most a minute.
until_within() {
    for _ in $(seq 120); do
        if within "$@" >/dev/null 2>&1; then return; fi
        sleep 0.5
    done
    fail "this did not come true within a minute: $*"
}

step() {
    echo "- $1"
}

if [ ! -e "$base/etc/debian_version" ]; then
    echo "Making a container with Debian 12 in $base"
    rm -rf "$base.new"
    debootstrap --variant=minbase --include=systemd,systemd-sysv,dbus,adduser,ca-certificates,curl,man-db bookworm "$base.new" >"$work/debootstrap.log" ||
        { tail "$work/debootstrap.log" >&2; exit 1; }
    mkdir -p "$(dirname "$base")"
    mv "$base.new" "$base"
fi
cp -a "$base" "$work/root"
# Documentation is part of the package.
rm -f "$work/root/etc/dpkg/dpkg.cfg.d/"*
cp "$old" "$work/root/old.deb"
cp "$new" "$work/root/new.deb"

systemd-nspawn --quiet --directory="$work/root" --private-network --register=no --keep-unit --boot --console=pipe \
    --machine="roadstead-$$" </dev/null >"$work/console.log" 2>&1 &
nspawn=$!
for _ in $(seq 60); do
    leader=$(pgrep --parent "$nspawn" || true)
    [ -n "$leader" ] && within systemctl is-active --quiet dbus 2>/dev/null && break
    sleep 0.5
done
[ -n "$leader" ] || { cat "$work/console.log" >&2; exit 1; }

blob=$(printf 'content of the test' | sha256sum | cut -d' ' -f1)
blobs=http://127.0.0.1:5000/v2/team/app/blobs

step "install: the service runs"
within dpkg --install /old.deb >"$work/dpkg.log" 2>&1 || { cat "$work/dpkg.log"; fail "the package cannot be installed"; }
until_within curl -sf http://127.0.0.1:5000/readyz
[ "$(within systemctl show --property=User --value roadstead)" = roadstead ] || fail "the service runs as another user"
within systemctl status --no-pager roadstead | grep -q 'Status: "listening on 127.0.0.1:5000"' || fail "systemd has no status"
[ "$(within stat -c '%U %a' /var/lib/roadstead)" = "roadstead 750" ] || fail "the data folder has another owner or mode"
within man --where roadstead-serve >/dev/null || fail "there is no manual page"
within test -s /usr/share/bash-completion/completions/roadstead || fail "there are no completions"
within curl -sf -X POST --data 'content of the test' "$blobs/uploads/?digest=sha256:$blob" || fail "a push failed"
within roadstead du --config /etc/roadstead/roadstead.toml | grep -q team/app || fail "the commands do not find the server"

step "security: $(within systemd-analyze security --no-pager roadstead | tail -1)"
within systemd-analyze security --threshold=20 roadstead >/dev/null || fail "the exposure level is 2.0 or more"

step "reload, credentials"
within systemctl reload roadstead || fail "it cannot be reloaded"
within sh -euc 'umask 077
    echo secret | roadstead hash-password --user ann >/etc/roadstead/htpasswd
    mkdir -p /etc/systemd/system/roadstead.service.d
    printf "[Service]\nLoadCredential=htpasswd:/etc/roadstead/htpasswd\nWatchdogSec=3\n" >/etc/systemd/system/roadstead.service.d/test.conf
    printf "\n[local]\nnamespaces = [\"team/**\"]\n[auth]\nhtpasswd = \"/run/credentials/roadstead.service/htpasswd\"\n[[auth.rule]]\nwho = \"ann\"\non = \"**\"\nmay = [\"pull\", \"push\"]\n" >>/etc/roadstead/roadstead.toml
    systemctl daemon-reload
    systemctl restart roadstead' || fail "the service does not start with a credential"
until_within curl -sf http://127.0.0.1:5000/readyz
[ "$(within curl -s -o /dev/null -w '%{http_code}' "$blobs/sha256:$blob")" = 401 ] || fail "the file of users is not in force"
within curl -sf -u ann:secret "$blobs/sha256:$blob" >/dev/null || fail "a login with the credential failed"

step "watchdog: a server that hangs is restarted"
pid=$(within systemctl show --property=MainPID --value roadstead)
within sh -c "kill -STOP $pid"
until_within sh -c "test \"\$(systemctl show --property=MainPID --value roadstead)\" != $pid && curl -sf http://127.0.0.1:5000/readyz"

step "socket: systemd opens the port"
within sh -c 'systemctl stop roadstead && systemctl start roadstead.socket' || fail "the socket cannot be started"
until_within curl -sf http://127.0.0.1:5000/readyz
within journalctl --no-pager --unit roadstead | grep -q 'sockets are those of the service manager' || fail "the socket is not used"
within systemctl stop roadstead.socket
within systemctl restart roadstead

step "upgrade: changed settings and content stay"
within dpkg --force-confdef --force-confold --install /new.deb >"$work/dpkg.log" 2>&1 || { cat "$work/dpkg.log"; fail "the upgrade failed"; }
until_within curl -sf -u ann:secret "$blobs/sha256:$blob"

step "remove and purge: the content stays"
within dpkg --remove roadstead >"$work/dpkg.log" 2>&1 || { cat "$work/dpkg.log"; fail "it cannot be removed"; }
[ "$(within systemctl show --property=MainPID --value roadstead)" = 0 ] || fail "the server still runs"
within test -e /etc/roadstead/roadstead.toml || fail "the settings are gone"
within rm /etc/roadstead/htpasswd
within dpkg --purge roadstead >"$work/dpkg.log" 2>&1 || { cat "$work/dpkg.log"; fail "it cannot be purged"; }
within test ! -e /etc/roadstead/roadstead.toml || fail "the settings are left"
within test -e "/var/lib/roadstead/blobs/sha256/${blob:0:2}/$blob" || fail "the pushed blob is gone"
grep -q '/var/lib/roadstead is kept' "$work/dpkg.log" || fail "the purge does not say what it keeps"

echo "The package works."
