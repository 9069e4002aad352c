#!/bin/sh
# Runs one fuzz target with libFuzzer, on the stable toolchain; see fuzz/README.md.
#
#   scripts/fuzz.sh TARGET [SECONDS]        60 seconds by default; without TARGET, lists them
set -eu
cd "$(dirname -- "$0")/.."
cargo=${CARGO:-cargo}
if [ $# = 0 ]; then
    sed -n 's/^name = "\(.*\)"$/\1/p' fuzz/Cargo.toml | grep -v '^speechverse-fuzz$'
    exit
fi
target=$1 seconds=${2:-60}
"$cargo" run -q -p fuzz-targets --example seeds -- fuzz/corpus
mkdir -p "fuzz/artifacts/$target"
LIBTORCH=${LIBTORCH:-$PWD/.libtorch/torch}
# The passes that libFuzzer reads its coverage from, as cargo-fuzz sets them, without a sanitizer.
passes="-Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4"
passes="$passes -Cllvm-args=-sanitizer-coverage-inline-8bit-counters -Cllvm-args=-sanitizer-coverage-pc-table"
RUSTFLAGS="--cfg fuzzing -Ccodegen-units=1 $passes -Clink-arg=-Wl,-rpath,$LIBTORCH/lib"
CARGO_TARGET_DIR=${FUZZ_TARGET_DIR:-fuzz/target}
export LIBTORCH RUSTFLAGS CARGO_TARGET_DIR
host=$(rustc -vV | sed -n 's/^host: //p')
# With --target, build scripts and macros are built without the passes.
"$cargo" build --release --target "$host" --manifest-path fuzz/Cargo.toml --bin "$target"
exec "$CARGO_TARGET_DIR/$host/release/$target" "fuzz/corpus/$target" -artifact_prefix="fuzz/artifacts/$target/" \
    -max_total_time="$seconds" -timeout=20 -rss_limit_mb=2048 -max_len=65536
