"""Spoken questions with short answers: speaks phrases/questions.txt and sums, and writes question_SPLIT.jsonl.

    python scripts/data/speak_questions.py --out data/manifests --hibari DIR --kokoro DIR --joe DIR --part train --engine hibari
    python scripts/data/speak_questions.py ... --part valid;  ... --part test;  ... --part lists

A question is in train, valid or test by the hash of its words: what is tested is known from other wordings or with other numbers, never from the same sentence. Test voices
are never used in training. It may be stopped and started again.
"""

import argparse
import collections
import json
import pathlib
import random

from real_speech import write_manifest
from speak_slurp import ENGINES, number, speak
from text import normalise, number_words
from voices import HELD_OUT, HELD_OUT_PIPER, Voices


def questions(held):
    """Question, answer and split of everything that can be asked; held-out texts are left out."""
    pairs = []
    lines = [line for line in open(pathlib.Path(__file__).parent / "phrases/questions.txt", encoding="utf8") if not line.startswith("#")]
    for block in "".join(lines).strip().split("\n\n"):
        wordings, facts = block.split("\n")
        for fact in facts.split("|"):
            x, answer = (part.strip() for part in fact.split("="))
            pairs += [(wording.strip().replace("{x}", x), answer) for wording in wordings.split("|")]
    for a in range(11):
        for b in range(11):
            A, B = number_words(a), number_words(b)
            pairs += [(f"what is {A} plus {B}?", number_words(a + b)), (f"add {B} to {A}", number_words(a + b))]
            if a >= b:
                pairs += [(f"what is {A} minus {B}?", number_words(a - b)), (f"how much is {A} minus {B}?", number_words(a - b))]
    rows = []
    for spoken, answer in pairs:
        text = normalise(spoken)
        split = ["test", "valid"][number("test/" + text, 20)] if number("test/" + text, 20) < 2 else "train"
        if text not in held:
            rows.append(dict(text=text, spoken=spoken, answer=answer, split=split))
    return sorted(rows, key=lambda row: number("order/" + row["text"], 1 << 40))


def write_lists(out, rows):
    planned = {row["text"] for row in rows}
    found = collections.defaultdict(list)
    for path in sorted(out.glob("questions.*.list")):
        for row in (json.loads(l) for l in open(path, encoding="utf8") if l.endswith("}\n")):
            if row["text"] not in planned:
                continue
            base = dict(audio_filepath=row["audio_filepath"], duration=row["duration"], text=row["text"], voice=row["voice"], domain="questions", split=row["split"], source="own questions, synthetic voice")
            found["question", row["split"]].append(base | dict(task="question", target=row["answer"]))
            found["joint_question", row["split"]].append(base | dict(task="asr,question", targets=dict(asr=row["text"], question=row["answer"])))
    for (name, split), rows in sorted(found.items()):
        random.Random(5).shuffle(rows)
        write_manifest(out / f"{name}_{split}.jsonl", rows)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=pathlib.Path, required=True)
    parser.add_argument("--part", choices=["train", "valid", "test", "lists"], required=True)
    parser.add_argument("--engine", choices=list(ENGINES), default="hibari", help="for train")
    parser.add_argument("--hibari", type=pathlib.Path)
    parser.add_argument("--kokoro", type=pathlib.Path)
    parser.add_argument("--joe", type=pathlib.Path)
    parser.add_argument("--held", type=pathlib.Path, nargs="*", default=[], help="manifests whose texts are kept out of training")
    args = parser.parse_args()
    held = {json.loads(l).get("text") for path in args.held for l in open(path, encoding="utf8")}
    every = questions(held)
    if args.part != "lists":
        args.voices = Voices(args.hibari, args.kokoro, args.joe)
        rows = [r for r in every if r["split"] == args.part]
        voices = {"train": ENGINES[args.engine], "valid": ["hibari", "flite_slt"], "test": [*HELD_OUT, HELD_OUT_PIPER]}[args.part]
        name = f"questions.{args.part}.{args.engine}.list" if args.part == "train" else f"questions.{args.part}.list"
        speak(args, args.part, rows, voices, args.out / name)
    write_lists(args.out, every)


if __name__ == "__main__":
    main()
