#!/bin/sh
# There: takes the slices that this call carried (.gpu/NAME.part-*, .gpu/NAME.sha256), and unpacks each NAME whose slices
# have all come, in this call or an earlier one. What does not match its sum stops it. Safe to run again.
#   scripts/gpu/join.sh
# Settings: GPU_STORE (/tmp/speechverse-gpu), where everything is unpacked: bin/, models/, data/.
set -eu

root=$(CDPATH='' cd -- "$(dirname -- "$0")/../.." && pwd)
store=${GPU_STORE:-/tmp/speechverse-gpu}
mkdir -p "$store/slices"
for file in "$root"/.gpu/*.sha256 "$root"/.gpu/*.part-*; do
    [ ! -f "$file" ] || cp -f "$file" "$store/slices/"
done
cd "$store/slices"
for sums in *.sha256; do
    [ -f "$sums" ] || continue
    name=${sums%.sha256}
    if cmp -s "$sums" "../$name.joined"; then
        rm -f "$name".part-*
        continue
    fi
    slices=$(awk '{ print $2 }' "$sums")
    missing=0
    for slice in $slices; do
        [ -f "$slice" ] || missing=$((missing + 1))
    done
    if [ "$missing" != 0 ]; then
        echo "$name: $missing slices are yet to come"
        continue
    fi
    sha256sum --quiet -c "$sums" || { echo "join: $name did not arrive as it was packed; carry it again" >&2; exit 1; }
    # shellcheck disable=SC2086
    cat $slices | tar -xz -C "$store"
    cp "$sums" "../$name.joined"
    # shellcheck disable=SC2086
    rm -f $slices
    echo "$name: unpacked into $store"
done
