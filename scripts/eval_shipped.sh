#!/bin/sh
# The figures of the shipped version in docs/MODEL.md, by one command.
#   scripts/eval_shipped.sh OUT [table|joint|free|wordings|alone|cascade|all]
#
#   table      every test set, labels constrained; the default
#   joint      the transcript first, then the task's answer, beside the task alone
#   free       answers that are not constrained
#   wordings   the wording of the request that was trained on, beside those that were not
#   alone      the language model's own answers, without CTC head, summary and sentence embedding in the choice of tokens
#   cascade    the language model reads the transcript, and the right text, in place of the sound
#   all        one after the other
#
# Each writes report.md, report.json and rows.jsonl to OUT/NAME. Needs the built program, the models, the imported manifests (scripts/data/README.md) in
# data/manifests and data/demo, and a Python (PYTHON=) with scripts/data/requirements.txt.
set -eu
cd "$(dirname -- "$0")/.."
usage="usage: scripts/eval_shipped.sh OUT [table|joint|free|wordings|alone|cascade|all]"
out=${1:?$usage}
parts=${2:-table}
case $parts in
    all) parts="table joint free wordings alone cascade" ;;
    table | joint | free | wordings | alone | cascade) ;;
    *) echo "$usage" >&2; exit 2 ;;
esac
program=${SPEECHVERSE_BINARY:-target/release/speechverse}
"${PYTHON:-python3}" scripts/data/test_sets.py --manifests data/manifests --demo data/demo --out data/tests --choice data/choice
# A registry of its own, which begins with the shipped version.
registry=$(mktemp -d)
trap 'rm -rf "$registry"' EXIT
export SPEECHVERSE__ADAPTERS__DIR="$registry"
for part in $parts; do
    about=$(cd data/tests && ls -- *.jsonl)
    case $part in
        table) set -- --constrain yes ;;
        joint) set -- --constrain yes --joint; about="slots.jsonl intent.jsonl keyword_search.jsonl question.jsonl" ;;
        free) set -- --constrain no ;;
        wordings) set -- --constrain yes --prompts all ;;
        alone) set -- --constrain yes --ctc-weight 0 --spoken-weight 0 --summary-weight 0 --sentence-weight 0 ;;
        cascade) set -- --constrain yes --cascade; about="slots.jsonl intent.jsonl keyword_search.jsonl" ;;
    esac
    for name in $about; do
        [ ! -e "data/tests/$name" ] || set -- "$@" --manifest "data/tests/$name"
    done
    "$program" eval --config configs/demo.toml --max-tokens 70 --report "$out/$part" "$@"
done
