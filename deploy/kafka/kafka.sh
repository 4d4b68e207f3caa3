#!/usr/bin/env bash
# Apache Kafka (KRaft, combined mode) from Maven artifacts, on loopback, for tests. One node or three. No root, no docker, no keytool.
#
#   kafka.sh install            fetch the jars into the cache (once; the second time it only looks);   installed: exit 0 if they are there
#   kafka.sh format             wipe $KAFKA_DIR and format it anew (start does this by itself when there is no data)
#   kafka.sh start [node...]    start all nodes, or the named ones; returns when each serves requests, else prints the log's tail
#   kafka.sh stop [node...]     SIGTERM by pid and wait (clean: leadership moves away first);   kill [node...]: SIGKILL
#   kafka.sh status             one line a node; exit 0 only if all of them run
#   kafka.sh env                print bootstrap addresses as shell variables
#
# Environment (all optional):
KAFKA_VERSION=${KAFKA_VERSION:-4.4.0}
KAFKA_CACHE=${KAFKA_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/heliograph/kafka}     # jars, kept between runs; safe to share
KAFKA_DIR=${KAFKA_DIR:-$PWD/.kafka}                                              # data, logs, pids of this cluster
KAFKA_PORT=${KAFKA_PORT:-9092}            # node n: clients PORT+10(n-1), controller one above, TLS two above
KAFKA_NODES=${KAFKA_NODES:-1}             # 1, or 3: replication factor 3, min.insync.replicas 2
KAFKA_CONTROLLER_PORT=${KAFKA_CONTROLLER_PORT:-}   # of a single node; default: one above its port
KAFKA_TLS=${KAFKA_TLS:-}                  # folder with ca.pem and broker.pem (PKCS#8 key, then chain): adds a listener that wants client certificates
KAFKA_HEAP=${KAFKA_HEAP:-512m}
KAFKA_WAIT=${KAFKA_WAIT:-120}             # seconds to wait for a start or a stop
KAFKA_EXTRA=${KAFKA_EXTRA:-}              # more properties, newline separated; the last one wins
KAFKA_CDS=${KAFKA_CDS:-1}                 # class archive in the cache: faster starts (made by the first clean stop)
KAFKA_JAVA_OPTS=${KAFKA_JAVA_OPTS:-}      # more JVM options
LOG4J_VERSION=${LOG4J_VERSION:-2.25.5}    # the one that kafka-server of this version brings
JAVA=${JAVA_HOME:+$JAVA_HOME/bin/}java
set -euo pipefail

KAFKA_CACHE=$(realpath -m "$KAFKA_CACHE") KAFKA_DIR=$(realpath -m "$KAFKA_DIR")
if [ "$KAFKA_TLS" ]; then KAFKA_TLS=$(realpath "$KAFKA_TLS"); fi
jars=$KAFKA_CACHE/$KAFKA_VERSION
say() { echo "kafka: $*" >&2; }
die() { say "$*"; exit 1; }
port() { echo $((KAFKA_PORT + 10 * ($1 - 1))); }
controller() { echo "${KAFKA_CONTROLLER_PORT:-$(($(port "$1") + 1))}"; }
nodes() { seq 1 "$KAFKA_NODES"; }
pidfile() { echo "$KAFKA_DIR/$1/pid"; }

running() {            # prints the pid if node $1 runs; a recycled pid of another program does not count
    local pid; pid=$(cat "$(pidfile "$1")" 2>/dev/null) || return 1
    { tr '\0' ' ' <"/proc/$pid/cmdline"; } 2>/dev/null | grep -q "kafka.Kafka $KAFKA_DIR/$1/server.properties" && echo "$pid"
}

install() {
    [ -e "$jars/complete" ] && return
    command -v mvn >/dev/null || die "mvn is missing (apt-get install maven)"
    mkdir -p "$KAFKA_CACHE"
    exec 9>"$KAFKA_CACHE/lock"; flock 9                       # two installs at once: the second waits and finds it done
    [ -e "$jars/complete" ] && return
    local work; work=$(mktemp -d "$KAFKA_CACHE/install.XXXXXX")
    cat >"$work/pom.xml" <<POM
<project>
  <modelVersion>4.0.0</modelVersion><groupId>local</groupId><artifactId>kafka-jars</artifactId><version>1</version><packaging>pom</packaging>
  <dependencies>
    <dependency><groupId>org.apache.kafka</groupId><artifactId>kafka_2.13</artifactId><version>$KAFKA_VERSION</version></dependency>
    <dependency><groupId>org.apache.logging.log4j</groupId><artifactId>log4j-slf4j-impl</artifactId><version>$LOG4J_VERSION</version></dependency>
  </dependencies>
</project>
POM
    local try ok=; for try in 1 2 3; do
        mvn -B -q -f "$work/pom.xml" dependency:copy-dependencies -DincludeScope=runtime -DoutputDirectory="$work/jars" >"$work/log" 2>&1 && { ok=1; break; }
        say "fetching failed (attempt $try)"; sleep $((try * 2))
    done
    [ "$ok" ] || { tail -20 "$work/log" >&2; rm -rf "$work"; die "could not fetch the jars"; }
    ls "$work"/jars/kafka_2.13-*.jar >/dev/null
    rm -rf "$jars"; mkdir -p "$jars"; mv "$work/jars" "$jars/jars"; rm -rf "$work"; touch "$jars/complete"
    say "installed $KAFKA_VERSION, $(ls "$jars/jars" | wc -l) jars, $(du -sm "$jars" | cut -f1) MB"
}

archive() { echo "$jars/classes-$(stat -Lc %Y "$(command -v "$JAVA")").jsa"; }               # one for each JVM: another JVM would ignore it
classpath() { local cp; cp=$(printf '%s:' "$jars"/jars/*.jar); echo "${cp%:}"; }      # explicit and sorted: the class archive depends on it

configure() {          # writes server.properties of node $1
    local n=$1 d=$KAFKA_DIR/$1 p voters= i; p=$(port "$n")
    for i in $(nodes); do voters+="$i@127.0.0.1:$(controller "$i"),"; done
    local copies=$KAFKA_NODES isr=1; [ "$KAFKA_NODES" -ge 3 ] && { copies=3; isr=2; }
    local tls= tls_adv=
    [ "$KAFKA_TLS" ] && { tls=",SSL://127.0.0.1:$((p + 2))"; tls_adv=$tls; }
    mkdir -p "$d"
    cat >"$d/server.properties" <<PROPS
process.roles=broker,controller
node.id=$n
controller.quorum.voters=${voters%,}
controller.listener.names=CONTROLLER
inter.broker.listener.name=PLAINTEXT
listeners=PLAINTEXT://127.0.0.1:$p,CONTROLLER://127.0.0.1:$(controller "$n")$tls
advertised.listeners=PLAINTEXT://127.0.0.1:$p$tls_adv
listener.security.protocol.map=PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT,SSL:SSL
log.dirs=$d/data
# topics are made by tests, never by accident
auto.create.topics.enable=false
num.partitions=1
default.replication.factor=$copies
min.insync.replicas=$isr
unclean.leader.election.enable=false
# internal topics: one partition is enough and is made in no time
offsets.topic.num.partitions=1
offsets.topic.replication.factor=$copies
transaction.state.log.num.partitions=1
transaction.state.log.replication.factor=$copies
transaction.state.log.min.isr=$isr
share.coordinator.state.topic.num.partitions=1
share.coordinator.state.topic.replication.factor=$copies
share.coordinator.state.topic.min.isr=$isr
# groups: no waiting for members that will not come, short sessions allowed
group.initial.rebalance.delay.ms=0
group.min.session.timeout.ms=1000
group.consumer.min.session.timeout.ms=1000
group.consumer.min.heartbeat.interval.ms=100
group.consumer.heartbeat.interval.ms=500
# a dead broker is noticed in 2 s (default 9), a dead controller in about 1
broker.heartbeat.interval.ms=500
broker.session.timeout.ms=2000
controller.quorum.election.timeout.ms=500
controller.quorum.fetch.timeout.ms=1000
transaction.abort.timed.out.transaction.cleanup.interval.ms=1000
# events of thousands of configs; topics say the same
message.max.bytes=16777216
replica.fetch.max.bytes=16777216
# small: the cleaner alone would take 128 MB
log.cleaner.dedupe.buffer.size=4194304
log.segment.bytes=67108864
num.network.threads=2
num.io.threads=4
num.recovery.threads.per.data.dir=1
background.threads=2
controlled.shutdown.enable=true
PROPS
    [ "$KAFKA_TLS" ] && cat >>"$d/server.properties" <<PROPS
ssl.keystore.type=PEM
ssl.keystore.location=$KAFKA_TLS/broker.pem
ssl.truststore.type=PEM
ssl.truststore.location=$KAFKA_TLS/ca.pem
ssl.client.auth=required
ssl.enabled.protocols=TLSv1.3
PROPS
    [ -z "$KAFKA_EXTRA" ] || printf '%s\n' "$KAFKA_EXTRA" >>"$d/server.properties"
    cat >"$d/log4j2.properties" <<'LOG'
rootLogger.level = INFO
rootLogger.appenderRef.out.ref = out
appender.out.type = Console
appender.out.name = out
appender.out.layout.type = PatternLayout
appender.out.layout.pattern = %d %p %m (%c{1})%n
logger.quiet.name = org.apache.kafka.common.config.AbstractConfig
logger.quiet.level = WARN
LOG
}

jvm() { "$JAVA" -Xshare:auto -XX:+UseSerialGC -Dlog4j2.configurationFile="$KAFKA_DIR/$1/log4j2.properties" -Dlog4j2.disableJmx=true "${@:2}"; }

format() {
    install
    local n; for n in $(nodes); do running "$n" >/dev/null && die "node $n runs; stop it first"; done
    mkdir -p "$KAFKA_DIR"
    local id pids=()                                                  # id: any 16 bytes in base64url
    id=$(head -c 16 /dev/urandom | base64 | tr '+/' 'AA' | cut -c1-22)
    for n in $(nodes); do
        rm -rf "${KAFKA_DIR:?}/$n"; configure "$n"
        jvm "$n" -XX:SharedArchiveFile="$(archive)" -Xmx128m -XX:TieredStopAtLevel=1 -cp "$(classpath)" kafka.tools.StorageTool format -t "$id" -c "$KAFKA_DIR/$n/server.properties" >"$KAFKA_DIR/$n/format.log" 2>&1 &
        pids+=($!)
    done
    local p; for p in "${pids[@]}"; do wait "$p" || { tail -20 "$KAFKA_DIR"/*/format.log >&2; die "format failed"; }; done
}

launch() {             # starts node $1 in the background, in its own session so that Ctrl-C in a test run does not reach it
    local n=$1 d=$KAFKA_DIR/$1 cds=() archive; archive=$(archive)
    configure "$n"
    if [ "$KAFKA_CDS" = 1 ]; then
        if [ -e "$archive" ]; then cds=(-XX:SharedArchiveFile="$archive")
        elif [ "$n" = 1 ]; then cds=(-XX:ArchiveClassesAtExit="$archive.$$"); echo "$archive.$$" >"$d/archive"; fi
    fi
    [ -e "$d/server.log" ] && mv "$d/server.log" "$d/server.log.old"
    # shellcheck disable=SC2086
    setsid "$JAVA" -server -Xmx"$KAFKA_HEAP" -XX:+UseSerialGC -Xshare:auto "${cds[@]}" -XX:+ExitOnOutOfMemoryError -Djava.awt.headless=true \
        -Dlog4j2.configurationFile="$d/log4j2.properties" -Dkafka.logs.dir="$d" $KAFKA_JAVA_OPTS \
        -cp "$(classpath)" kafka.Kafka "$d/server.properties" >"$d/server.log" 2>&1 </dev/null 9>&- &
    echo $! >"$(pidfile "$n")"
}

await() {
    local n=$1 end=$((SECONDS + KAFKA_WAIT))
    until grep -q 'Kafka Server started' "$KAFKA_DIR/$n/server.log" 2>/dev/null; do
        running "$n" >/dev/null || { sleep .2; running "$n" >/dev/null || { tail -30 "$KAFKA_DIR/$n/server.log" >&2; rm -f "$(pidfile "$n")"; die "node $n died while starting"; }; }
        [ $SECONDS -lt $end ] || { tail -30 "$KAFKA_DIR/$n/server.log" >&2; die "node $n not ready after $KAFKA_WAIT s"; }
        sleep .05
    done
}

start() {
    install
    [ -e "$KAFKA_DIR/1/data/meta.properties" ] || format
    local n which=${*:-$(nodes)}
    for n in $which; do running "$n" >/dev/null || launch "$n"; done
    for n in $which; do await "$n"; done
}

stop() {
    local sig=$1 n pid end; shift
    local which=${*:-$(nodes)}
    for n in $which; do pid=$(running "$n") && kill "-$sig" "$pid" 2>/dev/null || true; done
    for n in $which; do
        end=$((SECONDS + KAFKA_WAIT))
        while pid=$(running "$n"); do
            [ $SECONDS -lt $end ] || { say "node $n does not stop, killing it"; kill -9 "$pid"; }
            sleep .05
        done
        rm -f "$(pidfile "$n")"
        if [ -e "$KAFKA_DIR/$n/archive" ]; then                                   # publish the class archive atomically
            local a; a=$(cat "$KAFKA_DIR/$n/archive"); rm -f "$KAFKA_DIR/$n/archive"
            [ "$sig" = TERM ] && [ -s "$a" ] && mv "$a" "$(archive)" || rm -f "$a"
        fi
    done
}

status() {
    local n pid rc=0
    for n in $(nodes); do
        if pid=$(running "$n"); then echo "node $n pid $pid port $(port "$n") rss $(($(awk '/VmRSS/{print $2}' "/proc/$pid/status") / 1024)) MB"
        else echo "node $n down"; rc=1; fi
    done
    return $rc
}

addresses() {
    local n plain= tls=; for n in $(nodes); do plain+="127.0.0.1:$(port "$n"),"; tls+="127.0.0.1:$(($(port "$n") + 2)),"; done
    echo "KAFKA_BOOTSTRAP=${plain%,}"; [ -z "$KAFKA_TLS" ] || echo "KAFKA_BOOTSTRAP_TLS=${tls%,}"
}

case ${1:-} in
    install) install ;; installed) [ -e "$jars/complete" ] && command -v "$JAVA" >/dev/null ;; format) format ;; status) status ;; env) addresses ;;
    start) shift; start "$@" ;; stop) shift; stop TERM "$@" ;; kill) shift; stop KILL "$@" ;;
    *) sed -n '2,10p' "$0" >&2; exit 2 ;;
esac
