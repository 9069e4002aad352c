#!/usr/bin/env bash
# Starts a single-node Apache Kafka on loopback, for tests; needs Java 17 and, the first time, Maven and its repository.
#
#   scripts/kafka/start.sh [--again] [PORT [CONTROLLER_PORT]]      default 29092 29093
#
# --again starts one that was killed, with the data that it had.
# Prints two lines when it is ready: the bootstrap address and the process id. Data and log lie in
# .cache/kafka/run-PORT; scripts/kafka/stop.sh PORT ends it and deletes them. Exit 3: this machine cannot run it.
set -euo pipefail

again=
if [ "${1:-}" = --again ]; then again=1; shift; fi
port=${1:-29092}
controller_port=${2:-$((port + 1))}
here=$(cd "$(dirname "$0")" && pwd)
cache=$(cd "$here/../.." && pwd)/.cache/kafka
jars=$cache/jars-4.1.1
run=$cache/run-$port

say() { echo "kafka: $*" >&2; }
cannot() { say "$*"; exit 3; }

command -v java >/dev/null || cannot "no java; Apache Kafka 4 needs Java 17 or newer"
version=$(java -version 2>&1 | sed -n '1s/.*version "\([0-9]*\).*/\1/p')
[ "${version:-0}" -ge 17 ] || cannot "java is version ${version:-unknown}; Apache Kafka 4 needs 17 or newer"

if [ ! -f "$jars/complete" ]; then
    command -v mvn >/dev/null || cannot "no mvn to fetch the jars with"
    say "fetching the jars into $jars (about 55 MB)"
    rm -rf "$jars.part"
    mkdir -p "$jars.part"
    mvn -q -B -f "$here/pom.xml" dependency:copy-dependencies -DincludeScope=runtime \
        -DoutputDirectory="$jars.part" >&2 || cannot "Maven could not fetch the jars; is its repository in reach?"
    touch "$jars.part/complete"
    rm -rf "$jars"
    mv "$jars.part" "$jars"
fi

# Not whether there is a process of that number: it may be another's by now, or dead and not yet waited for.
is_running() { [ -f "$run/pid" ] && grep -qa "$run/server.properties" "/proc/$(cat "$run/pid")/cmdline" 2>/dev/null; }
if [ -n "$again" ]; then
    for _ in $(seq 20); do is_running || break; sleep 0.25; done   # who killed it did not wait
fi
if is_running; then
    say "already running on port $port; scripts/kafka/stop.sh $port ends it"
    exit 1
fi
if [ -n "$again" ]; then
    [ -f "$run/server.properties" ] || { say "nothing was started on port $port"; exit 1; }
else
    rm -rf "$run"
    mkdir -p "$run"
fi

cat >"$run/server.properties" <<P
process.roles=broker,controller
node.id=1
controller.quorum.bootstrap.servers=127.0.0.1:$controller_port
listeners=PLAINTEXT://127.0.0.1:$port,CONTROLLER://127.0.0.1:$controller_port
advertised.listeners=PLAINTEXT://127.0.0.1:$port,CONTROLLER://127.0.0.1:$controller_port
inter.broker.listener.name=PLAINTEXT
controller.listener.names=CONTROLLER
listener.security.protocol.map=PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT
log.dirs=$run/data
num.partitions=4
auto.create.topics.enable=true
message.max.bytes=12000000
replica.fetch.max.bytes=12000000

# One node: no replicas of the internal topics, and few partitions.
offsets.topic.replication.factor=1
offsets.topic.num.partitions=1
transaction.state.log.replication.factor=1
transaction.state.log.min.isr=1
transaction.state.log.num.partitions=1
share.coordinator.state.topic.replication.factor=1
share.coordinator.state.topic.min.isr=1

# Tests are impatient: short sessions, no waiting for company, deadlines looked at often, quick restarts.
broker.session.timeout.ms=3000
broker.heartbeat.interval.ms=500
group.initial.rebalance.delay.ms=0
group.min.session.timeout.ms=1000
group.consumer.session.timeout.ms=6000
group.consumer.min.session.timeout.ms=1000
group.consumer.heartbeat.interval.ms=500
group.consumer.min.heartbeat.interval.ms=100
transaction.abort.timed.out.transaction.cleanup.interval.ms=500
log.retention.check.interval.ms=1000
log.initial.task.delay.ms=1000
log.cleaner.enable=false
P
cat >"$run/log4j2.properties" <<P
rootLogger.level=warn
rootLogger.appenderRef.out.ref=out
appender.out.type=Console
appender.out.name=out
appender.out.layout.type=PatternLayout
appender.out.layout.pattern=%d %p %c: %m%n
P

java_here() { java -Xms256m -Xmx512m -XX:+UseSerialGC -XX:TieredStopAtLevel=1 \
    -Dlog4j2.configurationFile="$run/log4j2.properties" -Dkafka.logs.dir="$run" -cp "$jars/*" "$@"; }

if [ -z "$again" ]; then
    id=$(java_here kafka.tools.StorageTool random-uuid)
    java_here kafka.tools.StorageTool format --standalone -t "$id" -c "$run/server.properties" >"$run/format.log" 2>&1 || {
        cat "$run/format.log" >&2
        exit 1
    }
fi
# A session of its own, so that an interrupted test run does not take it along half-way.
setsid java -Xms256m -Xmx512m -XX:+UseSerialGC -XX:TieredStopAtLevel=1 \
    -Dlog4j2.configurationFile="$run/log4j2.properties" -Dkafka.logs.dir="$run" -cp "$jars/*" \
    kafka.Kafka "$run/server.properties" >"$run/kafka.log" 2>&1 </dev/null &
pid=$!
echo "$pid" >"$run/pid"

# Ready means that the port answers a request, here ApiVersions version 0 with correlation id 7.
answers() {
    exec 3<>"/dev/tcp/127.0.0.1/$port" || return 1
    printf '\0\0\0\012\0\022\0\0\0\0\0\007\0\0' >&3
    [ "$(timeout 5 head -c 8 <&3 | tail -c 1 | od -An -tu1 | tr -d ' ')" = 7 ]
}
for _ in $(seq 120); do
    if ! kill -0 "$pid" 2>/dev/null; then
        say "it stopped while starting:"
        tail -20 "$run/kafka.log" >&2
        exit 1
    fi
    if (answers) 2>/dev/null; then
        echo "127.0.0.1:$port"
        echo "$pid"
        exit 0
    fi
    sleep 0.5
done
say "not ready after 60 s; see $run/kafka.log"
kill "$pid"
exit 1
