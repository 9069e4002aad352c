#!/bin/sh
# The table of the shipped version: every figure of docs/MODEL.md by one command.
#   scripts/eval_shipped.sh OUT [options of `speechverse eval`, such as --cascade]
# Needs the built program, the models, the imported manifests (scripts/data/README.md) in data/manifests and data/demo, and a Python (PYTHON=)
# with scripts/data/requirements.txt.
set -eu
cd "$(dirname -- "$0")/.."
out=${1:?usage: scripts/eval_shipped.sh OUT [options of eval]}
shift
program=${SPEECHVERSE_BINARY:-target/release/speechverse}
"${PYTHON:-python3}" scripts/data/test_sets.py --manifests data/manifests --demo data/demo --out data/tests --choice data/choice
# A registry of its own, which begins with the shipped version.
registry=$(mktemp -d)
trap 'rm -rf "$registry"' EXIT
export SPEECHVERSE__ADAPTERS__DIR="$registry"
for set in data/tests/*.jsonl; do
    set -- "$@" --manifest "$set"
done
"$program" eval --config configs/demo.toml --constrain yes --max-tokens 70 --report "$out" "$@"
