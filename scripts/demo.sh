#!/bin/sh
# The demo: starts the pipeline on its embedded broker, publishes recorded human speech and other sounds to the request
# topic, each with its task, and prints what came back on the result topic. Called by `make demo`, which builds and fetches everything first.
set -eu
cd "$(dirname -- "$0")/.."
program=${SPEECHVERSE_BINARY:-target/release/speechverse}
clips=tests/fixtures/speech
work=$(mktemp -d)
pid=
finish() {
    status=$?
    if [ -n "$pid" ] && kill -0 "$pid" 2>/dev/null; then
        kill "$pid"
        wait "$pid" 2>/dev/null || true
    fi
    if [ "$status" -ne 0 ] && [ -s "$work/serve.log" ]; then
        echo "demo: the pipeline's log ends with:" >&2
        tail -n 20 "$work/serve.log" >&2
    fi
    rm -rf "$work"
    exit "$status"
}
trap finish EXIT
trap 'exit 130' INT TERM

# Free ports, so that the demo runs beside anything else; a store of its own, so that it leaves nothing behind.
export SPEECHVERSE__BROKER__ADDRESS=127.0.0.1:0 SPEECHVERSE__HTTP__LISTEN=127.0.0.1:0
export SPEECHVERSE__STORE__DIR="$work/samples" SPEECHVERSE__ADAPTERS__DIR="$work/adapters"
"$program" serve --config configs/demo.toml --embedded-broker >"$work/ready" 2>"$work/serve.log" &
pid=$!
waited=0
until grep -q '^ready ' "$work/ready"; do
    kill -0 "$pid" 2>/dev/null || { echo "demo: the pipeline did not start" >&2; exit 1; }
    [ "$waited" -lt 1200 ] || { echo "demo: the pipeline was not ready after two minutes" >&2; exit 1; }
    waited=$((waited + 1))
    sleep 0.1
done
sed 's/^ready /pipeline ready: /' "$work/ready"
bootstrap=$(sed -n 's/^ready .*bootstrap=\([^ ]*\).*/\1/p' "$work/ready")
"$program" publish --config configs/demo.toml --bootstrap "$bootstrap" --constrain yes --wait \
    --references "$clips/transcripts.jsonl" --references "$clips/tasks/tasks.jsonl" "$clips" "$clips/tasks"
