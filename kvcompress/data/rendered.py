"""Check that a chat template shows everything that a conversation says.

Templates ignore what they do not know: calls of tools, a name, a role. So the conversation is laid out again with
something changed, and the text must change with it.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from kvcompress.data.chat_template import Dialogue, Message, layout, user
from kvcompress.errors import InputError
from kvcompress.hf.special_tokens import pattern_of, spellings

if TYPE_CHECKING:
    from kvcompress.hf.types import Tokenizer

KNOWN_ROLES = ("system", "user", "assistant")
PLAIN_FIELDS = ("role", "content")
LINKS = ("id", "type", "index")
"""Within a call these tell which result belongs to it; they are no text, and a template may leave them out."""

Path = tuple[str | int, ...]


def require_rendered(tokenizer: Tokenizer, dialogue: Dialogue, name: str = "the conversation") -> None:
    """Raise `InputError`, naming the message, unless the chat template shows all that a conversation says.

    Args:
        tokenizer: With a chat template.
        dialogue: The conversation.
        name: What errors call it, such as "line 3".
    """
    try:
        text = layout(tokenizer, dialogue, name=name)
    except InputError:
        _explain(tokenizer, dialogue, name)
        raise
    for number, message in enumerate(dialogue.messages):
        _require_text_parts(message, f"{name}, message {number + 1}")
        if not isinstance(message.get("content", ""), str):
            _require_no_python(tokenizer, dialogue, number, text, name)
    marked = _marked(tokenizer, dialogue)
    for number, message in enumerate(dialogue.messages):
        where = f"{name}, message {number + 1}"
        if marked is not None:
            _require_shown(marked, number, message, where)
        if message["role"] not in KNOWN_ROLES and marked is not None:
            _require_role_token(tokenizer, marked, number, str(message["role"]), where)
            _require_own_role(tokenizer, dialogue, number, text, where)
        _require_fields(tokenizer, dialogue, number, text, where)
    if dialogue.tools and layout(tokenizer, replace(dialogue, tools=()), name=name) == text:
        raise InputError(f"{name}: this chat template leaves out tools", "Take them out, or use a model that has them")


def _explain(tokenizer: Tokenizer, dialogue: Dialogue, name: str) -> None:
    """Raise a clearer error where lists or null as content are why a template refuses a conversation."""
    odd = [at for at, message in enumerate(dialogue.messages) if not isinstance(message.get("content"), str)]
    if not odd:
        return
    plain = tuple({**message, "content": _flat(message.get("content"))} for message in dialogue.messages)
    try:
        layout(tokenizer, replace(dialogue, messages=plain))
    except InputError:
        return
    raise _not_taken(dialogue.messages[odd[0]], f"{name}, message {odd[0] + 1}")


def _flat(content: Any) -> str:
    if isinstance(content, str):
        return content
    return "".join(str(part.get("text", "")) for part in content or () if isinstance(part, dict))


def _not_taken(message: Message, where: str) -> InputError:
    kind = "null" if message.get("content") is None else "a list of parts"
    return InputError(f"{where}: this chat template does not take {kind} as content", "Give the content as one text")


def _require_text_parts(message: Message, where: str) -> None:
    if not isinstance(message.get("content"), list):
        return
    for part in message["content"]:
        if not isinstance(part, dict) or part.get("type") != "text" or not isinstance(part.get("text"), str):
            kind = part.get("type") if isinstance(part, dict) else part
            what = f"{where} has a part {kind!r} that is not text"
            raise InputError(what, 'Sessions hold text alone: give parts as {"type": "text", "text": ...}')


def _require_no_python(tokenizer: Tokenizer, dialogue: Dialogue, number: int, text: str, name: str) -> None:
    """Raise `InputError` where a template writes a list or null as Python or JSON does."""
    message = dialogue.messages[number]
    content = message.get("content")
    if _laid_out(tokenizer, _changed(dialogue, number, ("content",), _mark(number))) == text:
        return  # the template shows no content here at all
    for spelled in {str(content), json.dumps(content), json.dumps(content, ensure_ascii=False)}:
        if _laid_out(tokenizer, _changed(dialogue, number, ("content",), spelled)) == text:
            raise _not_taken(message, f"{name}, message {number + 1}")


def _changed(dialogue: Dialogue, number: int, at: Path, value: Any) -> Dialogue:
    """Return the conversation with one value in one message replaced."""
    message = _put(dialogue.messages[number], at, value)
    return replace(dialogue, messages=(*dialogue.messages[:number], message, *dialogue.messages[number + 1 :]))


def _put(value: Any, at: Path, new: Any) -> Any:
    if not at:
        return new
    if isinstance(value, dict):
        return {**value, str(at[0]): _put(value.get(str(at[0])), at[1:], new)}
    return [_put(one, at[1:], new) if place == at[0] else one for place, one in enumerate(value)]


def _laid_out(tokenizer: Tokenizer, dialogue: Dialogue) -> str | None:
    try:
        return layout(tokenizer, dialogue)
    except InputError:
        return None


def _mark(number: int, part: int = 0) -> str:
    return f"Zq{number}p{part}w"


def _marked(tokenizer: Tokenizer, dialogue: Dialogue) -> str | None:
    """Return the layout with a mark for each content, None where the template refuses that."""
    for keeping in (False, True):
        messages = []
        for number, message in enumerate(dialogue.messages):
            content = message.get("content")
            if isinstance(content, str):
                content = (content if keeping else "") + _mark(number)
            elif isinstance(content, list):
                content = [{**part, "text": _mark(number, at)} for at, part in enumerate(content)]
            messages.append({**message, "content": content} if "content" in message else message)
        found = _laid_out(tokenizer, replace(dialogue, messages=tuple(messages)))
        if found is not None:
            return found
    return None


def _require_shown(marked: str, number: int, message: Message, where: str) -> None:
    content = message.get("content")
    parts = len(content) if isinstance(content, list) else int(isinstance(content, str))
    if any(_mark(number, part) not in marked for part in range(parts)):
        what = f"{where}: this chat template leaves out what a message of the role {message['role']!r} says"
        raise InputError(what, "Take the message out, or use a model that has the role")


def _require_role_token(tokenizer: Tokenizer, marked: str, number: int, role: str, where: str) -> None:
    """Raise `InputError` where the template spells a role in ordinary tokens that has a token of its own elsewhere."""
    names = pattern_of(spellings(tokenizer))
    asked = _laid_out(tokenizer, Dialogue((user(_mark(0)),)))
    if names is None or asked is None or not any("user" in name for name in names.findall(asked)):
        return
    header = marked.partition(_mark(number))[0]
    for before in range(number):
        header = header.rpartition(_mark(before))[2]
    if role.lower() in names.sub("", header).lower():
        what = f"{where}: the model has no token for the role {role!r}"
        raise InputError(what, f"Use one of {', '.join(KNOWN_ROLES)}, or a model that has the role")


def _require_own_role(tokenizer: Tokenizer, dialogue: Dialogue, number: int, text: str, where: str) -> None:
    """Raise `InputError` where the template takes a role that it does not know for one that it does."""
    role = dialogue.messages[number]["role"]
    for other in ("assistant", "user", "system"):
        alias = (role, other) == ("developer", "system")
        if not alias and _laid_out(tokenizer, _changed(dialogue, number, ("role",), other)) == text:
            what = f"{where}: this chat template takes the role {role!r} for {other!r}"
            raise InputError(what, f"Use one of {', '.join(KNOWN_ROLES)}, or a model that has the role")


def _require_fields(tokenizer: Tokenizer, dialogue: Dialogue, number: int, text: str, where: str) -> None:
    """Raise `InputError` where a field of a message beside role and content does not show in the text."""
    message = dialogue.messages[number]
    for field, value in message.items():
        is_link = field == "tool_call_id" and message["role"] == "tool"
        parts = field == "content" and isinstance(value, list)
        if is_link or value is None or value in ("", [], {}) or (field in PLAIN_FIELDS and not parts):
            continue
        leaves = [((field, *at), leaf) for at, leaf in _leaves(value) if not (parts and at[-1] in ("type", "text"))]
        for at, leaf in leaves:
            if _laid_out(tokenizer, _changed(dialogue, number, at, _other(leaf))) == text:
                told = ".".join(str(step) for step in at if isinstance(step, str))
                what = f"{where}: this chat template leaves out {told}"
                raise InputError(what, "Take it out of the message, or use a model that has it")


def _leaves(value: Any, at: Path = ()) -> Iterator[tuple[Path, Any]]:
    """Yield place and value of all in JSON that is no list or object, but what only links calls and results."""
    if isinstance(value, dict) and value:
        for key, one in value.items():
            if not (key in LINKS and len(at) == 1 and isinstance(at[0], int)):
                yield from _leaves(one, (*at, key))
    elif isinstance(value, list) and value:
        for place, one in enumerate(value):
            yield from _leaves(one, (*at, place))
    elif value not in (None, [], {}):
        yield at, value


def _other(leaf: Any) -> Any:
    """Return another value of the same type."""
    if isinstance(leaf, bool):
        return not leaf
    if isinstance(leaf, int | float):
        return leaf + 1
    changed: Sequence[Any] = f"{leaf}Zq"
    return changed
