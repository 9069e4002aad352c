"""Keyword search and keyword extraction from transcripts: adds rows to the recordings of any manifest with `text`.

    python scripts/data/keyword_rows.py data/manifests/asr_train.jsonl --name read --words data/manifests/asr_train.jsonl --out data/manifests

Writes, per split of the rows, keyword_search_NAME_SPLIT.jsonl, keywords_NAME_SPLIT.jsonl and joint_keyword_search_NAME_SPLIT.jsonl,
joint_keywords_NAME_SPLIT.jsonl (transcript and answer in one).

Search, as in the paper: 70 % of the rows ask for a word (one in four: two words) of the transcript, 30 % for a word (one in four: two) that is not in
it. Absent ones come from the transcripts of `--words`, drawn as often as they are said there, so that a keyword alone does not tell the answer; in
training half of them begin as one of the spoken words does. Extraction: the three rarest words of the
transcript (counted in `--words`) that are no function words, in the order in which they are said. Every choice depends on the row alone.
"""

import argparse
import collections
import hashlib
import json
import pathlib

from real_speech import write_manifest

STOP = set(
    "a about all am an and any are as at be been but by can could did do does down for from had has have he her here him his how i if in into is it its just "
    "may me might must my no not of on or our out over said shall she should so some than that the their them then there these they this those to up us very was "
    "we were what when where which who will with would you your".split()
)
POSITIVE = 0.7


def number(key, count):
    """A number below `count` that depends on `key` alone."""
    return int(hashlib.sha256(key.encode()).hexdigest()[:12], 16) % count


def drawn(counts, key):
    """One of the keys of `counts`, each as likely as it is frequent; the same one for the same `key`. None if there is none."""
    left = number(key, max(sum(counts.values()), 1))
    for word in sorted(counts):
        left -= counts[word]
        if left < 0:
            return word
    return None


def search(row, key, present, said, hard):
    """(keyword, yes or no), or None if nothing can be asked. `present`: whether to ask for what is spoken; `said`: how often
    single words, and pairs of words, are said elsewhere."""
    words = row["text"].split()
    count = 2 if number("two" + key, 4) == 0 else 1
    if present:
        at = number("at" + key, len(words) - count + 1)
        return " ".join(words[at : at + count]), "yes"
    own = {" ".join(words[at : at + count]) for at in range(len(words) - count + 1)}
    absent = {w: c for w, c in said[count].items() if w not in own}
    if hard and number("hard" + key, 2):
        begins = {w[:2] for w in words if len(w) > 3}
        absent = {w: c for w, c in absent.items() if w[:2] in begins} or absent
    word = drawn(absent, "absent" + key)
    return word and (word, "no")


def keywords(row, counts):
    """The rarest content words in the order of speech, or None if there are fewer than two."""
    words = [w for w in dict.fromkeys(row["text"].split()) if w not in STOP and len(w) > 2]
    best = sorted(words, key=lambda w: (counts[w], -len(w), w))[:3]
    return ", ".join(w for w in words if w in best) if len(best) > 1 else None


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("manifest", type=pathlib.Path, nargs="+")
    parser.add_argument("--words", type=pathlib.Path, nargs="+", required=True, help="manifests whose transcripts give absent words and their counts")
    parser.add_argument("--name", required=True, help="part of the names of the new manifests")
    parser.add_argument("--out", type=pathlib.Path, required=True)
    args = parser.parse_args()
    read = lambda path: [json.loads(line) for line in open(path, encoding="utf8")]
    texts = [r["text"].split() for path in args.words for r in read(path) if "text_from" not in r]
    counts = collections.Counter(w for words in texts for w in words)
    pairs = collections.Counter(" ".join(pair) for words in texts for pair in zip(words, words[1:]))
    said = {1: {w: c for w, c in counts.items() if len(w) > 1}, 2: pairs}
    out = collections.defaultdict(list)
    for path in args.manifest:
        # A text that a recogniser wrote says nothing sure about what is absent.
        rows = [r for r in read(path) if len(r["text"].split()) >= 3 and "text_from" not in r]
        rows.sort(key=lambda r: number(f"kind/{r['audio_filepath'].rsplit('/', 1)[-1]}", 1 << 40))
        for at, row in enumerate(rows):
            split = row.get("split", "train")
            key = f"/{row['text']}/{row.get('voice')}"
            base = {k: v for k, v in row.items() if k not in ("task", "target")} | dict(audio_filepath=str((path.parent / row["audio_filepath"]).resolve()), split=split)
            both = lambda task, target: dict(task=f"asr,{task}", targets={"asr": row["text"], task: target})
            if found := search(row, key, at < POSITIVE * len(rows), said, split != "test"):
                word, answer = found
                out["keyword_search", split].append(base | dict(task="keyword_search", keyword=word, target=answer))
                out["joint_keyword_search", split].append(base | both("keyword_search", answer) | dict(keyword=word))
            if listed := keywords(row, counts):
                out["keywords", split].append(base | dict(task="keywords", target=listed))
                out["joint_keywords", split].append(base | both("keywords", listed))
    for (task, split), rows in sorted(out.items()):
        # Any part of a manifest, as the first hundred rows, has both answers.
        rows.sort(key=lambda r: number(f"order/{r['audio_filepath'].rsplit('/', 1)[-1]}", 1 << 40))
        write_manifest(args.out / f"{task}_{args.name}_{split}.jsonl", rows)


if __name__ == "__main__":
    main()
