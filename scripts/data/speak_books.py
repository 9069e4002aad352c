"""Speaks sentences of books (public domain) that hold words that the training texts seldom contain, and then plain lists of such words: most errors of the
CTC head on held-out readers are words that occur in fewer than five training sentences.

    pip install wordfreq
    python scripts/data/speak_books.py --books FOLDER --known data/manifests/asr_*_train.jsonl --held data/manifests/held_texts.jsonl ... \
        --out data/manifests --hibari DIR --engine hibari --share 0 2        (flite: --engine flite --share 1 2)

FOLDER holds plain text files, as Project Gutenberg gives them. A sentence that shares six words in a row with a --held text is left out, so that no
sentence of a test is spoken. It may be stopped and started again; each run writes asr_books_train.jsonl with every clip that is there.
"""

import argparse
import collections
import json
import pathlib
import random
import re

import wordfreq
from speak_slurp import ENGINES, number, speak_sentences
from text import normalise

WORDS_LEAST, WORDS_MOST = 5, 22
RUN = 6  # words in a row that a held-out text and a training text may not share


def runs(text):
    """Every run of RUN words."""
    words = text.split()
    return {" ".join(words[i : i + RUN]) for i in range(len(words) - RUN + 1)}


def sentences(folder):
    """Normalised sentences of the books between Project Gutenberg's own lines, long ones cut at commas and semicolons."""
    for path in sorted(folder.glob("*.txt")):
        text = path.read_text(encoding="utf8", errors="replace")
        text = re.split(r"\*\*\* ?START OF [^\n]*\n", text)[-1].split("*** END OF")[0].split("***END OF")[0]
        text = re.sub(r"\s+", " ", re.sub(r"[^\x00-\x7f\u2018\u2019\u201c\u201d\u2013\u2014]", "", text)).replace("--", ", ")
        for sentence in re.split(r"(?<=[.!?])[\"\u201d]? +(?=[\"\u201c]?[A-Z])", text):
            part = []
            for clause in re.split(r"(?<=[,;:]) +", sentence):
                if sum(len(c.split()) for c in part) + len(clause.split()) > WORDS_MOST:
                    yield normalise(" ".join(part))
                    part = []
                part.append(clause)
            yield normalise(" ".join(part))


def choose(candidates, counts, wanted, need, gain_least):
    """Takes sentences in order that contain at least `gain_least` words of `wanted` still needed, and counts their words."""
    for text in candidates:
        words = set(text.split())
        if sum(counts[word] < need for word in words & wanted) >= gain_least:
            counts.update(words)
            yield text


def word_lists(words, counts, need, rng):
    """Lists of words still wanted, in random order, until each was spoken `need` times."""
    wanted = [word for word in words for _ in range(max(0, need - counts[word]))]
    rng.shuffle(wanted)
    start = 0
    while start < len(wanted):
        size = rng.randint(4, 9)
        yield " ".join(wanted[start : start + size])
        start += size


def plan(args):
    held_texts = [json.loads(line).get("text") or "" for path in args.held for line in open(path, encoding="utf8")]
    held = set().union(*(runs(text.lower()) for text in held_texts))
    held_whole = {text.lower() for text in held_texts}
    counts = collections.Counter()
    for path in args.known:
        for line in open(path, encoding="utf8"):
            counts.update(set((json.loads(line).get("text") or "").lower().split()))
    candidates = {text for text in sentences(args.books) if text and WORDS_LEAST <= len(text.split()) <= WORDS_MOST}
    candidates = sorted((t for t in candidates if t not in held_whole and not runs(t) & held), key=lambda t: number("book/" + t, 1 << 40))
    rows = []
    common = [w for w in wordfreq.top_n_list("en", args.vocabulary) if re.fullmatch(r"[a-z]{3,}", w)]
    wanted = set(common)
    for gain_least in range(6, args.gain_least - 1, -1):
        rows += choose(candidates, counts, wanted, args.need, gain_least)
    lists = list(word_lists(common, counts, args.need_listed, random.Random(3)))
    seconds = lambda texts: sum(len(text) for text in texts) / 14 / 3600
    print(f"{len(candidates)} sentences of books, {len(rows)} chosen ({seconds(rows):.1f} h), {len(lists)} lists of words ({seconds(lists):.1f} h)", flush=True)
    return [dict(text=text) for text in rows + lists]


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--books", type=pathlib.Path, required=True)
    parser.add_argument("--known", type=pathlib.Path, nargs="*", default=[], help="manifests whose words are counted already")
    parser.add_argument("--held", type=pathlib.Path, nargs="*", default=[], help="manifests whose texts are kept out")
    parser.add_argument("--need", type=int, default=12, help="how often a word of the books should be spoken in all")
    parser.add_argument("--gain-least", type=int, default=3, help="how many words still needed a sentence must contain")
    parser.add_argument("--need-listed", type=int, default=5, help="the same of a frequent word that the books lack")
    parser.add_argument("--vocabulary", type=int, default=25000, help="how many of the most frequent words of English are wanted")
    parser.add_argument("--out", type=pathlib.Path, required=True)
    parser.add_argument("--engine", choices=list(ENGINES), required=True)
    parser.add_argument("--share", type=int, nargs=2, default=[0, 1], metavar=("I", "N"))
    parser.add_argument("--hibari", type=pathlib.Path)
    parser.add_argument("--kokoro", type=pathlib.Path)
    parser.add_argument("--dry-run", action="store_true", help="only prints how much it would speak")
    args = parser.parse_args()
    index, count = args.share
    rows = [row for row in plan(args) if number(row["text"], count) == index]
    if args.dry_run:
        return
    facts = dict(source="books in the public domain and lists of words, synthetic voice", licence="text: public domain; word list: wordfreq (CC BY-SA 4.0)")
    speak_sentences(args, rows, "books", facts)


if __name__ == "__main__":
    main()
