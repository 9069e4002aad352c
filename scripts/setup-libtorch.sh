#!/bin/sh
# Puts libtorch 2.11.0 (what tch =0.24.0 wants) into ./.libtorch; needs python3 with pip, at set-up time only.
#   scripts/setup-libtorch.sh          CPU subset: 0.54 GB fetched, 0.5 GB kept
#   scripts/setup-libtorch.sh --cuda   everything:  2.5 GB fetched, 3.6 GB kept
# Safe to run again: nothing is done when it is there. Downloads are pinned in scripts/downloads.lock, go on where
# they stopped, and are deleted once unpacked (unless SPEECHVERSE_KEEP_DOWNLOADS is set). SPEECHVERSE_CACHE
# (default: .cache in the tree) is where everything lives; SPEECHVERSE_OFFLINE names a folder with the files.
set -eu

TORCH=2.11.0
LAYOUT=1                               # raised when what is unpacked below changes
variant=cpu
case ${1:-} in
    '') ;;
    --cuda) variant=cuda ;;
    *) echo "usage: scripts/setup-libtorch.sh [--cuda]" >&2; exit 2 ;;
esac

fail() { echo "setup: $*" >&2; exit 1; }

root=$(CDPATH='' cd -- "$(dirname -- "$0")/.." && pwd)
name=$TORCH-$variant-$LAYOUT
if [ -n "${SPEECHVERSE_CACHE:-}" ]; then
    mkdir -p "$SPEECHVERSE_CACHE" || fail "cannot create $SPEECHVERSE_CACHE (SPEECHVERSE_CACHE)"
    cache=$(CDPATH='' cd -- "$SPEECHVERSE_CACHE" && pwd)
else
    cache=$root/.cache
fi
dest=$cache/libtorch/$name
case $cache/ in
    "$root"/*) target=${dest#"$root"/} ;;   # relative, so that the tree can be moved
    *) target=$dest ;;
esac

point() {                              # at once, and only when it points elsewhere
    [ "$(readlink "$root/.libtorch" 2>/dev/null || true)" = "$target" ] && return
    [ ! -e "$root/.libtorch" ] || [ -L "$root/.libtorch" ] || fail ".libtorch is in the way: it is not a link. Move it away."
    ln -s "$target" "$root/.libtorch.$$" && mv -Tf "$root/.libtorch.$$" "$root/.libtorch"
    echo "setup: libtorch $TORCH ($variant): .libtorch -> $target" >&2
}

# Who has chosen the CUDA variant keeps it until asked otherwise: rm .libtorch.
case $variant:$(readlink "$root/.libtorch" 2>/dev/null || true) in
    cpu:*-cuda-"$LAYOUT") [ ! -e "$root/.libtorch/.complete" ] || exit 0 ;;
esac

if [ -e "$dest/.complete" ]; then
    point
    exit 0
fi

[ "$(uname -sm)" = "Linux x86_64" ] ||
    fail "this is $(uname -sm); only Linux x86_64 has a scripted libtorch. Elsewhere, unpack libtorch $TORCH yourself and set LIBTORCH to it."
command -v python3 >/dev/null || fail "python3 is missing (Debian, Ubuntu: apt install python3 python3-pip; Fedora: dnf install python3-pip)"
python3 -c 'import sys; sys.exit(sys.version_info < (3, 9))' || fail "python3 is $(python3 -V 2>&1); version 3.9 or newer is needed"
[ -n "${SPEECHVERSE_OFFLINE:-}" ] || python3 -m pip --version >/dev/null 2>&1 ||
    fail "python3 has no pip (Debian, Ubuntu: apt install python3-pip; others: python3 -m ensurepip --user)"

mkdir -p "$cache/libtorch"
SPEECHVERSE_CACHE=$cache python3 "$root/scripts/fetch.py" get "libtorch-$variant" >"$cache/libtorch/.wheels.$$" || {
    rm -f "$cache/libtorch/.wheels.$$"
    exit 1
}
tmp=$(mktemp -d "$cache/libtorch/.tmp.XXXXXX")
trap 'rm -rf "$tmp" "$cache/libtorch/.wheels.$$"' EXIT
trap 'exit 130' INT
trap 'exit 143' TERM
echo "setup: unpacking" >&2
python3 - "$variant" "$tmp/out" "$cache/libtorch/.wheels.$$" <<'P'
import sys, zipfile
variant, out, wheels = sys.argv[1:]
cpu = {"torch/lib/libtorch_cpu.so", "torch/lib/libc10.so", "torch/lib/libgomp.so.1",
       "nvidia/cu13/lib/libcudart.so.13", "nvidia/cu13/lib/libcupti.so.13"}
seen = set()
for wheel in open(wheels, encoding="utf-8").read().split("\n"):
    if not wheel:
        continue
    with zipfile.ZipFile(wheel) as archive:
        for name in archive.namelist():
            if name.startswith("torch/include/"):
                keep = True
            elif variant == "cpu":
                keep = name in cpu
            else:
                keep = (name.startswith(("torch/lib/", "nvidia/")) and ".so" in name
                        and "libtorch_python" not in name)
            if keep:
                archive.extract(name, out)
                seen.add(name)
if not cpu <= seen:
    sys.exit(f"setup: the wheels lack {', '.join(sorted(cpu - seen))}")
P
if [ "$variant" = cpu ]; then
    # torch-sys always passes -ltorch; the wheel's libtorch.so would pull in libtorch_cuda.so, and holds nothing
    # else, so a linker script stands in. No libtorch_cuda.so beside it: torch-sys then links no CUDA library.
    echo 'INPUT ( AS_NEEDED ( libtorch_cpu.so libc10.so ) )' >"$tmp/out/torch/lib/libtorch.so"
fi
echo "$TORCH" >"$tmp/out/torch/build-version"   # torch-sys checks this
touch "$tmp/out/.complete"
chmod 755 "$tmp/out"
rm -rf "$dest"
mv "$tmp/out" "$dest"
if [ -z "${SPEECHVERSE_KEEP_DOWNLOADS:-}" ]; then
    while IFS= read -r wheel; do rm -f "$wheel"; done <"$cache/libtorch/.wheels.$$"
fi
point
