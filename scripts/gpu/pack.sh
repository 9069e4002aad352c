#!/bin/sh
# Here: packs what a GPU machine without network needs into slices small enough to travel, in .gpu/:
#   NAME.part-00, NAME.part-01 … (a gzipped tar), NAME.sha256 (their sums, which join.sh checks).
#
#   scripts/gpu/pack.sh program            the program, the tests of tests/cuda, the benchmark examples; builds them
#   scripts/gpu/pack.sh models             the demo's models, from models/
#   scripts/gpu/pack.sh data [ROWS]        the demo's training speech as Ogg Vorbis, all or that many rows (scripts/gpu/data.py)
#   scripts/gpu/pack.sh NAME PATH …        anything else, by its path below the repository
#
# Settings: SLICE_MIB (44: with the work tree it stays below 64), OUT (.gpu), PROFILE (release; dev to try the scripts),
# CARGO, PYTHON (needs soundfile, for `data` only).
set -eu

[ $# -gt 0 ] || { sed -n '2,/^set -eu/{/^# /s///p}' "$0" >&2; exit 2; }
cd "$(dirname -- "$0")/../.."
out=${OUT:-.gpu}
name=$1
shift
mkdir -p "$out"
stage=$(mktemp -d "$out/stage.XXXXXX")
trap 'rm -rf "$stage"' EXIT
trap 'exit 130' INT TERM

case $name in
program)
    cargo=${CARGO:-cargo} profile=${PROFILE:-release}
    folder=${CARGO_TARGET_DIR:-target}/$profile
    [ "$profile" != dev ] || folder=${CARGO_TARGET_DIR:-target}/debug
    "$cargo" build --locked --profile "$profile" -p speechverse-pipelines
    "$cargo" build --locked --profile "$profile" -p speechverse --example llm --example encoder
    # The tests spend their time in libtorch: an unoptimised build does.
    tests=$("$cargo" test --locked -p speechverse --test cuda --no-run --message-format json |
        sed -n 's/.*"name":"cuda".*"executable":"\([^"]*\)".*/\1/p')
    mkdir "$stage/bin"
    for program in "$folder/speechverse" "$folder/examples/llm" "$folder/examples/encoder"; do
        strip -o "$stage/bin/$(basename "$program")" "$program"
    done
    strip -o "$stage/bin/cuda-tests" "$tests"
    set -- bin
    ;;
models)
    mkdir "$stage/models"
    for model in whisper-base smollm2-135m-instruct; do
        [ -e "models/$model/model.safetensors" ] || { echo "pack: models/$model is missing: make models" >&2; exit 1; }
        cp -RL "models/$model" "$stage/models/"
    done
    set -- models
    ;;
data)
    "${PYTHON:-python3}" scripts/gpu/data.py data/demo "$stage/data/demo-gpu" "$@"
    set -- data
    ;;
*)
    [ $# -gt 0 ] || { echo "pack: name what goes into $name" >&2; exit 2; }
    for path in "$@"; do
        mkdir -p "$stage/$(dirname "$path")"
        cp -RL "$path" "$stage/$path"
    done
    ;;
esac

rm -f "$out/$name".part-* "$out/$name.sha256"
tar -cz -C "$stage" "$@" | split -d -a 2 -b "${SLICE_MIB:-44}M" - "$out/$name.part-"
(cd "$out" && sha256sum "$name".part-* >"$name.sha256")
ls -l "$out/$name".part-* | awk -v name="$name" '{ bytes += $5 } END { printf "%s: %d slices, %.1f MB\n", name, NR, bytes / 1e6 }'
