#!/bin/sh
# Put libtorch 2.11.0 (what tch =0.24.0 wants) into ./.libtorch from PyPI.
#   scripts/setup-libtorch.sh          CPU subset: 0.54 GB fetched, 0.5 GB kept
#   scripts/setup-libtorch.sh --cuda   everything:  2.5 GB fetched, 3.6 GB kept
# Needs python3 with pip, at set-up time only. Safe to run again (no-op when done).
# Files live in $LIBTORCH_CACHE (shared by all clones); ./.libtorch links to it.
set -eu

TORCH=2.11.0
variant=cpu
[ "${1:-}" = "--cuda" ] && variant=cuda
[ "$(uname -sm)" = "Linux x86_64" ] || { echo "setup-libtorch: only Linux x86_64 is scripted" >&2; exit 1; }

root=$(CDPATH= cd -- "$(dirname -- "$0")/.." && pwd)
cache=${LIBTORCH_CACHE:-$root/.cache/libtorch}
dest=$cache/$TORCH-$variant-1          # bump the last number when this script changes
link=$root/.libtorch

if [ ! -e "$dest/.complete" ]; then
    mkdir -p "$cache"
    tmp=$(mktemp -d "$cache/.tmp.XXXXXX")
    trap 'rm -rf "$tmp"' EXIT INT TERM
    # The interpreter tags are fixed, so any python3 with pip can fetch them.
    set -- --disable-pip-version-check --no-cache-dir --progress-bar off \
        --only-binary=:all: --python-version 3.11 --implementation cp \
        --platform manylinux_2_28_x86_64 --platform manylinux_2_27_x86_64 \
        --platform manylinux_2_25_x86_64 --platform manylinux_2_18_x86_64 \
        --platform manylinux_2_17_x86_64 --platform manylinux2014_x86_64
    if [ "$variant" = cpu ]; then
        cat >"$tmp/req.txt" <<'R'
torch==2.11.0 --hash=sha256:7aa2f9bbc6d4595ba72138026b2074be1233186150e9292865e04b7a63b8c67a
nvidia-cuda-runtime==13.0.96 --hash=sha256:7f82250d7782aa23b6cfe765ecc7db554bd3c2870c43f3d1821f1d18aebf0548
nvidia-cuda-cupti==13.0.85 --hash=sha256:4eb01c08e859bf924d222250d2e8f8b8ff6d3db4721288cf35d14252a4d933c8
R
        python3 -m pip download -q "$@" --no-deps --require-hashes -r "$tmp/req.txt" -d "$tmp/wheels"
    else
        python3 -m pip download -q "$@" --no-deps -d "$tmp/wheels" torch==$TORCH \
            nvidia-cuda-runtime==13.0.96 nvidia-cuda-cupti==13.0.85 nvidia-cuda-nvrtc==13.0.88 \
            nvidia-cublas==13.1.0.3 nvidia-cufft==12.0.0.61 nvidia-cufile==1.15.1.6 \
            nvidia-curand==10.4.0.35 nvidia-cusolver==12.0.4.66 nvidia-cusparse==12.6.3.3 \
            nvidia-nvjitlink==13.0.88 nvidia-cudnn-cu13==9.19.0.56 nvidia-cusparselt-cu13==0.8.0 \
            nvidia-nccl-cu13==2.28.9 nvidia-nvshmem-cu13==3.4.5
    fi
    python3 - "$variant" "$tmp/wheels" "$tmp/out" <<'P'
import glob, os, sys, zipfile
variant, wheels, out = sys.argv[1:]
cpu = ("torch/lib/libtorch_cpu.so", "torch/lib/libc10.so", "torch/lib/libgomp.so.1",
       "nvidia/cu13/lib/libcudart.so.13", "nvidia/cu13/lib/libcupti.so.13")
for wheel in sorted(glob.glob(wheels + "/*.whl")):
    with zipfile.ZipFile(wheel) as z:
        for name in z.namelist():
            if name.startswith("torch/include/"):
                keep = True
            elif variant == "cpu":
                keep = name in cpu
            else:
                keep = (name.startswith(("torch/lib/", "nvidia/")) and ".so" in name
                        and "libtorch_python" not in name)
            if keep:
                z.extract(name, out)
    os.unlink(wheel)                   # bound the disk used
P
    if [ "$variant" = cpu ]; then
        # torch-sys always passes -ltorch; the wheel's libtorch.so would pull in
        # libtorch_cuda.so, and holds nothing else, so a linker script stands in.
        # No libtorch_cuda.so beside it: torch-sys then links no CUDA library.
        echo 'INPUT ( AS_NEEDED ( libtorch_cpu.so libc10.so ) )' >"$tmp/out/torch/lib/libtorch.so"
    fi
    echo "$TORCH" >"$tmp/out/torch/build-version"   # torch-sys checks this
    touch "$tmp/out/.complete"
    chmod 755 "$tmp/out"
    rm -rf "$dest"
    mv "$tmp/out" "$dest"
fi
ln -sfn "$dest" "$link"
echo "libtorch $TORCH ($variant): $link -> $dest"
