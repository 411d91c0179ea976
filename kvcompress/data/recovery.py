"""Recover a conversation from its tokens, by what its chat template writes around messages.

Short conversations of marks are laid out, and what stands before, between and behind the marks divides the text of the
tokens into messages. What comes out is laid out again and must give the tokens that went in; only the last message may
differ in how it is split into tokens, as what a model wrote does.
"""

from __future__ import annotations

import re
import weakref
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from kvcompress.data.chat_template import Dialogue, Message, dividing, layout, layout_ids
from kvcompress.errors import InputError
from kvcompress.hf.conversation import common_prefix
from kvcompress.hf.special_tokens import ids_of, pattern_of, spellings

if TYPE_CHECKING:
    from kvcompress.hf.types import Tokenizer

_ROLES = {"s": "system", "u": "user", "a": "assistant", "t": "tool"}
_PROBES = (
    *("s", "u", "su", "a", "sa", "ua", "sua", "uau", "suau", "uaua", "uauau"),
    *("uu", "uaa", "auau", "us", "uas", "uat", "uata", "uatau", "uatt"),
)
_OPENING = re.compile(r"(?:<[a-z][\w:]*>|\[[A-Z]+\])\s*\Z")  # of thinking, which the model goes on with
_SEAMS: weakref.WeakKeyDictionary[Any, tuple[str, Seams]] = weakref.WeakKeyDictionary()


@dataclass(slots=True)
class Seams:
    """What a chat template writes around messages, in each way that was seen.

    Attributes:
        heads: Role of the first message -> what stands before it.
        joints: Role of a message -> what divides it from the next one, and the role of that.
        tails: Role of the last message -> what stands behind it.
        special: What finds the spelling of a special token.
        stop: The token that ends an answer, "" for none.
    """

    heads: dict[str, set[str]] = field(default_factory=dict)
    joints: dict[str, set[tuple[str, str]]] = field(default_factory=dict)
    tails: dict[str, set[str]] = field(default_factory=dict)
    special: re.Pattern[str] | None = None
    stop: str = ""

    def closings(self, role: str) -> set[str]:
        """Return all that may stand behind a message of a role."""
        return {joint for joint, _ in self.joints.get(role, ())} | self.tails.get(role, set())


def text_of(tokenizer: Tokenizer, token_ids: Sequence[int]) -> str:
    """Return the text of tokens, special ones written out."""
    return str(tokenizer.decode(list(token_ids), skip_special_tokens=False, clean_up_tokenization_spaces=False))


def said(tokenizer: Tokenizer, token_ids: Sequence[int]) -> str:
    """Return what a model said in these tokens: special ones only where they do not divide turns, as `<think>` may."""
    known = spellings(tokenizer)
    divide = {known[name] for name in dividing(tokenizer) if name in known}
    return text_of(tokenizer, [token for token in token_ids if token not in divide])


def answer(tokenizer: Tokenizer, before: Dialogue, token_ids: Sequence[int]) -> Message:
    """Return what a model said after a conversation, as a message of which the template makes these tokens again.

    Where the template opens the thinking for the model, as by `<think>` behind the assistant's header, the message
    begins with that: templates find the thinking of earlier answers by it.

    Args:
        tokenizer: With a chat template.
        before: The conversation that the model answers.
        token_ids: Its answer, without the token that ended it.
    """
    content = said(tokenizer, token_ids)
    plain: Message = {"role": "assistant", "content": content}
    opened = layout(tokenizer, before, ask=True)
    opening = _OPENING.search(opened)
    if opening is None or not content:
        return plain
    thinking = {**plain, "content": opening[0] + content}
    so_far = (opened + content).encode(errors="surrogatepass")
    try:  # by text: where thoughts end in other tokens than the template's, both ways part there
        layouts = [layout(tokenizer, before.then(one)).encode(errors="surrogatepass") for one in (plain, thinking)]
    except InputError:
        return plain
    kept = [common_prefix(text, so_far) for text in layouts]
    return thinking if kept[1] >= kept[0] else plain


def recovered(tokenizer: Tokenizer, token_ids: Sequence[int]) -> Dialogue | None:
    """Return the conversation that tokens hold, or None where that cannot be told.

    Args:
        tokenizer: With a chat template.
        token_ids: A conversation as the template lays it out, which may stop anywhere: after a generated answer, with
            the assistant's turn opened, or within a message.
    """
    ids = [int(token) for token in token_ids]
    text = text_of(tokenizer, ids)
    if text_of(tokenizer, ids_of(tokenizer, text)) != text:
        return None  # a tokenizer whose text does not give its tokens back
    seams = _seams(tokenizer)
    found = [Dialogue(())] if _is_begun_head(seams, text) else []
    found += (Dialogue(tuple(messages)) for messages in _readings(seams, text))
    for dialogue in found:
        ways = [Dialogue(()).then(*dialogue.messages, special_tokens=special) for special in (False, True)]
        agreeing = [exact for way in ways if (exact := agreed(tokenizer, way, ids)) is not None]
        if agreeing:  # text that spells a special token and the token itself read alike: the tokens tell which it was
            return max(agreeing, key=lambda one: _shared(tokenizer, one, ids))
    names = seams.special
    if names is None or not all(names.search(joint) for some in seams.joints.values() for joint, _ in some):
        return None
    # Nothing gives these tokens, as after turns that were put together by hand; but each special token is a seam.
    clean = (d for d in found if d.messages and not any(names.search(str(m["content"])) for m in d.messages))
    return next(clean, None)


def _seams(tokenizer: Tokenizer) -> Seams:
    """Lay conversations of marks out and collect what stands around the marks."""
    template, known = str(getattr(tokenizer, "chat_template", "")), _SEAMS.get(tokenizer)
    if known is not None and known[0] == template:
        return known[1]
    seams = Seams(special=pattern_of(spellings(tokenizer)), stop=str(getattr(tokenizer, "eos_token", None) or ""))
    for probe in _PROBES:
        roles = [_ROLES[letter] for letter in probe]
        marks = [f"Kx{place}vZ" for place in range(len(roles))]
        messages: list[Message] = [{"role": r, "content": mark} for r, mark in zip(roles, marks, strict=True)]
        for ask in (False, True):
            try:
                text = layout(tokenizer, Dialogue(tuple(messages)), ask=ask)
            except InputError:
                continue
            text = text_of(tokenizer, ids_of(tokenizer, text))
            places = [text.find(mark) for mark in marks]
            if -1 in places or places != sorted(places):
                continue
            ends = [at + len(mark) for at, mark in zip(places, marks, strict=True)]
            seams.heads.setdefault(roles[0], set()).add(text[: places[0]])
            for place in range(len(roles) - 1):
                joint = text[ends[place] : places[place + 1]]
                seams.joints.setdefault(roles[place], set()).add((joint, roles[place + 1]))
            if ask and roles[-1] != "assistant":
                seams.joints.setdefault(roles[-1], set()).add((text[ends[-1] :], "assistant"))
            elif not ask:
                seams.tails.setdefault(roles[-1], set()).add(text[ends[-1] :])
    _SEAMS[tokenizer] = template, seams
    return seams


def _is_begun_head(seams: Seams, text: str) -> bool:
    """Tell whether text stops before the first message has begun."""
    return not text or any(head.startswith(text) and head != text for some in seams.heads.values() for head in some)


def _readings(seams: Seams, text: str) -> Iterator[list[Message]]:
    """Yield what the messages may be, the likeliest first."""
    heads = [(head, role) for role, some in seams.heads.items() for head in some if text.startswith(head)]
    order = list(_ROLES.values())
    heads.sort(key=lambda one: (-len(one[0]), one[1] == "system", order.index(one[1])))
    for longest in (True, False):
        for head, role in heads:
            yield _read(seams, text[len(head) :], role, longest)


def _read(seams: Seams, rest: str, role: str, longest: bool) -> list[Message]:
    """Divide text that begins within a message; of seams at one place take the longest or the shortest."""
    messages: list[Message] = []
    while True:
        sign = -1 if longest else 1
        tails = seams.tails.get(role, set())
        found = [
            (at, sign * len(joint), joint, then)
            for joint, then in seams.joints.get(role, ())
            if joint and (at := rest.find(joint)) >= 0
        ]
        if not found or rest[min(found)[0] :] in tails:
            break
        at, _, joint, then = min(found)
        messages.append({"role": role, "content": rest[:at]})
        rest, role = rest[at + len(joint) :], then
    return [*messages, {"role": role, "content": _unclosed(seams, rest, role)}]


def _unclosed(seams: Seams, rest: str, role: str) -> str:
    """Return the last message without what closes it, of which the end may be missing."""
    whole = max((tail for tail in seams.tails.get(role, ()) if tail and rest.endswith(tail)), key=len, default="")
    if whole:
        return rest[: -len(whole)]
    begun = 0
    for closing in seams.closings(role):
        first = seams.special.search(closing) if seams.special is not None else None
        least = len(closing) if first is None else first.end()
        begun = max([begun, *(n for n in range(max(least, 1), len(closing) + 1) if rest.endswith(closing[:n]))])
    return rest[: len(rest) - begun] if begun else rest.removesuffix(seams.stop)


def agreed(tokenizer: Tokenizer, dialogue: Dialogue, token_ids: Sequence[int]) -> Dialogue | None:
    """Return a conversation if its layout gives the tokens, with the last answer as the tokens have it, else None.

    Also None where more follows behind what closes that answer, which one message cannot hold.
    """
    ids = list(token_ids)
    if not dialogue.messages:
        return dialogue
    try:
        whole = layout_ids(tokenizer, dialogue)
        if whole[: len(ids)] == ids:
            return dialogue
        if dialogue.messages[-1]["role"] == "assistant":
            before = dialogue.without_last()
            opened = layout_ids(tokenizer, before, ask=True)
            if common_prefix(opened, ids) == len(opened):
                special = bool(dialogue.special_tokens)
                end, lost = _answer_end(tokenizer, ids[len(opened) :])
                last = answer(tokenizer, before, ids[len(opened) : len(opened) + end])
                return None if lost else before.then(last, special_tokens=special)
    except InputError:
        return None
    return dialogue if _same_but_split(tokenizer, whole, ids) else None


def _shared(tokenizer: Tokenizer, dialogue: Dialogue, ids: Sequence[int]) -> int:
    return common_prefix(layout_ids(tokenizer, dialogue), ids) if dialogue.messages else 0


def _answer_end(tokenizer: Tokenizer, ids: list[int]) -> tuple[int, bool]:
    """Return how many of the tokens that follow the opening of a turn are the answer, before the one that closes it.

    The second value tells whether more follows than what a template writes between turns.
    """
    known, seams = spellings(tokenizer), _seams(tokenizer)
    mark, closings = seams.special, seams.closings("assistant")
    firsts = {closing: mark.search(closing) for closing in closings} if mark is not None else {}
    ends = {known[first[0]] for first in firsts.values() if first is not None} | {known.get(seams.stop)}
    end = next((place for place, token in enumerate(ids) if token in ends), len(ids))
    behind = text_of(tokenizer, ids[end + 1 :])
    usual = {closing[first.end() :] for closing, first in firsts.items() if first is not None}
    lost = bool(behind) and not any(one.startswith(behind) for one in usual)
    return end, lost


def _same_but_split(tokenizer: Tokenizer, whole: Sequence[int], ids: Sequence[int]) -> bool:
    """Tell whether tokens read as the beginning of others, divided in another way."""
    return text_of(tokenizer, whole).startswith(text_of(tokenizer, ids))
