"""The clips of `make demo`'s training cycle, from the sounds without speech of the real recordings; see make_pack.py.

    python scripts/data/sound_clips.py --pack data/real-speech --out tests/fixtures/sounds

Three seconds of each clip, where it is loudest. One clip of each source recording, so that no recording is in both parts.
"""

import argparse
import collections
import hashlib
import json
import pathlib

import numpy as np
import soundfile

RATE = 16000
SECONDS = 3.0
LABELS = {"dog": "dog", "rain": "rain", "clock tick": "clock", "sneezing": "sneeze", "rooster": "rooster"}
LABELLED = 16  # clips of each label that the demo labels
TEST = 5  # and that it asks about before and after
CORRECTED = "esc-143119"  # its answer is corrected, in the place of a label
TAKEN = {"esc-140774"}  # is among tests/fixtures/speech/tasks


def loudest(samples):
    """The loudest SECONDS of a clip, faded at both ends."""
    length = int(SECONDS * RATE)
    energy = np.concatenate([[0.0], np.cumsum(samples.astype(np.float64) ** 2)])
    starts = np.arange(0, max(1, len(samples) - length + 1), RATE // 10)
    start = int(starts[np.argmax(energy[np.minimum(starts + length, len(samples))] - energy[starts])])
    piece = samples[start : start + length].copy()
    fade = np.linspace(0.0, 1.0, RATE // 100, dtype=np.float32)
    piece[: len(fade)] *= fade
    piece[-len(fade) :] *= fade[::-1]
    return piece


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--pack", type=pathlib.Path, required=True)
    parser.add_argument("--out", type=pathlib.Path, required=True)
    args = parser.parse_args()
    folder = args.pack / "non-speech"
    by_label = collections.defaultdict(dict)
    for line in open(folder / "manifest.jsonl", encoding="utf8"):
        row = json.loads(line)
        label = LABELS.get(row["labels"].get("event"))
        if row["origin"] == "ESC-10" and label and row["group"] not in TAKEN:
            by_label[label].setdefault(row["group"], row)
    rows = {"labelled": [], "corrected": [], "test": []}
    for part in rows:
        (args.out / part).mkdir(parents=True, exist_ok=True)
    for label, groups in sorted(by_label.items()):
        # What the pack keeps for tests comes first, so the demo tests with it.
        order = sorted(groups.values(), key=lambda row: (row["split"] != "test", hashlib.sha256(row["group"].encode()).hexdigest()))
        for number, row in enumerate(order[: TEST + LABELLED]):
            part = "test" if number < TEST else "corrected" if row["group"] == CORRECTED else "labelled"
            freesound = row["labels"]["freesound_id"]
            name = f"{part}/{label}-{freesound}.ogg"
            samples, rate = soundfile.read(folder / row["audio_filepath"], dtype="float32")
            assert rate == RATE and samples.ndim == 1
            piece = loudest(samples)
            with soundfile.SoundFile(args.out / name, "w", RATE, 1, format="OGG", subtype="VORBIS", compression_level=0.9) as file:
                file.write(piece)
            rows[part].append(dict(
                audio_filepath=name, duration=round(len(piece) / RATE, 3), task="sound", target=label, labels=sorted(LABELS.values()),
                licence=f"{row['licence']} (ESC-10 by K. J. Piczak, freesound {freesound}; cut to 3 s)", source="ESC-10", part_of_pack=row["split"]))
    for part, found in rows.items():
        (args.out / f"{part}.jsonl").write_text("".join(json.dumps(r) + "\n" for r in found), encoding="utf8")


if __name__ == "__main__":
    main()
