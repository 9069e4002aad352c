"""A small sentence grammar: `(a|b)` one of, `[c]` perhaps, `{name}` an entry of a list, `<rule>` a named template,
`(a;b)` all parts in any order. The notation is that of the home-assistant intents, so those files can be read too."""

import random
import re


class Grammar:
    """Lists and rules, and a sampler over templates that use them."""

    def __init__(self, lists, rules=None, optional=0.4, seed=0):
        self.lists, self.rules, self.optional = lists, rules or {}, optional
        self.random = random.Random(seed)

    def sample(self, template):
        """One random sentence of `template`; raises KeyError for a list or rule that is not known."""
        text, end = self._alternatives(template, 0, "")
        if end != len(template):
            raise ValueError(f"unbalanced template at {end}: {template}")
        return re.sub(r"\s+", " ", text).strip()

    def _alternatives(self, t, i, close):
        """Reads `a|b|c` (or `a;b`) up to `close`; returns the chosen text and the place after it."""
        options, permute = [""], False
        while i < len(t) and t[i] != close:
            c = t[i]
            if c == "|":
                options.append("")
                i += 1
            elif c == ";":
                permute = True
                options.append("")
                i += 1
            elif c == "(":
                text, i = self._alternatives(t, i + 1, ")")
                options[-1] += text
                i += 1
            elif c == "[":
                text, i = self._alternatives(t, i + 1, "]")
                if self.random.random() < self.optional:
                    options[-1] += text
                i += 1
            elif c == "{":
                j = t.index("}", i)
                name = t[i + 1 : j].split(":")[0]
                options[-1] += self.sample(self.random.choice(self.lists[name]))
                i = j + 1
            elif c == "<":
                j = t.index(">", i)
                options[-1] += self.sample(self.rules[t[i + 1 : j]])
                i = j + 1
            else:
                options[-1] += c
                i += 1
        if permute:
            self.random.shuffle(options)
            return " ".join(options), i
        return self.random.choice(options), i


def read_phrases(path):
    """Reads a phrases file: `@name = a | b` lists and `N* template` lines. Returns (lists, [(weight, template)])."""
    lists, templates = {}, []
    for line in open(path, encoding="utf8"):
        line = line.strip()
        if not line or line.startswith("#"):
            continue
        if line.startswith("@"):
            name, entries = line[1:].split("=", 1)
            lists[name.strip()] = _split_top_level(entries)
        else:
            weight, template = re.fullmatch(r"(?:(\d+)\*\s*)?(.*)", line).groups()
            templates.append((int(weight or 1), template))
    return lists, templates


def _split_top_level(text):
    """Splits at `|` outside brackets."""
    parts, depth = [""], 0
    for c in text:
        depth += (c in "([") - (c in ")]")
        if c == "|" and depth == 0:
            parts.append("")
        else:
            parts[-1] += c
    return [p.strip() for p in parts if p.strip()]
