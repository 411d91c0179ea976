"""Text that spells a special token: user text stays text, only templates write special tokens.

A tokenizer finds special tokens by their spelling wherever they stand, so a user who types `<|end|>` would end a turn.
Here a character that no text has is put into such spellings before the template sees them. What the template itself
wrote is then told from it: its special tokens are replaced by stand-ins, which a copy of the tokenizer knows as tokens
that are not special, and that copy reads the whole with special tokens off. So everything else is split as before.
"""

from __future__ import annotations

import copy
import re
import secrets
import weakref
from collections.abc import Collection, Mapping
from typing import Any

from kvcompress.errors import InputError
from kvcompress.hf.types import Tokenizer

_PRIVATE = range(0xE000, 0xF8FF)
_STAND_INS: weakref.WeakKeyDictionary[Any, tuple[Any, dict[str, str], dict[int, int]]] = weakref.WeakKeyDictionary()


def require_text(text: str, what: str, *, path: object = None) -> None:
    """Raise `InputError` where a text holds half of a surrogate pair, which no tokenizer reads.

    Args:
        text: Any text.
        what: Where it stands, such as "--prompt".
        path: Its file.
    """
    if text.isascii():
        return
    lone = re.search("[\ud800-\udfff]", text)
    if lone is not None:
        told = f"{what} holds \\u{ord(lone[0]):04x} at character {lone.start()}, which is half of a character"
        raise InputError(
            told, "Write text in UTF-8, and characters beyond \\uffff in JSON as both their halves", path=path
        )


def spellings(tokenizer: Tokenizer) -> dict[str, int]:
    """Return the id of each special token by its spelling."""
    known = {str(token.content): int(number) for number, token in _added(tokenizer).items() if token.special}
    names, ids = getattr(tokenizer, "all_special_tokens", ()), getattr(tokenizer, "all_special_ids", ())
    return known | {str(name): int(number) for name, number in zip(names, ids, strict=True) if name}


def _added(tokenizer: Tokenizer) -> Mapping[int, Any]:
    found: Mapping[int, Any] = getattr(tokenizer, "added_tokens_decoder", {})
    return found


def pattern_of(names: Collection[str]) -> re.Pattern[str] | None:
    """Return what finds these spellings, of several at one place the longest; None where there are none."""
    ordered = sorted(filter(None, names), key=len, reverse=True)
    return re.compile("|".join(map(re.escape, ordered))) if ordered else None


def free_character(text: str) -> str:
    """Return a character that a text does not have."""
    there = set(text)
    return next(chr(number) for number in _PRIVATE if chr(number) not in there)


def broken(text: str, names: re.Pattern[str] | None, character: str) -> str:
    """Return text in which a character stands before each character of each spelling of a special token."""
    return text if names is None else names.sub(lambda found: "".join(character + one for one in found[0]), text)


def ids_of(tokenizer: Tokenizer, text: str) -> list[int]:
    """Return the token ids of text; what spells a special token becomes it. No warning about its length."""
    require_text(text, "the text")
    return list(tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])


def ids_of_broken(tokenizer: Tokenizer, text: str, character: str) -> list[int]:
    """Return the token ids of text in which only spellings without `character` in and before them are special tokens.

    Raises:
        InputError: The text holds half of a surrogate pair, or the tokenizer has no other way to spell such a text.
    """
    if character not in text:
        return ids_of(tokenizer, text)
    require_text(text, "the text")
    reader, stand_ins, back = _stand_ins(tokenizer)
    names = pattern_of(stand_ins)
    assert names is not None  # a spelling was broken, so there is one
    meant = re.compile(f"(?<!{re.escape(character)})(?:{names.pattern})")  # one of one character has no inside
    whole = meant.sub(lambda found: stand_ins[found[0]], text).replace(character, "")
    ids = list(reader(whole, add_special_tokens=False, split_special_tokens=True, verbose=False)["input_ids"])
    if set(ids) & (set(back.values()) - {getattr(tokenizer, "unk_token_id", None)}):
        remedy = "Leave it out, or let it be the token with --special-tokens-in-text"
        raise InputError("the text spells a special token that this tokenizer cannot spell otherwise", remedy)
    return [back.get(token, token) for token in ids]


def _stand_ins(tokenizer: Tokenizer) -> tuple[Any, dict[str, str], dict[int, int]]:
    """Return a copy of the tokenizer that knows a stand-in for each special token, these, and their way back."""
    names = spellings(tokenizer)
    kept = _STAND_INS.get(tokenizer)
    if kept is not None and list(kept[1]) == list(names):
        return kept
    from tokenizers import AddedToken

    reader: Any = copy.deepcopy(tokenizer)
    flags = {str(token.content): token for token in _added(tokenizer).values()}
    secret = secrets.token_hex(8)  # or a user who knows the stand-ins could write them
    stand_ins, back = dict[str, str](), dict[int, int]()
    for name, number in names.items():
        stand_ins[name], of = f"\U000f0000{secret}{number}\U000f0001", flags.get(name)
        sides = {} if of is None else {"lstrip": of.lstrip, "rstrip": of.rstrip, "single_word": of.single_word}
        reader.add_tokens([AddedToken(stand_ins[name], normalized=False, special=False, **sides)])
        back[int(reader.convert_tokens_to_ids(stand_ins[name]))] = number
    _STAND_INS[tokenizer] = reader, stand_ins, back
    return reader, stand_ins, back


def plain_ids(tokenizer: Tokenizer, text: str, *, special_tokens: bool = False) -> list[int]:
    """Return the token ids of what a user wrote.

    Args:
        tokenizer: A transformers tokenizer.
        text: The text.
        special_tokens: What spells a special token becomes it; otherwise it stays text.

    Raises:
        InputError: The text holds half of a surrogate pair.
    """
    names = None if special_tokens else pattern_of(spellings(tokenizer))
    if names is None or not names.search(text):
        return ids_of(tokenizer, text)
    character = free_character(text)
    return ids_of_broken(tokenizer, broken(text, names, character), character)
