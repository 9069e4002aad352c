"""Second forms of recorded clips, for a CTC head that fits its few training voices too well: played faster or slower (pitch and formants move with it, as
between an adult and a child), without the silence at their edges, now and then two clips of one speaker joined by a short pause (as the windows of long
audio are).

    pip install soxr
    python scripts/data/perturb_clips.py --train data/manifests/asr_train.jsonl --domain librispeech speechocean762 --out data/manifests

Writes asr_NAME_train.jsonl (asr_perturbed_train.jsonl) and the clips beside it. The same seed gives the same clips.
"""

import argparse
import collections
import json
import pathlib
import random

import numpy as np
import soundfile
import soxr
from real_speech import write_manifest

RATE = 16000
SECONDS_MOST = 17.0


def trimmed(samples, rng):
    """Without the quiet edges: 20 ms frames more than 35 dB below the loudest; 0 to 80 ms are left."""
    frames = samples[: len(samples) // 320 * 320].reshape(-1, 320)
    if not len(frames):
        return samples
    level = 10 * np.log10((frames**2).mean(1) + 1e-10)
    loud = np.flatnonzero(level > level.max() - 35)
    margin = rng.randint(0, 4)
    return samples[max(0, loud[0] - margin) * 320 : (loud[-1] + 1 + margin) * 320]


def perturbed(path, rng):
    samples, rate = soundfile.read(path, dtype="float32", always_2d=True)
    samples = samples.mean(1)
    speed = rng.choice([rng.uniform(0.8, 0.93), rng.uniform(1.07, 1.22)])
    samples = soxr.resample(samples, rate * speed, RATE)
    return trimmed(samples, rng) if rng.random() < 0.6 else samples


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--train", type=pathlib.Path, required=True)
    parser.add_argument("--domain", nargs="+", required=True, help="rows of these domains")
    parser.add_argument("--joined", type=float, default=0.25, help="share of clips that are followed by another of the same speaker")
    parser.add_argument("--out", type=pathlib.Path, required=True)
    parser.add_argument("--name", default="perturbed", help="of the manifest and the folder: a third form needs another name and seed")
    parser.add_argument("--seed", type=int, default=17)
    args = parser.parse_args()
    rng = random.Random(args.seed)
    rows = [json.loads(line) for line in open(args.train, encoding="utf8")]
    rows = [row for row in rows if row.get("domain") in args.domain and (row.get("text") or "").strip()]
    by_speaker = collections.defaultdict(list)
    for row in rows:
        by_speaker[row.get("voice")].append(row)
    folder = args.out / "audio" / args.name
    folder.mkdir(parents=True, exist_ok=True)
    made = []
    for number, row in enumerate(rows):
        parts = [row]
        if row.get("voice") and rng.random() < args.joined:
            parts.append(rng.choice(by_speaker[row["voice"]]))
        pieces = []
        for part in parts:
            if pieces:
                pieces.append(np.zeros(int(RATE * rng.uniform(0.1, 0.6)), np.float32))
            pieces.append(perturbed(args.train.parent / part["audio_filepath"], rng))
        if sum(map(len, pieces)) > SECONDS_MOST * RATE:
            parts, pieces = parts[:1], pieces[:1]
        samples = np.concatenate(pieces)
        if len(samples) > SECONDS_MOST * RATE:
            continue
        path = f"audio/{args.name}/{number:06d}.flac"
        soundfile.write(args.out / path, np.clip(samples, -1, 1), RATE)
        row = dict(row, audio_filepath=path, duration=round(len(samples) / RATE, 3), text=" ".join(part["text"].strip() for part in parts))
        made.append(row | dict(domain=f"{row['domain']}: perturbed", split="train"))
    write_manifest(args.out / f"asr_{args.name}_train.jsonl", made)
    print(len(made), "clips,", round(sum(row["duration"] for row in made) / 3600, 2), "h")


if __name__ == "__main__":
    main()
