#!/bin/sh
# Runs a program of this tree against another libtorch of the same version, usually a CUDA build: nothing is rebuilt.
#   scripts/with-torch.sh target/release/speechverse doctor
# The library is, in this order: $SPEECHVERSE_TORCH (a folder with libtorch_cpu.so), the CUDA variant fetched by
# `scripts/setup-libtorch.sh --cuda`, the torch package of $PYTHON (default: python3).
set -eu

WANTED=2.11
fail() { echo "with-torch: $*" >&2; exit 1; }
[ $# -gt 0 ] || { echo "usage: scripts/with-torch.sh PROGRAM [ARGUMENT ...]" >&2; exit 2; }

root=$(CDPATH='' cd -- "$(dirname -- "$0")/.." && pwd)
python=${PYTHON:-python3}
lib=${SPEECHVERSE_TORCH:-}
if [ -z "$lib" ]; then
    fetched=${SPEECHVERSE_CACHE:-$root/.cache}/libtorch/$WANTED.0-cuda-1
    [ -e "$fetched/.complete" ] && lib=$fetched/torch/lib
fi
if [ -z "$lib" ]; then
    # Found without importing it, which would take seconds.
    lib=$("$python" - "$WANTED" <<'P'
import importlib.metadata, importlib.util, os, sys
found = importlib.util.find_spec("torch")
if found is None or not found.submodule_search_locations:
    sys.exit(f"with-torch: {sys.executable} has no torch; name another with PYTHON=, or run scripts/setup-libtorch.sh --cuda")
version = importlib.metadata.version("torch")
if not version.startswith(sys.argv[1] + "."):
    sys.exit(f"with-torch: {sys.executable} has torch {version}; this program needs {sys.argv[1]}")
print(os.path.join(list(found.submodule_search_locations)[0], "lib"))
P
    ) || exit 1
fi
[ -e "$lib/libtorch_cpu.so" ] || fail "$lib holds no libtorch_cpu.so"

LD_LIBRARY_PATH=$lib${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}
export LD_LIBRARY_PATH
exec "$@"
