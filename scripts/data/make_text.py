"""Collects and generates the sentences that the synthetic voices speak. Writes OUT/sentences.jsonl.

    python scripts/data/make_text.py --out data/demo

Each line: text (normal form), spoken (capitals and punctuation, for the voice), domain (home, everyday, open),
bucket (train, valid, test; by hash of the text) and source. Nothing here depends on chance: the generator is seeded.
"""

import argparse
import collections
import gzip
import json
import pathlib
import random
import re

import chatterbot_corpus
import home_assistant_intents
import yaml

from grammar import Grammar, read_phrases
from real_speech import ASTERISK_TEXTS, LIBRIVOX_TEXTS, asterisk_lines, librivox_lines
from text import bucket, normalise, number_words

HERE = pathlib.Path(__file__).parent
QUESTION = re.compile(
    r"(hey robot |okay computer |please )?(what|what's|where|when|who|which|why|how|is|are|was|were|do|does|did|can|could|will|would|shall|have|has) "
)
# How an intent template must begin to be a sentence that people say (the intents also know telegram style).
STARTS = re.compile(
    r"(turn|switch|set|change|make|open|close|shut|lower|raise|lock|unlock|play|pause|stop|start|create|cancel|resume|continue|add|remove|take|put|what|what's|how|how's|where|where's|who|is|are|tell|mute|unmute|skip|announce|broadcast|mow|vacuum|clean|increase|decrease|adjust|dim|brighten|next|check) (?!back)"
)
# Words that make a sentence unfit for a friendly demo, or that are markup and not words.
UNFIT = re.compile(
    r"\b(sex\w*|fuck\w*|shit\w*|damn\w*|bitch\w*|whore\w*|bastard\w*|nigg\w*|jew\w*|nazi\w*|rape\w*|kill\w*|murder\w*|breast\w*|naked|nude|"
    r"penis|vagina|orgasm\w*|lesbian\w*|gay|fag\w*|ass|asshole\w*|piss\w*|crap|drug\w*|drunk\w*|suicide|virgin\w*|whores|slut\w*|erotic|condom\w*|"
    r"http|www|com|org|perl|usr|bin|html|unix|gnu|gcc|emacs)\b"
)


def punctuate(text):
    """A capital and an end mark, which steer the melody of the voice."""
    text = re.sub(r"\bi\b", "I", text)
    return text[0].upper() + text[1:] + ("?" if QUESTION.match(text) else ".")


def sensible(text):
    """Rejects stutters and leftovers of a template."""
    words = text.split()
    return (
        not any(a == b for a, b in zip(words, words[1:]))
        and not re.search(r"\bthe (the|my)\b|\b([a-z]+ )?(\w+) and \2?\3\b|\ball the (skylight|window|gate|garage door|awning)\b", text)
    )


def from_phrases(name, count, seed):
    """`count` distinct sentences of phrases/NAME.txt, templates drawn by weight."""
    lists, templates = read_phrases(HERE / "phrases" / f"{name}.txt")
    grammar = Grammar(lists, optional=0.4, seed=seed)
    weights, lines = zip(*templates)
    seen, tries = {}, 0
    while len(seen) < count and tries < count * 20:
        tries += 1
        text = grammar.sample(grammar.random.choices(lines, weights)[0])
        text = re.sub(r"\ba ([aeio])", r"an \1", text)
        normal = normalise(text)
        if normal and sensible(normal) and 2 <= len(normal.split()) <= 16:
            seen.setdefault(normal, None)
    return list(seen)


def from_home_assistant(count, seed):
    """Sentences of the home-assistant intents, their slots filled from our own lists."""
    data = json.loads((pathlib.Path(home_assistant_intents.__file__).parent / "data" / "en.json").read_text())
    own, _ = read_phrases(HERE / "phrases" / "home.txt")
    lists = {
        "area": own["room"], "floor": ["ground", "first", "second", "top"], "name": own["device"], "message": ["dinner is ready", "it is time to go", "the taxi is here", "lunch is served"],
        "search_query": own["artist"] + [g + " music" for g in own["genre"]], "zone": ["home", "at home", "at work", "at school"],
        "timer_name": own["timername"], "shopping_list_item": own["item"], "todo_list_item": own["task"],
        "timer_command": ["turn off the {name}", "turn on the {name}", "open the {room} blinds", "stop the music"], "room": own["room"],
    }
    for name, spec in data["lists"].items():
        if "values" in spec:
            lists[name] = [v["in"] if isinstance(v, dict) else v for v in spec["values"]]
        elif "range" in spec:
            low, high, step = spec["range"]["from"], spec["range"]["to"], spec["range"].get("step", 1)
            lists.setdefault(name, [number_words(n) for n in range(max(1, low), high + 1, step)])
    lists["timer_half"] = ["half"]
    for plain in ("timer_hours",):
        lists[plain] = [number_words(n) for n in range(1, 13)]
    rules = {k: v for k, v in data["expansion_rules"].items()}
    rules |= {"all": "(all|all the|every)", "everywhere": "(everywhere|all over the house)", "here": "([in] here|in this room)", "which": "(which|what)",
              "any": "any", "light": "(light|lights|lamp|lamps)", "what_is": "(what's|what is|tell me)", "how_is": "(how is|how's)", "where_is": "(where's|where is)"}
    grammar = Grammar(lists, rules, optional=0.3, seed=seed)
    by_intent = {name: [s for block in intent["data"] for s in block["sentences"]] for name, intent in data["intents"].items()}
    # Slots that our device names do not fit.
    for intent in list(by_intent):
        if intent.startswith("HassList") or intent in ("HassGetWeather", "HassClimateGetTemperature", "HassVacuumReturnToBase", "HassLawnMowerDock"):
            by_intent[intent] = [s for s in by_intent[intent] if "{name}" not in s]
    by_intent = {name: lines for name, lines in by_intent.items() if lines}
    seen, tries = {}, 0
    while len(seen) < count and tries < count * 30:
        tries += 1
        template = grammar.random.choice(by_intent[grammar.random.choice(list(by_intent))])
        try:
            text = grammar.sample(template.replace("( |-)", " ").replace("[s]", "").replace("°", " degrees").replace("%", " percent"))
        except (KeyError, ValueError):
            continue
        text = re.sub(r"\b(hour|minute|second|degree)s?\b(?! timer)", r"\1s", text)
        text = re.sub(r"\b(?<!\w )(one) (hour|minute|second|degree)s\b", r"\1 \2", text)
        text = re.sub(r"\b(hour|minute|second)s timer", r"\1 timer", text).replace("degrees degrees", "degrees").replace("percent percent", "percent")
        normal = normalise(text)
        if not normal or not 4 <= len(normal.split()) <= 13 or not sensible(normal) or not STARTS.match(normal) or re.search(r"\b(every|all) \w+ (all|every)\b|\b(lights?|lamps?) (lights?|lamps?)\b|(lights|lamps) is", normal):
            continue
        seen.setdefault(normal, None)
    return list(seen)


def sentences_of(paragraph):
    """Splits running text into sentences."""
    return [s.strip() for s in re.split(r"(?<=[.!?])\s+", re.sub(r"\s+", " ", paragraph)) if s.strip()]


def from_chatterbot():
    """(sentence, category) of the chatterbot corpus."""
    root = pathlib.Path(chatterbot_corpus.__file__).parent / "data" / "english"
    for path in sorted(root.glob("*.yml")):
        if path.stem in ("coding", "tech_support"):
            continue
        for conversation in yaml.safe_load(path.read_text())["conversations"]:
            for line in conversation:
                for sentence in sentences_of(str(line)):
                    yield sentence, path.stem


def from_fillets(root):
    """English subtitle lines of the game Fish Fillets."""
    for path in sorted(root.glob("*/dialogs*.lua")):
        if path.name not in ("dialogs_en.lua", "dialogs.lua"):
            continue
        for match in re.finditer(r'dialogId\("[^"]+",\s*"[^"]*",\s*"((?:[^"\\]|\\.)*)"\)', path.read_text(errors="replace")):
            yield from sentences_of(match[1].replace('\\"', '"').replace("...", " ... "))


def from_fortunes(root):
    """Sentences of the fortune cookie files, attributions dropped."""
    skip = {"perl", "limerick", "ascii-art", "debian", "linux", "linuxcookie", "magic", "drugs", "men-women", "ethnic", "translate-me", "knghtbrd", "computers", "startrek", "songs-poems", "zippy", "politics", "definitions"}
    for path in sorted(root.glob("*")):
        if path.suffix or path.name in skip:
            continue
        for cookie in path.read_text(errors="replace").split("\n%\n"):
            body = re.split(r"\n?\s+--", cookie)[0]
            if "\t" in body or re.search(r"^\s*[-*0-9(]|^\w{1,12}:", body, re.M):
                continue
            for sentence in sentences_of(body):
                if sentence[0].isupper() and sentence[-1] in ".!?":
                    yield sentence


def fit(sentence, low, high, words):
    """The normal form if a sentence is plain English of `low` to `high` known words, else None."""
    if not re.fullmatch(r"[A-Za-z0-9 ,.'!?;:\"\u2019-]+", sentence) or re.search(r"\d[.,:]\d|\d{3,}|[A-Z]{2,}", sentence):
        return None
    normal = normalise(sentence)
    if not normal or not low <= len(normal.split()) <= high or UNFIT.search(normal) or re.search(r"\b(\w+)( \1\b){2}", normal):
        return None
    if any(w.replace("'s", "") not in words and w not in words for w in normal.split()) or len(normal) > 110:
        return None
    return normal


def lexicon(hibari):
    """Words with a dictionary pronunciation: others would teach the voices' spelling mistakes."""
    words = set()
    for path in sorted((hibari / "assets").glob("lexicon_us_*.json.gz")):
        entries = json.load(gzip.open(path, "rt", encoding="utf8"))
        words |= {w.lower() for w in entries}
    for word in list(words):
        words |= {word + "s", word + "ed", word + "ing", word + "'s"}
    return words | {"i'm", "i'd", "i'll", "i've", "o'clock"}


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path("data/demo"))
    parser.add_argument("--hibari", type=pathlib.Path, required=True, help="unpacked hibari package (for its word list)")
    parser.add_argument("--fillets", type=pathlib.Path, default=pathlib.Path("/usr/share/games/fillets-ng/script"))
    parser.add_argument("--fortunes", type=pathlib.Path, default=pathlib.Path("/usr/share/games/fortunes"))
    args = parser.parse_args()
    random.seed(7)
    words = lexicon(args.hibari)
    forbidden = {normalise(t) for _, t in asterisk_lines(ASTERISK_TEXTS)} | {t for _, t in librivox_lines(LIBRIVOX_TEXTS)}

    rows = {}

    def add(normal, domain, source, spoken=None):
        if normal and normal not in rows and normal not in forbidden and len(normal) > 5:
            rows[normal] = dict(text=normal, spoken=spoken or punctuate(normal), domain=domain, bucket=bucket(normal), source=source)

    for text in from_phrases("home", 6500, 11):
        add(text, "home", "templates")
    for text in from_home_assistant(1000, 12):
        add(text, "home", "home-assistant-intents")
    for text in from_phrases("everyday", 4000, 13):
        add(text, "everyday", "templates")
    for sentence, category in from_chatterbot():
        sentence = sentence.replace("\u2019", "'")
        if category in ("conversations", "greetings", "emotion", "psychology", "food", "botprofile", "gossip", "humor", "health"):
            normal = fit(sentence, 2, 12, words)
            add(normal, "everyday", "chatterbot-corpus", sentence)
        add(fit(sentence, 3, 20, words), "open", "chatterbot-corpus", sentence)
    fillets = list(from_fillets(args.fillets))
    for sentence in fillets:
        add(fit(sentence, 2, 5, words), "everyday", "fillets-ng", sentence)
        add(fit(sentence, 3, 20, words), "open", "fillets-ng", sentence)
    fortunes = list(from_fortunes(args.fortunes))
    random.shuffle(fortunes)
    for sentence in fortunes:
        add(fit(sentence, 3, 18, words), "open", "fortunes", sentence)

    out = list(rows.values())
    random.shuffle(out)
    args.out.mkdir(parents=True, exist_ok=True)
    with open(args.out / "sentences.jsonl", "w", encoding="utf8") as f:
        for row in out:
            f.write(json.dumps(row, ensure_ascii=False) + "\n")
    print(len(out), collections.Counter((r["domain"], r["bucket"]) for r in out), collections.Counter((r["domain"], r["source"]) for r in out))


if __name__ == "__main__":
    main()
