"""Speaks SLURP's sentences (CC BY 4.0) for intent classification and slot filling; writes manifests.

    python scripts/data/speak_slurp.py --slurp DIR --out data/manifests --hibari DIR --kokoro DIR --joe DIR --part test
    python scripts/data/speak_slurp.py ... --part train --engine hibari      (flite, kokoro: another voice for every sentence)
    python scripts/data/speak_slurp.py ... --nlu DIR --part more --engine hibari

--slurp: dataset/slurp of github.com/pswietojanski/slurp (devel.jsonl, test.jsonl). Train and valid sentences are those of devel, test sentences those of
test; test voices are never used in training. --nlu: github.com/xliuhw/NLU-Evaluation-Data (CC BY 4.0), from which SLURP's intents come: `more` speaks those
of its sentences that have an intent of SLURP and are not in SLURP's devel or test part. It may be stopped and started again. `--part lists` only writes the manifests of
what is spoken:

    asr_slurp, intent, slots_slurp, joint_intent, joint_slots_slurp _SPLIT.jsonl; intent_all_test.jsonl (every intent to choose from)

The speech is synthetic: scores on it say how the sentences are understood, not how people are.
"""

import argparse
import collections
import csv
import hashlib
import json
import pathlib
import random
import re

import soundfile

from real_speech import write_manifest
from speak import RATE, clip, plausible
from text import normalise
from voices import FLITE_TRAIN, HELD_OUT, HELD_OUT_PIPER, KOKORO_TRAIN, Voices

ENGINES = {"hibari": ["hibari"], "flite": FLITE_TRAIN, "kokoro": KOKORO_TRAIN}
TEST_SENTENCES = 300
# The paper's setting: ten intents, four slots.
INTENTS, SLOTS = 10, ["date", "place_name", "person", "time"]


def number(key, count):
    """A number below `count` that depends on `key` alone."""
    return int(hashlib.sha256(key.encode()).hexdigest()[:12], 16) % count


def shuffled(key, items):
    return sorted(items, key=lambda item: hashlib.sha256(f"{key}/{item}".encode()).hexdigest())


def slurp_rows(folder, name):
    """(text, intent, slots) of a part, in SLURP's own form or in one with `text` and `slots`."""
    path = folder / f"{name}.jsonl"
    for line in open(path if path.exists() else folder / f"slurp-{name}.jsonl", encoding="utf8"):
        row = json.loads(line)
        text, slots = row.get("text", row.get("sentence")), row.get("slots")
        if slots is None:
            words = [t["surface"] for t in row["tokens"]]
            value = lambda span: re.sub(r" (?=n?')", "", " ".join(words[i] for i in span))  # `jean 's` was cut in two
            slots = [dict(type=e["type"], value=value(e["span"])) for e in row["entities"]]
        # A malformed intent has no scenario in its name.
        if row["intent"] == f"{row['scenario']}_{row['action']}":
            yield text, row["intent"], [(s["type"], s["value"]) for s in slots]


def nlu_rows(folder):
    """(text, intent, slots) of every sentence of NLU-Evaluation-Data's cross validation."""
    for path in sorted(folder.glob("CrossValidation/autoGeneFromRealAnno/**/*.csv")):
        for row in csv.DictReader(open(path, encoding="utf8", errors="replace"), delimiter=";"):
            slots = re.findall(r"\[\s*([a-z_]+)\s*:\s*([^\]]*)\]", row["answer_annotation"] or "")
            yield row["answer_from_anno"] or "", f"{row['scenario']}_{row['intent']}", slots


def sentences(args, held, learned):
    """Distinct sentences with split (`more`: training sentences that are not SLURP's); held-out texts are left out of training, learned ones of the test."""
    seen, out = set(), []
    sources = [("test", slurp_rows(args.slurp, "test")), ("train", slurp_rows(args.slurp, "devel"))]
    if args.nlu:
        sources.append(("more", nlu_rows(args.nlu)))
    for part, rows in sources:
        intents = {r["intent"] for r in out if r["part"] == "train"}
        for text, intent, slots in rows:
            text = normalise(text)
            if not text or text in seen or text in (learned if part == "test" else held) or (part == "more" and (intent not in intents or not 2 <= len(text.split()) <= 16)):
                continue
            seen.add(text)
            slots = [(kind, v) for kind, value in slots if (v := normalise(value)) and v in text]
            valid = part != "test" and number(text, 20) == 0
            out.append(dict(text=text, intent=intent, slots=slots, part=part, split="valid" if valid else "train" if part == "more" else part))
    return out


def speak(args, part, rows, voices, list_path):
    """Adds a clip of every sentence that has none in the list yet."""
    done = {json.loads(l)["text"] for l in open(list_path, encoding="utf8")} if list_path.exists() else set()
    with open(list_path, "a", encoding="utf8") as log:
        for row in rows:
            if row["text"] in done:
                continue
            voice = voices[number("voice/" + row["text"], len(voices))]
            try:
                samples, facts = clip(args.voices, voice, row.get("spoken", row["text"]), random.Random(f"{voice}/{row['text']}"), part != "test")
            except Exception as error:  # an engine may stumble over one sentence
                print("failed", voice, row["text"], error, flush=True)
                continue
            if not plausible(samples, row["text"]):
                continue
            name = hashlib.sha256(row["text"].encode()).hexdigest()[:12]
            path = f"audio/spoken/{list_path.stem}/{name}-{voice}.flac"
            (args.out / path).parent.mkdir(parents=True, exist_ok=True)
            soundfile.write(args.out / path, samples, RATE)
            log.write(json.dumps(row | facts | dict(audio_filepath=path, duration=round(len(samples) / RATE, 3), voice=voice)) + "\n")
            log.flush()


def speak_sentences(args, rows, name, facts):
    """Speaks sentences for training with the engine of `args`, in an order that depends on their text alone, and writes asr_NAME_train.jsonl with every
    clip that any engine has spoken."""
    args.out.mkdir(parents=True, exist_ok=True)
    rows.sort(key=lambda row: number("order/" + row["text"], 1 << 40))
    args.voices = Voices(args.hibari, args.kokoro)
    speak(args, "train", rows, ENGINES[args.engine], args.out / f"{name}.{args.engine}.list")
    spoken = [json.loads(line) for path in sorted(args.out.glob(f"{name}.*.list")) for line in open(path, encoding="utf8") if line.endswith("}\n")]
    keep = ("audio_filepath", "duration", "text", "voice")
    rows = [{key: row[key] for key in keep} | dict(task="asr", domain=name, split="train") | facts for row in spoken]
    random.Random(5).shuffle(rows)
    write_manifest(args.out / f"asr_{name}_train.jsonl", rows)


def labels_of(row, key, every, top):
    """The intents that a training row offers: mostly ten, sometimes more, the right one among them."""
    if row["intent"] in top and number("top/" + key, 2):
        return shuffled(key, top)
    count = [10] * 7 + [20, 20, len(every)]
    others = [i for i in shuffled(key, every) if i != row["intent"]][: count[number("size/" + key, 10)] - 1]
    return shuffled(key + "/b", [*others, row["intent"]])


def slots_of(row, key, types):
    """The slots that a training row offers, and the answer."""
    own = list(dict.fromkeys(t for t, _ in row["slots"]))
    if number("set/" + key, 2):
        offered = shuffled(key, SLOTS)
    else:
        own = own if number("drop/" + key, 4) else own[:1]
        others = [t for t in shuffled(key, types) if t not in {t for t, _ in row["slots"]}][: max(1, 5 - len(own))]
        offered = shuffled(key + "/b", [*own, *others])
    return offered, answer(row, offered)


def answer(row, offered):
    return " ".join(f"{t} = {v};" for t, v in row["slots"] if t in offered) or "none"


def write_lists(args, plan):
    """The manifests of every clip that is there."""
    every = collections.Counter(r["intent"] for r in plan if r["part"] == "train")
    top = [i for i, _ in every.most_common(INTENTS)]
    every = sorted(i for i, n in every.items() if n >= 2)
    planned = {r["text"] for r in plan}
    types = sorted({t for r in plan if r["part"] == "train" for t, _ in r["slots"]})
    out = collections.defaultdict(list)
    for path in sorted(args.out.glob("slurp.*.list")):
        for row in (json.loads(l) for l in open(path, encoding="utf8") if l.endswith("}\n")):
            if row["text"] not in planned:
                continue
            split, key = row["split"], row["voice"] + row["text"]
            base = dict(audio_filepath=row["audio_filepath"], duration=row["duration"], text=row["text"], voice=row["voice"], domain="slurp", split=split, source="SLURP or NLU-Evaluation-Data text, synthetic voice", licence="text: CC BY 4.0")
            slots, found = (SLOTS, answer(row, SLOTS)) if split == "test" else slots_of(row, key, types)
            offered = labels_of(row, key, every, top) if split != "test" else sorted(top)
            both = lambda task, target: dict(task=f"asr,{task}", targets={"asr": row["text"], task: target})
            out["asr_slurp", split].append(base | dict(task="asr"))
            # Half of the sentences have none of the slots: one in four of them is enough to learn from.
            if found != "none" or split == "test" or number("none/" + key, 4) == 0:
                out["slots_slurp", split].append(base | dict(task="slots", target=found, labels=slots))
                out["joint_slots_slurp", split].append(base | both("slots", found) | dict(labels=slots))
            if row["intent"] in offered and row["intent"] in every:
                out["intent", split].append(base | dict(task="intent", target=row["intent"], labels=offered))
                out["joint_intent", split].append(base | both("intent", row["intent"]) | dict(labels=offered))
            if split == "test" and row["intent"] in every:
                out["intent_all", split].append(base | dict(task="intent", target=row["intent"], labels=every))
    for (name, split), rows in sorted(out.items()):
        random.Random(5).shuffle(rows)
        write_manifest(args.out / f"{name}_{split}.jsonl", rows)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--slurp", type=pathlib.Path, required=True)
    parser.add_argument("--nlu", type=pathlib.Path)
    parser.add_argument("--out", type=pathlib.Path, required=True)
    parser.add_argument("--part", choices=["train", "more", "valid", "test", "lists"], required=True)
    parser.add_argument("--engine", choices=list(ENGINES), default="hibari", help="for train and more")
    parser.add_argument("--hibari", type=pathlib.Path)
    parser.add_argument("--kokoro", type=pathlib.Path)
    parser.add_argument("--joe", type=pathlib.Path)
    parser.add_argument("--held", type=pathlib.Path, nargs="*", default=[], help="manifests whose texts are kept out of training")
    parser.add_argument("--learned", type=pathlib.Path, nargs="*", default=[], help="manifests whose texts are kept out of the test")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    texts = lambda paths: {json.loads(l).get("text") for path in paths for l in open(path, encoding="utf8")}
    plan = sentences(args, texts(args.held), texts(args.learned))
    plan.sort(key=lambda row: number("order/" + row["text"], 1 << 40))
    if args.part != "lists":
        args.voices = Voices(args.hibari, args.kokoro, args.joe)
        if args.part == "test":
            # Half of them have one of the ten intents.
            top = [i for i, _ in collections.Counter(r["intent"] for r in plan if r["part"] == "train").most_common(INTENTS)]
            rows = [r for r in plan if r["part"] == "test"]
            inside, outside = [r for r in rows if r["intent"] in top], [r for r in rows if r["intent"] not in top]
            rows = [r for pair in zip(inside, outside) for r in pair][:TEST_SENTENCES]
            speak(args, "test", rows, [*HELD_OUT, HELD_OUT_PIPER], args.out / "slurp.test.list")
        elif args.part == "valid":
            # What was spoken for training before stays there.
            lists = [path for path in args.out.glob("slurp.*.list") if ".train." in path.name or ".more." in path.name]
            learned = {json.loads(line)["text"] for path in lists for line in open(path, encoding="utf8") if line.endswith("}\n")}
            rows = [r for r in plan if r["split"] == "valid" and r["text"] not in learned]
            speak(args, "valid", rows, ["hibari", "flite_slt", *KOKORO_TRAIN[::3]], args.out / "slurp.valid.all.list")
        else:
            rows = [r for r in plan if r["part"] == args.part and r["split"] == "train"]
            speak(args, args.part, rows, ENGINES[args.engine], args.out / f"slurp.{args.part}.{args.engine}.list")
    write_lists(args, plan)


if __name__ == "__main__":
    main()
