#!/bin/bash
# There, after join.sh of `program`: speed of encoders and of generation beside the transformers library, in turn, on the same GPU.
# Models are made there with random weights, for speed does not depend on them; the demo's language model is used where `models`
# were joined.
#   scripts/gpu/bench.sh [wavlm] [t5] [xl] [demo]       which parts; all when none is named
# Times: wavlm and t5 a minute each, xl (Flan-T5-XL's shape: 11 GB on disk) about five; each part on its own fits one call.
# Settings: DEVICE (cuda:0; cpu tries the script), ROUNDS (7), BATCH ("1 8 32"), GPU_STORE, OUT (the report, bench.txt, goes there when it is set).
set -euo pipefail

root=$(CDPATH='' cd -- "$(dirname -- "$0")/../.." && pwd)
store=${GPU_STORE:-/tmp/speechverse-gpu}
device=${DEVICE:-cuda:0}
rounds=${ROUNDS:-7}
read -ra batch <<<"${BATCH:-1 8 32}"
report=${OUT:-$store}/bench.txt
export OMP_WAIT_POLICY=PASSIVE GOMP_SPINCOUNT=0 HF_HUB_DISABLE_PROGRESS_BARS=1
[ $# -gt 0 ] || set -- wavlm t5 demo xl

bench() {                              # bench SCRIPT EXAMPLE FOLDER ARGUMENT …
    script=$1 example=$2 folder=$3
    shift 3
    # The program finds its libtorch beside the reference's own: it is the same one.
    "$root/scripts/with-torch.sh" "${PYTHON:-python3}" "$root/scripts/bench/$script" "$store/bin/$example" "$folder" \
        --device "$device" --rounds "$rounds" --batch "${batch[@]}" "$@"
}

mkdir -p "$store/bench"
: >"$report"
for part; do
    case $part in
    wavlm)
        for precision in f32 bf16; do
            bench encoder.py encoder "$store/bench/wavlm-large" --shape wavlm-large --precision "$precision"
        done
        ;;
    t5) bench generate.py llm "$store/bench/t5-base" --shape t5-base --precision f32 bf16 ;;
    xl) bench generate.py llm "$store/bench/flan-t5-xl" --shape flan-t5-xl --precision bf16 ;;
    demo)
        if [ -d "$store/models" ]; then
            bench generate.py llm "$store/models/smollm2-135m-instruct" --precision f32 bf16
        else
            echo "demo: models were not joined"
        fi
        ;;
    *) echo "bench: there is no part $part" >&2; exit 2 ;;
    esac
done | tee -a "$report"
