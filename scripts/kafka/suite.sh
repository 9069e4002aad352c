#!/usr/bin/env bash
# Runs the broker suite and the suite of our Kafka clients on the embedded broker and on a real Apache Kafka, which it starts and stops.
#
#   scripts/kafka/suite.sh [PORT] [-- CARGO TEST ARGUMENTS]
#
# Where Apache Kafka cannot run (no Java 17, no jars), its half is skipped by name and the rest still runs.
set -euo pipefail

port=29092
if [ $# -gt 0 ] && [ "$1" != -- ]; then port=$1; shift; fi
if [ $# -gt 0 ]; then shift; fi
here=$(cd "$(dirname "$0")" && pwd)
cd "$here/../.."

trap '"$here/stop.sh" "$port"' EXIT
if address=$("$here/start.sh" "$port" | head -1) && [ -n "$address" ]; then
    export SPEECHVERSE_KAFKA=$address
else
    echo "SKIPPED: Apache Kafka could not be started; its checks are skipped by name" >&2
fi
cargo test -p speechverse -p embedded-broker --test broker --test kafka -- "$@"
