"""Recorded human speech without labels, for `speechverse pretrain`: telephone prompts and game dialogues of Debian packages.

    for p in asterisk-core-sounds-{en,es,fr,it,ru}-g722 fillets-ng-data-{cs,nl}; do apt-get download $p; dpkg -x ${p}_*.deb debs; done
    python scripts/data/pretrain_speech.py --debs debs --out data/pretrain

Writes 16 kHz WAV clips and three manifests (`audio_filepath`, `duration`, `source`): train.jsonl; valid.jsonl, held-out clips of the
same voices (one in twenty, by hash of the name); unseen.jsonl, a voice and a language that are not in training (the Russian prompts).
Asterisk prompts: CC-BY-SA-3.0; Fish Fillets dialogues: GPL-2.0-or-later. Nothing of it is redistributed. Needs numpy, av, soundfile, librosa.
"""

import argparse
import hashlib
import json
import pathlib

import librosa
import soundfile

from real_speech import decode_g722, write_wav

RATE = 16000
UNSEEN = "asterisk-ru"
SECONDS = (0.5, 30.0)
# Sounds of the packages that are no speech.
NO_SPEECH = ("silence/", "beep", "tone", "ascending", "descending", "conf-enteringno")


def prompts(debs):
    """(source, name, path) of every G.722 prompt."""
    for folder in sorted((debs / "usr/share/asterisk/sounds").iterdir()):
        if folder.is_symlink() or not folder.is_dir():
            continue
        for path in sorted(folder.rglob("*.g722")):
            name = str(path.relative_to(folder))[: -len(".g722")]
            if not name.startswith(NO_SPEECH):
                yield f"asterisk-{folder.name[:2]}", name, path


def dialogues(debs):
    """(source, name, path) of every spoken line of the game."""
    root = debs / "usr/share/games/fillets-ng/sound"
    for language in ("cs", "nl"):
        for path in sorted(root.glob(f"*/{language}/*.ogg")):
            yield f"fillets-{language}", f"{path.parent.parent.name}/{path.stem}", path


def samples(path):
    """16 kHz mono int16 samples."""
    if path.suffix == ".g722":
        return decode_g722(path) if path.stat().st_size else []
    signal, rate = soundfile.read(path, dtype="float32", always_2d=True)
    signal = librosa.resample(signal.mean(axis=1), orig_sr=rate, target_sr=RATE)
    return (signal.clip(-1, 1) * 32767).astype("int16")


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--debs", type=pathlib.Path, required=True, help="folder into which the packages were unpacked")
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path("data/pretrain"))
    args = parser.parse_args()
    manifests = {"train": [], "valid": [], "unseen": []}
    for source, name, path in [*prompts(args.debs), *dialogues(args.debs)]:
        signal = samples(path)
        seconds = len(signal) / RATE
        if not SECONDS[0] <= seconds <= SECONDS[1]:
            continue
        clip = pathlib.Path("audio") / source / f"{name.replace('/', '-')}.wav"
        write_wav(args.out / clip, signal)
        bucket = hashlib.sha256(f"{source}/{name}".encode()).digest()[0]
        split = "unseen" if source == UNSEEN else "valid" if bucket < 256 // 20 else "train"
        manifests[split].append({"audio_filepath": str(clip), "duration": round(seconds, 3), "source": source})
    for split, rows in manifests.items():
        with open(args.out / f"{split}.jsonl", "w") as file:
            file.writelines(json.dumps(row) + "\n" for row in rows)
        minutes = {s: sum(r["duration"] for r in rows if r["source"] == s) / 60 for s in sorted({r["source"] for r in rows})}
        print(split, len(rows), "clips", f"{sum(minutes.values()):.1f} min", {s: round(m, 1) for s, m in minutes.items()})


if __name__ == "__main__":
    main()
