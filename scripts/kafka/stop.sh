#!/usr/bin/env bash
# Ends the Apache Kafka that scripts/kafka/start.sh started on PORT (default 29092), and deletes its data.
set -euo pipefail

port=${1:-29092}
run=$(cd "$(dirname "$0")/../.." && pwd)/.cache/kafka/run-$port
[ -f "$run/pid" ] || { echo "kafka: nothing was started on port $port" >&2; exit 0; }
pid=$(cat "$run/pid")
# Only a process that is still that Kafka; the number may belong to somebody else by now.
if grep -qa "$run/server.properties" "/proc/$pid/cmdline" 2>/dev/null; then
    kill "$pid"
    for _ in $(seq 60); do
        kill -0 "$pid" 2>/dev/null || break
        sleep 0.25
    done
    kill -9 "$pid" 2>/dev/null || true
fi
rm -rf "$run"
