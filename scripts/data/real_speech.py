"""Test sets of recorded human speech: asterisk prompts (Debian asterisk-core-sounds-en, -g722) and LibriVox (pocketsphinx-testdata).

    python scripts/data/real_speech.py --out data/demo

Writes OUT/asterisk.jsonl, OUT/librivox.jsonl and the clips as 16 kHz WAV. Test only: no text of these is ever spoken in training.
With `--fixtures tests/fixtures/speech` it also writes the eight clips and transcripts.jsonl that the repository carries.
"""

import argparse
import gzip
import json
import pathlib
import random
import re
import wave

import numpy as np

from text import normalise

ASTERISK_TEXTS = pathlib.Path("/usr/share/doc/asterisk-core-sounds-en/core-sounds-en.txt.gz")
ASTERISK_SOUNDS = pathlib.Path("/usr/share/asterisk/sounds/en_US_f_Allison")
LIBRIVOX = pathlib.Path("/usr/share/pocketsphinx/test/data/librivox")
# The prompts that stand among the committed clips (CC-BY-SA-3.0, Allison Smith).
FIXTURE_PROMPTS = ["vm-nonumber", "please-try-call-later", "tt-weasels"]
LIBRIVOX_TEXTS = LIBRIVOX / "transcription"


def asterisk_lines(path):
    """(prompt id, text) of the prompt list; sounds that are not speech (`[beep]`) are left out."""
    for line in gzip.open(path, "rt", encoding="utf8", errors="replace"):
        if not line.startswith(";") and ":" in line:
            key, text = (part.strip() for part in line.split(":", 1))
            if text and not re.search(r"[\[(<]", text):
                yield key, text


def librivox_lines(path):
    """(clip id, normal text) of the pocketsphinx transcription file."""
    for line in open(path, encoding="utf8"):
        match = re.match(r"<s> (.*?) </s> \((.*)\)", line)
        if match:
            # The book and the reader say "a more amiable woman"; the package's transcript slips there.
            yield match[2], normalise(match[1]).replace("a more a amiable", "a more amiable")


def decode_g722(path):
    """16 kHz mono int16 samples of a raw G.722 file."""
    import av

    with av.open(str(path), format="g722") as container:
        frames = [f.to_ndarray().reshape(-1) for f in container.decode(audio=0)]
    return np.concatenate(frames).astype(np.int16)


def write_wav(path, samples, rate=16000):
    """Writes int16 samples as a mono WAV file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with wave.open(str(path), "wb") as w:
        w.setnchannels(1)
        w.setsampwidth(2)
        w.setframerate(rate)
        w.writeframes(np.asarray(samples, "<i2").tobytes())


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path("data/demo"))
    parser.add_argument("--asterisk", type=int, default=200, help="how many prompts")
    parser.add_argument("--fixtures", type=pathlib.Path, help="also write the committed clips to this folder")
    args = parser.parse_args()

    prompts = [(k, t, normalise(t)) for k, t in asterisk_lines(ASTERISK_TEXTS)]
    prompts = [p for p in prompts if p[2] and len(p[2].split()) >= 3 and (ASTERISK_SOUNDS / f"{p[0]}.g722").exists()]
    random.Random(5).shuffle(prompts)
    rows = []
    for key, text, normal in prompts:
        samples = decode_g722(ASTERISK_SOUNDS / f"{key}.g722")
        if len(rows) == args.asterisk:
            break
        if len(samples) > 12 * 16000:
            continue
        rel = f"audio/asterisk/{key.replace('/', '-')}.wav"
        write_wav(args.out / rel, samples)
        rows.append(dict(audio_filepath=rel, duration=round(len(samples) / 16000, 3), text=normal, task="asr", voice="allison-smith", domain="asterisk", split="test", source="asterisk-core-sounds-en 1.6.1"))
    write_manifest(args.out / "asterisk.jsonl", rows)

    rows = []
    for key, normal in librivox_lines(LIBRIVOX_TEXTS):
        samples = read_wav(LIBRIVOX / f"{key}.wav")
        rel = f"audio/librivox/librivox-{key[-4:]}.wav"
        write_wav(args.out / rel, samples)
        rows.append(dict(audio_filepath=rel, duration=round(len(samples) / 16000, 3), text=normal, task="asr", voice="librivox", domain="librivox", split="test", source="pocketsphinx-testdata 0.8+5prealpha+1"))
    write_manifest(args.out / "librivox.jsonl", rows)
    if args.fixtures:
        write_fixtures(args, rows, dict(asterisk_lines(ASTERISK_TEXTS)))


def write_fixtures(args, librivox, prompts):
    """The clips that the repository carries, and their manifest."""
    rows = []
    for r in librivox:
        name = pathlib.Path(r["audio_filepath"]).name
        write_wav(args.fixtures / name, read_wav(args.out / r["audio_filepath"]))
        rows.append(r | dict(audio_filepath=name, licence="public domain (LibriVox)"))
    for key in FIXTURE_PROMPTS:
        samples, name = decode_g722(ASTERISK_SOUNDS / f"{key}.g722"), f"asterisk-{key}.wav"
        write_wav(args.fixtures / name, samples)
        rows.append(
            dict(
                audio_filepath=name, duration=round(len(samples) / 16000, 3), text=normalise(prompts[key]), task="asr", voice="allison-smith",
                domain="asterisk", split="test", source="asterisk-core-sounds-en 1.6.1", licence="CC-BY-SA-3.0 (Allison Smith)",
            )
        )
    write_manifest(args.fixtures / "transcripts.jsonl", rows)


def read_wav(path):
    """The int16 samples of a 16 kHz mono WAV file."""
    with wave.open(str(path)) as w:
        assert w.getframerate() == 16000 and w.getnchannels() == 1 and w.getsampwidth() == 2, path
        return np.frombuffer(w.readframes(w.getnframes()), "<i2")


def write_manifest(path, rows):
    """Writes the JSONL beside the old one and renames it, so that a reader sees a whole file."""
    part = path.with_suffix(".part")
    part.write_text("".join(json.dumps(r, ensure_ascii=False) + "\n" for r in rows), encoding="utf8")
    part.replace(path)
    print(path, len(rows), "clips", round(sum(r["duration"] for r in rows) / 60, 1), "min")


if __name__ == "__main__":
    main()
