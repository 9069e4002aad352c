"""Text rules shared by the scripts: the normal form of a transcript, and which sentences are held out."""

import hashlib
import re

ONES = "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen eighteen nineteen".split()
TENS = "_ _ twenty thirty forty fifty sixty seventy eighty ninety".split()


def number_words(n):
    """0..9999 as English words, without `and`."""
    if n < 20:
        return ONES[n]
    if n < 100:
        return TENS[n // 10] + (" " + ONES[n % 10] if n % 10 else "")
    if n < 1000:
        return ONES[n // 100] + " hundred" + (" " + number_words(n % 100) if n % 100 else "")
    return number_words(n // 1000) + " thousand" + (" " + number_words(n % 1000) if n % 1000 else "")


def normalise(text):
    """Lower case, no punctuation, apostrophes kept, whole numbers below ten thousand spelled out; None if something else remains."""
    text = text.replace("\u2019", "'").replace("\u2018", "'").lower()
    text = re.sub(r"\b\d{1,4}\b", lambda m: number_words(int(m[0])), text)
    text = re.sub(r"[-\u2013\u2014/.,!?;:\"()\u201c\u201d\u2026*_]", " ", text)
    words = [w.strip("'") for w in text.split()]
    text = " ".join(w for w in words if w)
    return text if re.fullmatch(r"[a-z']+( [a-z']+)*", text) else None


def bucket(normal):
    """`test`, `valid` or `train`, by the SHA-1 of the normalised text: 5 % of all sentences are never trained on."""
    n = int(hashlib.sha1(normal.encode()).hexdigest()[:8], 16)
    if n % 20:
        return "train"
    return "valid" if (n // 20) % 3 == 0 else "test"
