#!/bin/sh
# There, after join.sh of `program`, `models` and `data`: trains the demo's adapter on the GPU by scripts/gpu/train.toml, for so many
# seconds, then stops with a checkpoint; the next call goes on from it. Call it until it says that the run is over.
#   scripts/gpu/train.sh [SECONDS]         540 when absent: 60 below the longest call
# While the machine is held the run stays on it. It also comes back in $OUT as run.part-* and run.sha256: to go on on a fresh machine,
# put them into .gpu/, carry them, and run join.sh first. The same files hold the log, the plot and the published version.
# Settings: DEVICE (cuda:0; cpu tries the script), CONFIG (scripts/gpu/train.toml), GPU_STORE.
set -eu

root=$(CDPATH='' cd -- "$(dirname -- "$0")/../.." && pwd)
store=${GPU_STORE:-/tmp/speechverse-gpu}
seconds=${1:-540}
cd "$store"
ln -sfn "$root/configs" configs
sed "s/^device = .*/device = \"${DEVICE:-cuda:0}\"/" "${CONFIG:-$root/scripts/gpu/train.toml}" >train.toml

status=0
timeout --signal INT "$seconds" "$root/scripts/with-torch.sh" bin/speechverse train --config train.toml --resume || status=$?
case $status in
0) echo "train: the run is over" ;;
124) echo "train: $seconds s are over; call again to go on" ;;
*) echo "train: the run failed (exit $status)" >&2 ;;
esac

if [ -n "${OUT:-}" ] && [ -d data/runs/gpu ]; then
    folders=data/runs/gpu
    [ ! -d data/adapters ] || folders="$folders data/adapters"
    # shellcheck disable=SC2086
    tar -cz $folders | split -d -a 2 -b 15M - "$OUT/run.part-"
    (cd "$OUT" && sha256sum run.part-* >run.sha256)
fi
[ "$status" = 0 ] || [ "$status" = 124 ]
