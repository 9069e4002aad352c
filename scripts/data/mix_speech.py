"""Clips made of other clips: speaker counting, silence around speech, sounds without speech.

    python scripts/data/mix_speech.py --manifests data/manifests --out data/manifests

Reads asr_SPLIT.jsonl and asr_empty_SPLIT.jsonl of `speechverse data import`. Writes, for train, valid and test, FLAC clips under OUT/audio and

    speaker_count_SPLIT.jsonl  one to three voices of one split in turns, some of them overlapping
    asr_padded_SPLIT.jsonl     a clip with 2 to 9 s of silence before it, 1 to 6 s after it, or a pause of 1.5 to 3 s inside
    asr_silence_SPLIT.jsonl    silence, noise, hum, tones, or recorded sounds in silence: the transcript is empty

A clip of a split is made of clips of that split only, so no test voice is heard in training. Seeded: the same in every run.
"""

import argparse
import collections
import functools
import json
import pathlib
import random

import numpy as np
import soundfile
import soxr

from real_speech import write_manifest

RATE = 16000
# Clips with several speakers, padded, of silence, further ones with several speakers, and of these such whose voices are played faster or slower (drawn
# last: the others stay what they were).
COUNTS = {"train": (1800, 600, 300, 3600, 8000), "valid": (120, 60, 50, 0, 0), "test": (150, 100, 60, 0, 0)}
NUMBERS = ["one", "two", "three"]
# Recordings of one person, whose name is known.
SOURCES = ["librispeech", "speechocean762", "an4"]


@functools.lru_cache(maxsize=400)
def load(path):
    """The float32 samples of a clip, 16 kHz mono."""
    samples, rate = soundfile.read(path, dtype="float32", always_2d=True)
    samples = samples.mean(1)
    return samples if rate == RATE else soxr.resample(samples, rate, RATE).astype(np.float32)


def level(samples):
    """Root mean square of the louder half of 20 ms frames."""
    frame = RATE // 50
    count = max(1, len(samples) // frame)
    power = np.sort((samples[: count * frame].reshape(count, -1) ** 2).mean(1))[count // 2 :]
    return float(np.sqrt(power.mean())) if len(power) else 0.0


def faded(samples, seconds=0.01):
    """Without clicks at the ends."""
    count = min(int(seconds * RATE), len(samples) // 2)
    ramp = np.linspace(0, 1, count, dtype=np.float32)
    out = samples.copy()
    out[:count] *= ramp
    out[len(out) - count :] *= ramp[::-1]
    return out


def turn(rows, rng, speed, low=1.2, high=3.5):
    """A stretch of a random clip of a voice, at one loudness; `speed` moves pitch and formants, so it makes another voice."""
    samples = load(rng.choice(rows)["audio_filepath"])
    if speed != 1:
        samples = soxr.resample(samples, RATE * speed, RATE).astype(np.float32)
    length = min(len(samples), int(rng.uniform(low, high) * RATE))
    begin = rng.randrange(len(samples) - length + 1)
    piece = faded(samples[begin : begin + length])
    return piece * (0.08 / max(level(piece), 1e-4))


def speakers_clip(voices, rng, varied):
    """(samples, count, voices) of a conversation. `voices`: clips by source and voice; `varied`: each played at a speed of its own."""
    count = rng.randint(1, 3)
    source = rng.choices(SOURCES, [5, 5, 1])[0]
    pool = [(source, v) for v in voices[source]]
    if rng.random() < 0.3 or len(pool) < count:
        pool = [(s, v) for s in SOURCES for v in voices[s]]
    chosen = rng.sample(pool, count)
    speeds = [rng.uniform(0.84, 1.19) if varied else 1 for _ in chosen]
    gains = [10 ** (rng.uniform(-4, 4) / 20) for _ in chosen]
    order = list(range(count))
    while len(order) < rng.randint(max(2, count), 5):
        order.append(rng.randrange(count))
    rng.shuffle(order)
    out, last = np.zeros(int(rng.uniform(0, 0.3) * RATE), np.float32), None
    for who in order:
        source, voice = chosen[who]
        piece = turn(voices[source][voice], rng, speeds[who]) * gains[who]
        overlap = 0 if who == last or last is None or rng.random() < 0.6 else int(min(rng.uniform(0.1, 1.0) * RATE, len(piece) / 2, len(out) / 2))
        gap = 0 if overlap else int(rng.uniform(0, 0.6) * RATE)
        joined = np.zeros(len(out) - overlap + gap + len(piece), np.float32)
        joined[: len(out)] += out
        joined[len(joined) - len(piece) :] += piece
        out, last = joined, who
    return out[: 14 * RATE], count, [v for _, v in chosen]


def quiet(seconds, rng):
    """Digital silence, or a noise floor of -50 to -70 dB."""
    count = int(seconds * RATE)
    if rng.random() < 0.3:
        return np.zeros(count, np.float32)
    return coloured(count, rng) * np.float32(10 ** (rng.uniform(-70, -50) / 20))


def coloured(count, rng):
    """Noise of unit power whose spectrum falls with a random slope."""
    noise = np.random.default_rng(rng.randrange(1 << 31)).standard_normal(count)
    spectrum = np.fft.rfft(noise) / np.maximum(np.arange(count // 2 + 1), 20) ** rng.choice([0.0, 0.5, 1.0])
    noise = np.fft.irfft(spectrum, count)
    return (noise / max(np.sqrt((noise**2).mean()), 1e-9)).astype(np.float32)


def mixed(args, split, voices, rng, number, varied=False):
    """The row of one clip with several speakers, which is written."""
    samples, count, who = speakers_clip(voices, rng, varied)
    path, seconds = save(args, f"speaker_count/{split}/{number:05d}.flac", samples)
    return dict(audio_filepath=path, duration=seconds, task="speaker_count", target=NUMBERS[count - 1], labels=NUMBERS, voices=who, domain="mixed", split=split, source="mixed from librispeech, speechocean762, an4")


def padded_clip(rows, by_voice, rng):
    """(samples, text, how, row) of a clip with silence before it, after it or inside."""
    row = rng.choice(rows)
    samples = load(row["audio_filepath"])
    how = rng.choice(["before", "after", "inside"])
    if how == "before":
        return np.concatenate([quiet(rng.uniform(2, 9), rng), faded(samples)]), row["text"], how, row
    if how == "after":
        return np.concatenate([faded(samples), quiet(rng.uniform(1, 6), rng)]), row["text"], how, row
    other = rng.choice(by_voice[row["voice"]])
    pieces = [faded(samples), quiet(rng.uniform(1.5, 3), rng), faded(load(other["audio_filepath"]))]
    return np.concatenate(pieces), f"{row['text']} {other['text']}", how, row


def silence_clip(sounds, rng):
    """(samples, what) of a clip in which nobody says a word."""
    seconds = rng.uniform(0.6, 10)
    count = int(seconds * RATE)
    time = np.arange(count, dtype=np.float32) / RATE
    what = rng.choice(["silence", "noise", "pulsed noise", "hum", "tone", "sounds", "sounds"])
    loud = 10 ** (rng.uniform(-50, -14) / 20)
    if what == "silence":
        return quiet(seconds, rng), what
    if what == "noise":
        return coloured(count, rng) * loud, what
    if what == "pulsed noise":  # at the pace of syllables
        return coloured(count, rng) * loud * (0.5 + 0.5 * np.sin(2 * np.pi * rng.uniform(2, 7) * time)), what
    if what == "hum":
        base = rng.choice([50, 60])
        return loud * sum(np.sin(2 * np.pi * base * k * time) / k for k in range(1, rng.randint(2, 8))) + quiet(seconds, rng), what
    if what == "tone":
        low, high = rng.uniform(200, 1500), rng.uniform(200, 3000)
        beeps = (np.sin(2 * np.pi * rng.uniform(0.5, 4) * time) > rng.uniform(-1, 0.5)).astype(np.float32)
        return loud * beeps * np.sin(2 * np.pi * np.cumsum(np.linspace(low, high, count)) / RATE), what
    out = quiet(seconds, rng)
    for _ in range(rng.randint(1, 3)):
        piece = faded(load(rng.choice(sounds)["audio_filepath"])[:count])
        begin = rng.randrange(count - len(piece) + 1)
        out[begin : begin + len(piece)] += piece * np.float32(10 ** (rng.uniform(-20, 3) / 20))
    return out, what


def save(args, name, samples):
    """Writes a FLAC clip and gives its path relative to OUT, and its seconds."""
    path = args.out / "audio" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    peak = max(float(np.abs(samples).max()), 1e-9)
    if peak > 0.99:
        samples = samples * (0.99 / peak)
    soundfile.write(path, samples.astype(np.float32), RATE, subtype="PCM_16")
    return f"audio/{name}", round(len(samples) / RATE, 3)


def read(path):
    """The rows of a manifest, audio paths made whole."""
    rows = [json.loads(line) for line in open(path, encoding="utf8")]
    return [r | dict(audio_filepath=str(path.parent / r["audio_filepath"])) for r in rows]


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--manifests", type=pathlib.Path, required=True)
    parser.add_argument("--out", type=pathlib.Path, required=True)
    parser.add_argument("--split", choices=list(COUNTS), nargs="*", default=list(COUNTS))
    args = parser.parse_args()
    for split in args.split:
        mixes, pads, silences, more, varied = COUNTS[split]
        rng = random.Random(f"mix-{split}")
        rows = [r for r in read(args.manifests / f"asr_{split}.jsonl") if r["domain"] in SOURCES]
        voices = collections.defaultdict(lambda: collections.defaultdict(list))
        by_voice = collections.defaultdict(list)
        short = [r for r in rows if r["duration"] <= 6]
        for r in rows:
            voices[r["domain"]][r["voice"]].append(r)
        for r in short:
            by_voice[r["voice"]].append(r)
        sounds = [r for r in read(args.manifests / f"asr_empty_{split}.jsonl") if r["domain"] == "non-speech"]

        counted = [mixed(args, split, voices, rng, number) for number in range(mixes)]

        out = []
        for number in range(pads):
            samples, text, how, row = padded_clip(short, by_voice, rng)
            path, seconds = save(args, f"asr_padded/{split}/{number:05d}.flac", samples)
            seen = {"words_seen_in_train": True} if row.get("words_seen_in_train") else {}
            out.append(dict(audio_filepath=path, duration=seconds, task="asr", text=text, voice=row["voice"], domain=f"padded-{how}", split=split, source=row.get("source") or row["origin"], **seen))
        write_manifest(args.out / f"asr_padded_{split}.jsonl", out)

        out = []
        for number in range(silences):
            samples, what = silence_clip(sounds, rng)
            path, seconds = save(args, f"asr_silence/{split}/{number:05d}.flac", samples)
            out.append(dict(audio_filepath=path, duration=seconds, task="asr", text="", no_speech=True, domain=f"made: {what}", split=split, source="made"))
        write_manifest(args.out / f"asr_silence_{split}.jsonl", out)

        counted += [mixed(args, split, voices, rng, number) for number in range(mixes, mixes + more)]
        counted += [mixed(args, split, voices, rng, number, varied=True) for number in range(mixes + more, mixes + more + varied)]
        write_manifest(args.out / f"speaker_count_{split}.jsonl", counted)


if __name__ == "__main__":
    main()
