"""The tokens of the user's next turn after a stored session, as the chat template gives them.

```
stored     A B C D E            template of the whole     A B C x y z
                                in common A B C: the cache is cut back to there, and x y z are prefilled
```
A template may lay earlier turns out in another way once others follow, as those do that show the thinking of the last
answer only; then what is in common ends early. A session remembers its conversation where its tokens do not tell it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from kvcompress.data.chat_template import PROBE, Dialogue, Message, broken_layout, layout_ids, user
from kvcompress.data.recovery import agreed, answer, recovered, text_of
from kvcompress.errors import FormatError, InputError
from kvcompress.hf.conversation import common_prefix
from kvcompress.hf.special_tokens import ids_of, ids_of_broken

if TYPE_CHECKING:
    from kvcompress.hf.types import Tokenizer
    from kvcompress.snapshot import KVSnapshot

OUTSIDE_THE_TEMPLATE = "the session is not laid out by this chat template, so the prompt is put behind it as a turn"

MOST_CHARACTERS = 1 << 20
"""A longer conversation is not kept beside its tokens."""


@dataclass(frozen=True, slots=True)
class NextTurn:
    """What to feed after a session.

    Attributes:
        token_ids: The whole conversation with the user's turn, the assistant's turn opened.
        kept: How many of the session's tokens it begins with; the cache of the others is not used.
        told: Whether these are the template's tokens. Otherwise the session is in no layout that its template gives,
            and the turn is put behind it.
        dialogue: The conversation with the user's turn, None where it is not told.
    """

    token_ids: tuple[int, ...]
    kept: int
    told: bool = True
    dialogue: Dialogue | None = None

    def answered(self, tokenizer: Tokenizer, token_ids: Sequence[int]) -> Dialogue | None:
        """Return the conversation with the model's answer, given without the token that ended it."""
        return None if self.dialogue is None else self.dialogue.then(answer(tokenizer, self.dialogue, token_ids))


def next_turn(
    tokenizer: Tokenizer,
    token_ids: Sequence[int],
    text: str,
    *,
    dialogue: Dialogue | None = None,
    special_tokens: bool = False,
) -> NextTurn:
    """Return the tokens of a conversation in which the user says something after a session.

    Args:
        tokenizer: With a chat template.
        token_ids: The session.
        text: What the user says.
        dialogue: The conversation of the session; None reads it from the tokens.
        special_tokens: Whether the text may spell special tokens.

    Raises:
        InputError: The template refuses the conversation, such as a user's turn after another one.
    """
    ids = [int(token) for token in token_ids]
    found = dialogue if dialogue is not None else recovered(tokenizer, ids)
    if found is None:
        whole = appended(tokenizer, [], text, special_tokens=special_tokens)
        behind = appended(tokenizer, ids, text, special_tokens=special_tokens)
        if ids and ids[-1] == tokenizer.eos_token_id and behind == whole:
            del ids[-1]  # the template closes an earlier answer in its own way, without this stop token
            behind = appended(tokenizer, ids, text, special_tokens=special_tokens)
        return NextTurn((*ids, *behind), len(ids), told=False)
    longer = found.then(user(text), special_tokens=special_tokens)
    try:
        whole = layout_ids(tokenizer, longer, ask=True, name="the session with this prompt")
    except InputError as error:
        raise InputError(error.what, error.remedy or "Append the prompt as it is with --plain") from error
    return NextTurn(tuple(whole), min(common_prefix(ids, whole), len(whole) - 1), dialogue=longer)


def next_turn_of(tokenizer: Tokenizer, snapshot: KVSnapshot, text: str, *, special_tokens: bool = False) -> NextTurn:
    """Return the same for a stored session, by the conversation that it keeps or that its tokens tell."""
    ids = snapshot.token_ids.tolist()
    dialogue = kept_dialogue(tokenizer, ids, snapshot.origin.conversation)
    return next_turn(tokenizer, ids, text, dialogue=dialogue, special_tokens=special_tokens)


def appended(tokenizer: Tokenizer, token_ids: Sequence[int], text: str, *, special_tokens: bool = False) -> list[int]:
    """Return the tokens that follow an assistant's answer where the user says `text`, what is there already left out.

    Raises:
        InputError: As `next_turn`.
    """
    marks = user(f"{PROBE}u"), {"role": "assistant", "content": f"{PROBE}a"}
    dialogue = Dialogue(marks).then(user(text), special_tokens=special_tokens)
    whole, character = broken_layout(tokenizer, dialogue, ask=True)
    before, mark, tail = whole.rpartition(f"{PROBE}a")
    if not before or not mark:
        raise InputError("the chat template leaves out what is said", "Append the prompt as it is with --plain")
    ids = ids_of_broken(tokenizer, tail, character) if character else ids_of(tokenizer, tail)
    there = next((n for n in range(min(len(ids), len(token_ids)), 0, -1) if list(token_ids[-n:]) == ids[:n]), 0)
    return ids[there:]


def to_keep(tokenizer: Tokenizer, token_ids: Sequence[int], dialogue: Dialogue) -> dict[str, Any] | None:
    """Return a conversation as a session's origin keeps it, None where the tokens tell as much.

    A message of `role` and `content` alone is written as `[role, start, length]` where its content stands in the text
    of the tokens, in characters.

    Args:
        tokenizer: With a chat template.
        token_ids: All tokens of the conversation.
        dialogue: The conversation.
    """
    told = recovered(tokenizer, token_ids)
    if told is not None and all(
        _next(tokenizer, told, text) == _next(tokenizer, dialogue, text) for text in (PROBE, f"{PROBE} {PROBE}")
    ):
        return None
    text, at, messages = text_of(tokenizer, token_ids), 0, list[Any]()
    for message in dialogue.messages:
        content = message["content"] if set(message) == {"role", "content"} else None
        start = text.find(content, at) if isinstance(content, str) else -1
        if start < 0 or not isinstance(content, str):
            messages.append(dict(message))
            continue
        messages.append([message["role"], start, len(content)])
        at = start + len(content)
    kept: dict[str, Any] = {"messages": messages}
    kept |= {"tools": [dict(tool) for tool in dialogue.tools]} if dialogue.tools else {}
    kept |= {"special_tokens": sorted(dialogue.special_tokens)} if dialogue.special_tokens else {}
    return kept if len(str(kept)) <= MOST_CHARACTERS else None


def with_dialogue(snapshot: KVSnapshot, tokenizer: Tokenizer, dialogue: Dialogue) -> KVSnapshot:
    """Return a snapshot that keeps the conversation of its tokens where these do not tell it."""
    kept = to_keep(tokenizer, snapshot.token_ids.tolist(), dialogue)
    return snapshot if kept is None else replace(snapshot, origin=replace(snapshot.origin, conversation=kept))


def _next(tokenizer: Tokenizer, dialogue: Dialogue, text: str) -> list[int] | None:
    try:
        return layout_ids(tokenizer, dialogue.then(user(text)), ask=True)
    except InputError:
        return None


def kept_dialogue(tokenizer: Tokenizer, token_ids: Sequence[int], kept: Mapping[str, Any] | None) -> Dialogue | None:
    """Return the conversation that a session's origin keeps; the inverse of `to_keep`.

    Returns:
        None where it keeps none, or one of other tokens than these.

    Raises:
        FormatError: It is no conversation.
    """
    if kept is None:
        return None
    text = text_of(tokenizer, token_ids)
    try:
        messages = tuple(_message(entry, text) for entry in kept["messages"])
        tools = tuple(dict(tool) for tool in kept.get("tools", ()))
        special = frozenset(int(at) for at in kept.get("special_tokens", ()))
    except (KeyError, TypeError, ValueError, IndexError, AttributeError) as error:
        raise FormatError(f"the conversation in the session's origin is damaged ({error})") from error
    dialogue = Dialogue(messages, tools, special)
    return dialogue if messages and agreed(tokenizer, dialogue, token_ids) is not None else None


def _message(entry: Any, text: str) -> Message:
    if isinstance(entry, dict):
        return {str(key): value for key, value in entry.items()} | {"role": str(entry["role"])}
    role, start, length = str(entry[0]), int(entry[1]), int(entry[2])
    if len(entry) != 3 or not 0 <= start <= start + length <= len(text):
        raise ValueError(f"{entry!r} is no place in its text")
    return {"role": role, "content": text[start : start + length]}
