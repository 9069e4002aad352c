#!/bin/sh
# Compiles every package of the workspace without its features, and with each of its features alone: a feature that
# forgets a dependency or a `cfg` only shows that way. Features that need a machine of their own are left out: none today.
#
#   scripts/check-features.sh
set -eu
cd "$(dirname -- "$0")/.."
cargo=${CARGO:-cargo}
"$cargo" metadata --no-deps --format-version 1 --locked | python3 -c '
import json, sys
for package in json.load(sys.stdin)["packages"]:
    features = sorted(name for name in package["features"] if name != "default")
    for feature in ([""] if features else []) + features:
        print(package["name"], feature)
' | while read -r package feature; do
    echo "$package with ${feature:-no feature}"
    "$cargo" check -q --locked -p "$package" --lib --no-default-features ${feature:+--features "$feature"} </dev/null
done
