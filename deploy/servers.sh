#!/usr/bin/env bash
# Installs what tests use beside Python packages: Debian's PostgreSQL, curl, jq and Chromium, Kafka from Maven jars, npm packages of tests/node and handbook, the JSON Schema suite.
# On a machine where one cannot be installed it says so and goes on (its tests skip with the reason); with CI=true it fails.
set -uo pipefail
cd "$(dirname "$0")/.."

missing() {
    echo "servers: $1" >&2
    [ "${CI:-}" != true ] || exit 1
}

apt_install() {     # apt_install COMMAND PACKAGE…: only what is not there yet, and only as root
    local probe=$1; shift
    compgen -G "$probe" >/dev/null || command -v "$probe" >/dev/null && return
    if [ "$(id -u)" != 0 ] || ! command -v apt-get >/dev/null; then
        missing "$* not installed; as root: apt-get install $*"
        return
    fi
    echo "servers: installing $*" >&2
    apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "$@" >/dev/null \
        || missing "installing $* failed"
}

apt_install '/usr/lib/postgresql/*/bin/postgres' postgresql
apt_install java openjdk-17-jre-headless
apt_install mvn maven
apt_install npm nodejs npm
apt_install curl curl    # the guides use these two
apt_install jq jq
apt_install promtool prometheus    # for promtool: alert rules are tested
apt_install chromium chromium      # a page follows an environment
command -v java >/dev/null && command -v mvn >/dev/null && { bash deploy/kafka/kafka.sh install || missing "Kafka's jars could not be fetched"; }
if command -v npm >/dev/null; then
    for folder in tests/node handbook; do
        if [ ! -e $folder/node_modules/.package-lock.json ] || [ $folder/package-lock.json -nt $folder/node_modules/.package-lock.json ]; then
            npm ci --prefix $folder --silent --no-fund --no-audit || missing "npm ci in $folder failed"
        fi
    done
fi
bash tests/registry/json_schema_suite.sh || missing "the JSON Schema suite could not be fetched"
exit 0
