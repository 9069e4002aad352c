"""Speaks the example sentences of WordNet 3.0 (its own free licence): 27,000 different words, for a CTC head that must spell words it has seldom met.

    apt-get install wordnet-base
    python scripts/data/speak_wordnet.py --out data/manifests --hibari DIR --kokoro DIR --engine hibari --share 0 2    (flite, kokoro: other sentences)

--share I N: sentences whose number leaves I when divided by N, so that engines speak different ones. It may be stopped and started again; each run
writes asr_wordnet_train.jsonl with every clip that is there. Sentences of --held manifests are left out.
"""

import argparse
import json
import pathlib
import re

from speak_slurp import ENGINES, number, speak_sentences
from text import normalise


def examples(folder):
    """The quoted examples behind the definitions, normalised, each once."""
    seen = set()
    for part in ("noun", "verb", "adj", "adv"):
        for line in open(folder / f"data.{part}", encoding="utf8"):
            for quoted in re.findall(r'"([^"]+)"', line.partition("|")[2]):
                text = normalise(quoted)
                if text and text not in seen and 4 <= len(text.split()) <= 20:
                    seen.add(text)
                    yield text


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--wordnet", type=pathlib.Path, default=pathlib.Path("/usr/share/wordnet"))
    parser.add_argument("--out", type=pathlib.Path, required=True)
    parser.add_argument("--engine", choices=list(ENGINES), required=True)
    parser.add_argument("--share", type=int, nargs=2, default=[0, 1], metavar=("I", "N"))
    parser.add_argument("--hibari", type=pathlib.Path)
    parser.add_argument("--kokoro", type=pathlib.Path)
    parser.add_argument("--held", type=pathlib.Path, nargs="*", default=[], help="manifests whose texts are kept out")
    args = parser.parse_args()
    held = {json.loads(line).get("text") for path in args.held for line in open(path, encoding="utf8")}
    index, count = args.share
    rows = [dict(text=text) for text in examples(args.wordnet) if text not in held and number(text, count) == index]
    facts = dict(source="WordNet 3.0 example, synthetic voice", licence="text: WordNet 3.0 licence")
    speak_sentences(args, rows, "wordnet", facts)


if __name__ == "__main__":
    main()
