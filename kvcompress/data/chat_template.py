"""Lay out a conversation by its tokenizer's chat template: the same tokens as `apply_chat_template`.

Text that spells a special token stays text (`kvcompress.hf.special_tokens`), unless asked otherwise. In an assistant's
turns that holds for the tokens that divide turns; others, such as `<think>`, are the model's own words and stay tokens.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from kvcompress.errors import InputError, first_line
from kvcompress.hf.special_tokens import broken, free_character, ids_of, ids_of_broken, pattern_of, spellings

if TYPE_CHECKING:
    from kvcompress.hf.types import Tokenizer

Message = Mapping[str, Any]
NAMED_TOKENS = ("bos_token", "eos_token", "pad_token", "unk_token")
PROBE = "Zqx1jW"
"""A text that no template writes by itself."""

_PARTS_ALONE: weakref.WeakKeyDictionary[Any, tuple[str, bool]] = weakref.WeakKeyDictionary()


@dataclass(frozen=True, slots=True)
class Dialogue:
    """What was said.

    Attributes:
        messages: Turns as chat templates take them, each with `role` and, as a rule, `content`.
        tools: Definitions of functions that the model may call, as chat templates take them.
        special_tokens: Indices of the messages in which text that spells a special token becomes that token.
    """

    messages: tuple[Message, ...]
    tools: tuple[Message, ...] = ()
    special_tokens: frozenset[int] = frozenset()

    def then(self, *messages: Message, special_tokens: bool = False) -> Dialogue:
        """Return the conversation with messages added, in which special tokens may be spelled or not."""
        longer = (*self.messages, *messages)
        new = range(len(self.messages), len(longer)) if special_tokens else ()
        return replace(self, messages=longer, special_tokens=self.special_tokens | set(new))

    def without_last(self) -> Dialogue:
        """Return the conversation before its last message."""
        left = self.messages[:-1]
        return replace(self, messages=left, special_tokens=self.special_tokens & set(range(len(left))))


def user(text: str) -> Message:
    """Return a user's message."""
    return {"role": "user", "content": text}


def has_template(tokenizer: Tokenizer) -> bool:
    """Tell whether a tokenizer has a chat template."""
    return bool(getattr(tokenizer, "chat_template", None))


def layout(tokenizer: Tokenizer, dialogue: Dialogue, *, ask: bool = False, name: str = "the conversation") -> str:
    """Return the text that the chat template makes of a conversation.

    Args:
        tokenizer: A transformers tokenizer.
        dialogue: The conversation.
        ask: End with the assistant's turn opened, ready to answer.
        name: What errors call it.

    Raises:
        InputError: The tokenizer has no chat template or the template refuses the messages.
    """
    if not has_template(tokenizer):
        raise InputError("the tokenizer has no chat template", "Give plain text: record --text, or lines of {id, text}")
    more = {"tools": [dict(tool) for tool in dialogue.tools]} if dialogue.tools else {}
    in_parts = _takes_parts_alone(tokenizer)
    messages = [_in_parts(message) if in_parts else dict(message) for message in dialogue.messages]
    try:
        text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=ask, **more)
    except Exception as error:  # templates raise whatever jinja raises
        reason = first_line(error).removeprefix("TemplateError: ")
        raise InputError(f"the chat template refuses {name} ({reason})") from error
    return str(text)


def _in_parts(message: Message) -> dict[str, Any]:
    content = message.get("content")
    return {**message, "content": [{"type": "text", "text": content}]} if isinstance(content, str) else dict(message)


def _takes_parts_alone(tokenizer: Tokenizer) -> bool:
    """Tell whether a template shows lists of parts but no plain text, as those of models that see pictures may."""
    template, known = str(getattr(tokenizer, "chat_template", "")), _PARTS_ALONE.get(tokenizer)
    if known is None or known[0] != template:
        plain = user(PROBE)
        shown = [_shows(tokenizer, message) for message in (plain, _in_parts(plain))]
        known = _PARTS_ALONE[tokenizer] = template, shown == [False, True]
    return known[1]


def _shows(tokenizer: Tokenizer, message: Message) -> bool:
    try:
        return PROBE in str(tokenizer.apply_chat_template([dict(message)], tokenize=False))
    except Exception:  # templates raise whatever jinja raises
        return False


def layout_ids(
    tokenizer: Tokenizer, dialogue: Dialogue, *, ask: bool = False, name: str = "the conversation"
) -> list[int]:
    """Return the token ids of a conversation under the chat template; arguments and errors as `layout`."""
    text, character = broken_layout(tokenizer, dialogue, ask=ask, name=name)
    return ids_of_broken(tokenizer, text, character) if character else ids_of(tokenizer, text)


def broken_layout(
    tokenizer: Tokenizer, dialogue: Dialogue, *, ask: bool = False, name: str = "the conversation"
) -> tuple[str, str]:
    """Return the template's text in which spellings of special tokens that are only text have a character inside.

    Returns:
        The text, and the character, "" where no message spells a special token.
    """
    text, names = layout(tokenizer, dialogue, ask=ask, name=name), pattern_of(spellings(tokenizer))
    plain = [at for at in range(len(dialogue.messages)) if at not in dialogue.special_tokens]
    if names is None or not any(names.search(leaf) for at in plain for leaf in texts_of(dialogue.messages[at])):
        return text, ""
    between = pattern_of(dividing(tokenizer))
    character = free_character(text)

    def told(at: int, message: Message) -> Message:
        if at in dialogue.special_tokens:
            return message
        which = between if message["role"] == "assistant" else names
        parts = {key: mapped(value, lambda text: broken(text, which, character)) for key, value in message.items()}
        return parts | {"role": message["role"]}

    marked = replace(dialogue, messages=tuple(told(at, message) for at, message in enumerate(dialogue.messages)))
    found = layout(tokenizer, marked, ask=ask, name=name)
    if found.replace(character, "") != text:
        remedy = "Leave it out of the text, or let it be the token with --special-tokens-in-text"
        raise InputError(f"the chat template acts on a special token that the text of {name} spells", remedy)
    return (found, character) if character in found else (text, "")


def mapped(value: Any, change: Callable[[str], Any]) -> Any:
    """Return JSON with every text in it changed, keys of objects too."""
    if isinstance(value, str):
        return change(value)
    if isinstance(value, Mapping):
        return {mapped(key, change): mapped(one, change) for key, one in value.items()}
    return [mapped(one, change) for one in value] if isinstance(value, list | tuple) else value


def texts_of(value: Any) -> Iterator[str]:
    """Yield every text in JSON, keys of objects too."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping | list | tuple):
        for one in value.items() if isinstance(value, Mapping) else value:
            yield from texts_of(one)


def dividing(tokenizer: Tokenizer) -> set[str]:
    """Return the spellings of special tokens that divide turns, and those that the tokenizer itself names.

    Those of thinking are none of them, although some templates write them in every answer.
    """
    found = {str(getattr(tokenizer, name, None) or "") for name in NAMED_TOKENS}
    known = pattern_of(spellings(tokenizer))
    probe: Sequence[Message] = (user("a"), {"role": "assistant", "content": "b"}, user("c"))
    try:
        text = layout(tokenizer, Dialogue(tuple(probe)))
    except InputError:  # a template that takes no such conversation tells nothing: then all divide
        return set(spellings(tokenizer))
    found |= set(known.findall(text) if known is not None else ())
    return {name for name in found if name and "think" not in name.lower()}
