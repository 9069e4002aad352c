#!/bin/sh
# The demo: starts the pipeline on its embedded broker, publishes recorded human speech and other sounds to the request
# topic, each with its task, and prints what came back on the result topic. Then it teaches the model a task that it has not
# learned, by labels and a correction, in one training cycle. Called by `make demo`, which builds and fetches everything first.
set -eu
cd "$(dirname -- "$0")/.."
program=${SPEECHVERSE_BINARY:-target/release/speechverse}
clips=tests/fixtures/speech
sounds=tests/fixtures/sounds
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

# Free ports, so that the demo runs beside anything else; folders of its own, so that it leaves nothing behind.
export SPEECHVERSE__BROKER__ADDRESS=127.0.0.1:0 SPEECHVERSE__HTTP__LISTEN=127.0.0.1:0
export SPEECHVERSE__STORE__DIR="$work/samples" SPEECHVERSE__ADAPTERS__DIR="$work/adapters"
# A cycle that teaches sounds, from 80 clips: 30 and more of them are held out, so that the verdict counts.
sed "s|^dir = .*|dir = \"$work/features\"|" configs/curriculum/online-sound.toml >"$work/online-sound.toml"
export SPEECHVERSE__TRAINER__CURRICULUM="$work/online-sound.toml" SPEECHVERSE__TRAINER__RUNS_DIR="$work/runs"
export SPEECHVERSE__STORE__HELD_OUT_FRACTION=0.4
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
speechverse() {
    command=$1
    shift
    "$program" "$command" --config configs/demo.toml --bootstrap "$bootstrap" "$@"
}
speechverse publish \
    --references "$clips/transcripts.jsonl" --references "$clips/tasks/tasks.jsonl" "$clips" "$clips/tasks"

# A task that the shipped version was not taught: five sounds, each recording in one part of the clips only.
ask_about_sounds() {
    speechverse publish --references "$sounds/test.jsonl" "$sounds/test" >"$work/table"
    awk 'NR <= 2 || NR % 5 == 3 && NR < 28' "$work/table" # heading, and one clip of each sound
    tail -n 2 "$work/table"
}
label() {
    speechverse label --task sound --label clock --label dog --label rain --label rooster --label sneeze "$@" >/dev/null
}
began=$(date +%s)
echo
echo "Which sound is it? Before the training cycle, one clip in five of those asked about:"
ask_about_sounds

echo
clip=sneeze-143119.ogg
speechverse publish --references "$sounds/corrected.jsonl" --json "$sounds/corrected/$clip" >"$work/answer"
request=$(sed -n 's/.*"request_id":"\([^"]*\)".*/\1/p' "$work/answer")
echo "$clip: answer \`$(sed -n 's/.*"text":"\([^"]*\)".*/\1/p' "$work/answer")\` to request $request, corrected to \`sneeze\`"
speechverse label --request "$request" --target sneeze >/dev/null
samples=1
for sound in clock dog rain rooster sneeze; do
    set -- "$sounds/labelled/$sound"-*.ogg
    label --target "$sound" "$@"
    samples=$((samples + $#))
done
waited=0
until [ "$(grep -c 'sample stored' "$work/serve.log")" -ge "$samples" ]; do
    [ "$waited" -lt 600 ] || { echo "demo: the labels were not stored within a minute" >&2; exit 1; }
    waited=$((waited + 1))
    sleep 0.1
done
echo "$samples labels are stored; training on them, without those that are held out to judge:"
speechverse retrain --wait >"$work/cycle" 2>"$work/refused" || echo "The cycle's version does not serve."
sed -n 's/.*"verdict":"\([^"]*\)","reason":"\([^"]*\)".*/verdict: \1, \2/p' "$work/cycle"

echo
echo "After it, the same clips:"
ask_about_sounds
echo "correction and training cycle: $(($(date +%s) - began)) s"
echo
echo "The other tasks, after the cycle:"
speechverse publish --references "$clips/tasks/tasks.jsonl" "$clips/tasks" >"$work/table"
sed -n '/^[0-9]* requests/,$p' "$work/table"
