"""What a person does to a sentence: mistype it, write it in capitals, say it in other words. By rule and by seed.

The rules are plain on purpose: the same text gives the same perturbation on every machine. They touch words only;
special tokens such as `<|im_start|>`, with the role behind them, stay as they are.

```
typos        in one word of three, of four letters or more, two neighbouring inner letters change places
case         each word goes to capitals or to small letters, by lot
paraphrase   contractions are written out and common words replaced; where none occurs, "In other words, " comes first
```
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable

SEED = 7
TYPO_SHARE = 1 / 3
LEAST_LETTERS = 4

_SPECIAL = re.compile(r"(<\|[^|<>]*start[^|<>]*\|>\w*|<\|[^|<>]*\|>)")  # with the role that one may open
_WORD = re.compile(r"[^\W\d_]+(?:['\N{RIGHT SINGLE QUOTATION MARK}][^\W\d_]+)?")
_PHRASES = {
    "can't": "cannot",
    "won't": "will not",
    "don't": "do not",
    "doesn't": "does not",
    "didn't": "did not",
    "isn't": "is not",
    "wasn't": "was not",
    "i'm": "I am",
    "i've": "I have",
    "i'll": "I will",
    "it's": "it is",
    "that's": "that is",
    "you're": "you are",
    "let's": "let us",
    "and": "as well as",
    "but": "yet",
    "because": "since",
    "also": "in addition",
    "very": "quite",
    "big": "large",
    "small": "little",
    "begin": "start",
    "help": "assist",
    "use": "make use of",
    "need": "require",
    "want": "wish",
    "said": "remarked",
    "many": "a lot of",
    "must": "has to",
    "quickly": "fast",
}
_OPENING = "In other words, "


def typos(text: str) -> str:
    """Return text in which words are mistyped; one at least, where a word is long enough."""
    lot = random.Random(f"{SEED} typos")
    fit = [match.start() for match in _WORD.finditer(text) if _swaps(match.group())]
    chosen = {start for start in fit if lot.random() < TYPO_SHARE} or set(fit[:1])

    def mistyped(match: re.Match[str]) -> str:
        word = match.group()
        if match.start() not in chosen:
            return word
        at = lot.choice(_swaps(word))
        return word[:at] + word[at + 1] + word[at] + word[at + 2 :]

    return _WORD.sub(mistyped, text)


def _swaps(word: str) -> list[int]:
    """Return where two inner letters of a word can change places so that it changes."""
    pairs = range(1, len(word) - 2 if len(word) >= LEAST_LETTERS else 0)
    return [at for at in pairs if word[at : at + 2].isalpha() and word[at] != word[at + 1]]


def case(text: str) -> str:
    """Return text whose words are in capitals or in small letters, by lot."""
    lot = random.Random(f"{SEED} case")
    return _WORD.sub(lambda match: match.group().upper() if lot.random() < 0.5 else match.group().lower(), text)


def paraphrase(text: str) -> str:
    """Return text said in other words."""
    changed = _WORD.sub(_replaced, text)
    if changed != text:
        return changed
    said = text.lstrip()
    return text[: len(text) - len(said)] + _OPENING + said


def _replaced(match: re.Match[str]) -> str:
    word = match.group()
    found = _PHRASES.get(word.lower().replace("\N{RIGHT SINGLE QUOTATION MARK}", "'"))
    if found is None:
        return word
    return found[0].upper() + found[1:] if word[0].isupper() else found


def _outside(rule: Callable[[str], str]) -> Callable[[str], str]:
    """Return a rule that leaves special tokens alone, and changes nothing where there are only such."""

    def applied(text: str) -> str:
        parts = _SPECIAL.split(text)
        return "".join(part if _SPECIAL.fullmatch(part) or not part.strip() else rule(part) for part in parts)

    return applied


PERTURBATIONS: dict[str, Callable[[str], str]] = {
    "typos": _outside(typos),
    "case": _outside(case),
    "paraphrase": _outside(paraphrase),
}
