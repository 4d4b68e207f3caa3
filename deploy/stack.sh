#!/usr/bin/env bash
# Every service as its own process, on a real PostgreSQL and a real Kafka, on loopback.
#
#   stack.sh up            start all, say where, run until Ctrl-C, then stop all
#   stack.sh run CMD…      the same, but run CMD against it (HELIOGRAPH_URL and HELIOGRAPH_TOKEN_FILE are set) and stop when it ends
#
# Data, logs and pids live in $STACK_DIR (default .stack); a second start finds its data. Ports: see below.
# WITHOUT_KAFKA=1: the log stays in PostgreSQL. SYNC_ARGS: more arguments of `heliograph serve sync`.
set -euo pipefail
cd "$(dirname "$0")/.."
mode=${1:-up}; shift || true

dir=$(realpath -m "${STACK_DIR:-.stack}")
bin=$(realpath -m "${VENV:-.venv}/bin")
export KAFKA_DIR=$dir/kafka KAFKA_PORT=${KAFKA_PORT:-9192}
export POSTGRES_DIR=$dir/postgres POSTGRES_PORT=${POSTGRES_PORT:-5532}
export HELIOGRAPH_DATA_DIR=$dir/data HELIOGRAPH_LISTEN_HOST=127.0.0.1
export HELIOGRAPH_REGISTRY_PORT=${HELIOGRAPH_REGISTRY_PORT:-7170} HELIOGRAPH_SYNC_PORT=${HELIOGRAPH_SYNC_PORT:-7171}
export HELIOGRAPH_SYNC_HTTP_PORT=${HELIOGRAPH_SYNC_HTTP_PORT:-7172} HELIOGRAPH_LEDGER_PORT=${HELIOGRAPH_LEDGER_PORT:-7173}
export HELIOGRAPH_RELAY_PORT=${HELIOGRAPH_RELAY_PORT:-7174}
export HELIOGRAPH_REGISTRY_URL=http://127.0.0.1:$HELIOGRAPH_REGISTRY_PORT HELIOGRAPH_LEDGER_URL=http://127.0.0.1:$HELIOGRAPH_LEDGER_PORT
export HELIOGRAPH_PUBLIC_API_URL=$HELIOGRAPH_REGISTRY_URL HELIOGRAPH_PUBLIC_LEDGER_URL=$HELIOGRAPH_LEDGER_URL
export HELIOGRAPH_PUBLIC_STREAM_URL=ws://127.0.0.1:$HELIOGRAPH_SYNC_PORT/v1/stream
export HELIOGRAPH_PUBLIC_BUNDLES_URL=http://127.0.0.1:$HELIOGRAPH_SYNC_HTTP_PORT
export HELIOGRAPH_SERVICE_TOKEN_FILE=$HELIOGRAPH_DATA_DIR/tokens/service.token
export HELIOGRAPH_URL=$HELIOGRAPH_REGISTRY_URL HELIOGRAPH_TOKEN_FILE=$HELIOGRAPH_DATA_DIR/tokens/admin.token

mkdir -p "$dir/logs"
names=() pids=()

database() { echo "postgresql://heliograph_$1@127.0.0.1:$POSTGRES_PORT/heliograph"; }

say() { echo "stack: $*" >&2; }

stop_all() {            # readers first, then the relay, the registry, and the servers last
    trap - EXIT INT TERM
    local i
    for ((i = ${#pids[@]} - 1; i >= 0; i--)); do
        kill -TERM "${pids[$i]}" 2>/dev/null || continue
        wait "${pids[$i]}" 2>/dev/null || true
    done
    [ -n "${WITHOUT_KAFKA:-}" ] || bash deploy/kafka/kafka.sh stop >/dev/null 2>&1 || true
    bash deploy/postgres/postgres.sh stop >/dev/null 2>&1 || true
    say "stopped"
}

wait_ready() {          # wait_ready NAME PID PORT
    local tries
    for ((tries = 0; tries < 600; tries++)); do
        "$bin/python" - "$3" <<'PY' && return
import sys, urllib.request
try:
    urllib.request.urlopen(f"http://127.0.0.1:{sys.argv[1]}/readyz", timeout=2)
except OSError:
    sys.exit(1)
PY
        kill -0 "$2" 2>/dev/null || { say "$1 ended at start; the end of its log:"; tail -n 20 "$dir/logs/$1.log" >&2; exit 1; }
        sleep 0.1
    done
    say "$1 is not ready after a minute; see $dir/logs/$1.log"
    exit 1
}

serve() {               # serve NAME PORT [ARGUMENT…]
    HELIOGRAPH_DATABASE_URL=$(database "$1") "$bin/heliograph" serve "$1" "${@:3}" >>"$dir/logs/$1.log" 2>&1 &
    names+=("$1") pids+=($!)
    wait_ready "$1" $! "$2"
}

trap stop_all EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

say "starting the servers"
bash deploy/postgres/postgres.sh start >"$dir/logs/postgres-start.log" 2>&1 || { cat "$dir/logs/postgres-start.log" >&2; exit 1; }
if [ -z "${WITHOUT_KAFKA:-}" ]; then
    bash deploy/kafka/kafka.sh start >"$dir/logs/kafka-start.log" 2>&1 || { cat "$dir/logs/kafka-start.log" >&2; exit 1; }
    export HELIOGRAPH_KAFKA_BOOTSTRAP=127.0.0.1:$KAFKA_PORT
fi
HELIOGRAPH_DATABASE_URL=postgresql://postgres@127.0.0.1:$POSTGRES_PORT/heliograph "$bin/heliograph" migrate >"$dir/logs/migrate.log" 2>&1 \
    || { cat "$dir/logs/migrate.log" >&2; exit 1; }
say "starting the services"
serve registry "$HELIOGRAPH_REGISTRY_PORT"
[ -n "${WITHOUT_KAFKA:-}" ] || serve relay "$HELIOGRAPH_RELAY_PORT"
serve ledger "$HELIOGRAPH_LEDGER_PORT"
# shellcheck disable=SC2086  # several arguments
serve sync "$HELIOGRAPH_SYNC_HTTP_PORT" ${SYNC_ARGS:-}

if [ "$mode" = run ]; then
    "$@" &
    child=$!
    trap 'kill -INT $child 2>/dev/null; wait $child; exit 130' INT TERM
    wait "$child"
else
    say "api $HELIOGRAPH_URL, logs in $dir/logs, admin token in $HELIOGRAPH_TOKEN_FILE"
    say "use it:  export HELIOGRAPH_URL=$HELIOGRAPH_URL HELIOGRAPH_TOKEN_FILE=$HELIOGRAPH_TOKEN_FILE"
    for i in "${!pids[@]}"; do echo "${names[$i]} ${pids[$i]}"; done >"$dir/pids"
    wait -n "${pids[@]}" || true
    say "a service ended; stopping the rest"
    exit 1
fi
