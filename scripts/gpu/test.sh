#!/bin/sh
# There, after join.sh of `program`: what the machine offers, the tests of tests/cuda, and, where `models` were joined too, the
# demo's answers on the CPU and on the GPU.
#   scripts/gpu/test.sh
# The tests run twice: with TF32 forbidden (f32 within 1e-4 of the CPU), then as the program runs (cuDNN's convolutions round f32
# to TF32: 1e-2). Settings: DEVICE (cuda:0; cpu tries the script), GPU_STORE, and those of scripts/with-torch.sh.
set -eu

root=$(CDPATH='' cd -- "$(dirname -- "$0")/../.." && pwd)
store=${GPU_STORE:-/tmp/speechverse-gpu}
export OMP_WAIT_POLICY=PASSIVE GOMP_SPINCOUNT=0
failed=0

cd "$store"
ln -sfn "$root/configs" configs
ln -sfn "$root/tests" tests
"$root/scripts/with-torch.sh" bin/speechverse doctor || true      # says so where the models are missing
export SPEECHVERSE_CUDA_TESTS="${DEVICE:-cuda:0}" CARGO_MANIFEST_DIR="$root" RUST_BACKTRACE=0 OMP_NUM_THREADS=1
NVIDIA_TF32_OVERRIDE=0 "$root/scripts/with-torch.sh" bin/cuda-tests || failed=1
"$root/scripts/with-torch.sh" bin/cuda-tests || failed=1
unset OMP_NUM_THREADS

if [ -d models ]; then
    for device in cpu "$SPEECHVERSE_CUDA_TESTS"; do
        echo "== the demo on $device"
        SPEECHVERSE__MODEL__DEVICE=$device "$root/scripts/with-torch.sh" bin/speechverse ask --task asr \
            tests/fixtures/speech/*.wav || failed=1
    done
fi
exit "$failed"
