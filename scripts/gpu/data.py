#!/usr/bin/env python3
"""The demo's training speech in a sixth of its bytes, for a machine to which everything must be carried.

  data.py FROM TO [ROWS]

FROM holds train.jsonl, valid.jsonl and their recordings (docs/DATA.md). TO gets both manifests and the recordings as Ogg
Vorbis; with ROWS, only so many of the training rows, spread over the file. Needs soundfile.
"""

import json
import pathlib
import sys

import soundfile


def main():
    if len(sys.argv) not in (3, 4):
        sys.exit(__doc__.strip())
    source, out = map(pathlib.Path, sys.argv[1:3])
    for name in ("train", "valid"):
        rows = [json.loads(line) for line in (source / f"{name}.jsonl").read_text().splitlines()]
        if name == "train" and len(sys.argv) == 4:
            wanted = min(int(sys.argv[3]), len(rows))
            rows = [rows[at * len(rows) // wanted] for at in range(wanted)]
        (out / name).mkdir(parents=True, exist_ok=True)
        with (out / f"{name}.jsonl").open("w") as manifest:
            for at, row in enumerate(rows):
                samples, rate = soundfile.read(source / row["audio_filepath"], dtype="float32")
                row["audio_filepath"] = f"{name}/{at:05}.ogg"
                soundfile.write(out / row["audio_filepath"], samples, rate, format="OGG", subtype="VORBIS")
                manifest.write(json.dumps(row) + "\n")


if __name__ == "__main__":
    main()
