#!/usr/bin/env bash
# PostgreSQL of Debian's packages on a folder of its own, on loopback, for tests and `make stack`. Ends only what it started.
#
#   postgres.sh start     create the data when there is none, start, make the database `heliograph`; returns when it accepts connections
#   postgres.sh stop      fast shutdown;   kill: SIGKILL;   status: exit 0 if it runs;   env: print its address as shell variables
#
# Whoever reaches the port is trusted: it listens on 127.0.0.1 only and is not for production. As root it runs as the user postgres.
#
# Environment (all optional):
POSTGRES_DIR=${POSTGRES_DIR:-$PWD/.postgres}       # data, log
POSTGRES_PORT=${POSTGRES_PORT:-5532}
POSTGRES_WAIT=${POSTGRES_WAIT:-60}                 # seconds to wait for a start or a stop
POSTGRES_BIN=${POSTGRES_BIN:-$(ls -d /usr/lib/postgresql/*/bin 2>/dev/null | sort -V | tail -n 1)}
set -euo pipefail

say() { echo "postgres: $*" >&2; }
die() { say "$*"; exit 1; }

POSTGRES_DIR=$(realpath -m "$POSTGRES_DIR")
data=$POSTGRES_DIR/data

as_server() {           # as the server's user, from a folder it may be in
    if [ "$(id -u)" = 0 ]; then (cd / && exec setpriv --reuid=postgres --regid=postgres --init-groups "$@"); else (cd / && exec "$@"); fi
}

pid() {                 # of the server that runs on this data, by its own statement and its command line
    local found; found=$(head -n 1 "$data/postmaster.pid" 2>/dev/null) || return 1
    { tr '\0' ' ' <"/proc/$found/cmdline"; } 2>/dev/null | grep -q -- "-D $data" && echo "$found"
}

ready() { [ "$(sed -n 8p "$data/postmaster.pid" 2>/dev/null | tr -d ' ')" = ready ]; }

move_out() {            # below a private folder (root's home) the server's user could not reach its data: the folder becomes a link
    mkdir -p -m 711 /var/lib/heliograph
    local place; place=$(mktemp -d /var/lib/heliograph/postgres-XXXXXX)
    rmdir "$POSTGRES_DIR"; ln -s "$place" "$POSTGRES_DIR"
    POSTGRES_DIR=$place data=$place/data
}

create() {
    mkdir -p "$POSTGRES_DIR"
    if [ "$(id -u)" = 0 ]; then
        as_server test -x "$POSTGRES_DIR" || move_out
        chown postgres: "$POSTGRES_DIR"
    fi
    as_server "$POSTGRES_BIN/initdb" -D "$data" -U postgres -A trust -E UTF8 --locale=C --no-instructions >/dev/null
}

start() {
    [ -x "$POSTGRES_BIN/postgres" ] || die "not installed (apt-get install postgresql)"
    [ -e "$data/PG_VERSION" ] || create
    if ! pid >/dev/null; then
        touch "$POSTGRES_DIR/log"; [ "$(id -u)" != 0 ] || chown postgres: "$POSTGRES_DIR/log"
        # the braces: nothing of this shell's own output may stay open in what goes on running
        {
            as_server setsid "$POSTGRES_BIN/postgres" -D "$data" -k "" -p "$POSTGRES_PORT" -c listen_addresses=127.0.0.1 \
                -c max_connections=200 -c shared_buffers=128MB -c log_parameter_max_length=0 -c log_parameter_max_length_on_error=0 \
                -c timezone=UTC
        } >>"$POSTGRES_DIR/log" 2>&1 </dev/null &
        local started=$!
        local end=$((SECONDS + POSTGRES_WAIT))
        until pid >/dev/null && ready; do
            kill -0 "$started" 2>/dev/null || pid >/dev/null || { tail -n 20 "$POSTGRES_DIR/log" >&2; die "ended at start"; }
            [ $SECONDS -lt $end ] || { tail -n 20 "$POSTGRES_DIR/log" >&2; die "not ready after $POSTGRES_WAIT s"; }
            sleep 0.05
        done
    fi
    "$POSTGRES_BIN/psql" -h 127.0.0.1 -p "$POSTGRES_PORT" -U postgres -qAt -c "select 1 from pg_database where datname = 'heliograph'" postgres | grep -q 1 \
        || "$POSTGRES_BIN/psql" -h 127.0.0.1 -p "$POSTGRES_PORT" -U postgres -q -c 'create database heliograph' postgres
}

stop() {                # stop SIGNAL
    local found end=$((SECONDS + POSTGRES_WAIT))
    found=$(pid) || return 0
    kill "-$1" "$found"
    while pid >/dev/null; do
        [ $SECONDS -lt $end ] || die "does not stop"
        sleep 0.05
    done
}

case ${1:-} in
    start) start ;;
    stop) stop INT ;;
    kill) stop KILL ;;
    status) pid >/dev/null && echo "runs as $(pid) on port $POSTGRES_PORT" ;;
    pid) pid ;;
    env) echo "POSTGRES_URL=postgresql://postgres@127.0.0.1:$POSTGRES_PORT/heliograph" ;;
    *) sed -n '2,8p' "$0" >&2; exit 2 ;;
esac
