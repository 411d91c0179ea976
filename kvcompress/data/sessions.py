"""Recorded sessions and their token ids.

JSON lines of `{"id", "messages": [{"role", "content"}]}`, or of `{"id", "text"}` for models without a chat template.
What a line may say beside: `category`, `facts` (see `kvcompress.metrics.recall`), `instructions` (see
`kvcompress.metrics.instructions`), `tools` as chat templates take them, and in each message `time`, when it was said:
seconds since 1970 or ISO 8601. Further fields of a message are the chat template's: what it leaves out is refused.
With `special_tokens` true, text of the line that spells a special token becomes that token.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kvcompress.data.chat_template import Dialogue, has_template, layout_ids, texts_of
from kvcompress.data.rendered import require_rendered
from kvcompress.data.text_files import opened_text, without_mark
from kvcompress.errors import FormatError, InputError
from kvcompress.format.strict_json import MOST_LINE_BYTES, require_shallow
from kvcompress.hf.conversation import common_prefix
from kvcompress.hf.special_tokens import ids_of, plain_ids, require_text

if TYPE_CHECKING:
    from kvcompress.hf.types import Tokenizer

DEFAULT_CATEGORY = "dialogue"
_ROLE = re.compile(r"\w(?:[\w .:/-]{0,62}\w)?")


@dataclass(frozen=True, slots=True)
class Session:
    """One recorded conversation or plain text.

    Attributes:
        id: Its name in the file.
        messages: Turns with `role` and `content`, and what else the chat template takes; empty for plain text.
        facts: Planted facts, each with `question_message` (index of the user turn that asks),
            `stated_message` and `value`; empty where the file has none.
        instructions: Standing instructions, each with `stated_message`, `position` and `text`; empty where there
            are none.
        category: What kind of session it is, e.g. "arithmetic": reports say their figures by category.
        text: The plain text of a session without turns, else None.
        times: When each message was said, seconds since 1970; empty where not all of them say it.
        tools: Definitions of functions that the model may call, as chat templates take them.
        path: The file that it stands in, None where it stands in none.
        line: Its line there, from 1.
        special_tokens: Whether its text may spell special tokens.
    """

    id: str
    messages: list[dict[str, Any]]
    facts: list[dict[str, Any]] = field(default_factory=list)
    instructions: list[dict[str, Any]] = field(default_factory=list)
    category: str = DEFAULT_CATEGORY
    text: str | None = None
    times: tuple[float, ...] = ()
    tools: list[dict[str, Any]] = field(default_factory=list)
    path: Path | None = None
    line: int = 0
    special_tokens: bool = False

    @property
    def place(self) -> str:
        """What errors call it."""
        return f"line {self.line}" if self.line else f"session {self.id}"

    def dialogue(self, *, special_tokens: bool = False) -> Dialogue:
        """Return its conversation, in which text may spell special tokens or not."""
        return Dialogue((), tuple(self.tools)).then(
            *self.messages, special_tokens=special_tokens or self.special_tokens
        )


def _parse(line: str, path: Path, number: int) -> Session:
    where = f"line {number}"
    try:
        row = json.loads(without_mark(line), object_pairs_hook=_unique)
        require_shallow(row)
    except (ValueError, RecursionError) as error:
        reason = error.msg if isinstance(error, json.JSONDecodeError) else str(error)
        raise FormatError(
            f"{where} is not JSON ({reason})", "A session file has one JSON object a line", path=path
        ) from error
    if not isinstance(row, dict):
        raise FormatError(f"{where} is no JSON object", "A session file has one JSON object a line", path=path)
    messages, special = row.get("messages"), row.get("special_tokens", False)
    if not isinstance(special, bool):
        raise FormatError(f"{where}: special_tokens is neither true nor false", path=path)
    for key in row.keys() - {"messages"}:  # messages name their number below
        place = {"text": where, "id": f"{where}: the id"}.get(key, f"{where}: {key}")
        for leaf in texts_of({key: row[key]}):
            require_text(leaf, place, path=path)
    if isinstance(row.get("text"), str) and "messages" not in row:
        text, name = without_mark(row["text"]), _name(row, number, path)
        kind = str(row.get("category", "text"))
        return Session(name, [], category=kind, text=text, path=path, line=number, special_tokens=special)
    if not isinstance(messages, list) or not messages:
        raise FormatError(f"{where} has no messages", 'Each line is {"id": ..., "messages": [...]}', path=path)
    if "text" in row:
        raise FormatError(f"{where} has both messages and text", "Give one of them", path=path)
    for index, message in enumerate(messages, 1):
        _require_message(message, f"{where}, message {index}", path)
    times = [_time(message.pop("time"), where, path) for message in messages if "time" in message]
    return Session(
        _name(row, number, path),
        messages,
        _planted(row, "facts", ("stated_message", "question_message"), "value", where, path),
        _planted(row, "instructions", ("stated_message",), "text", where, path),
        str(row.get("category") or DEFAULT_CATEGORY),
        times=tuple(times) if len(times) == len(messages) else (),
        tools=_rows(row, "tools", where, path),
        path=path,
        line=number,
        special_tokens=special,
    )


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Build a JSON object; of two equal keys one would be lost."""
    found = dict(pairs)
    if len(found) != len(pairs):
        twice = next(key for key, _ in pairs if sum(key == other for other, _ in pairs) > 1)
        raise ValueError(f"the key {twice!r} occurs twice")
    return found


def _name(row: dict[str, Any], number: int, path: Path) -> str:
    name = row.get("id")
    if name is not None and (not isinstance(name, str | int) or isinstance(name, bool)):
        raise FormatError(f"line {number}: the id is neither text nor a whole number", "Give it as text", path=path)
    return str(number if name is None else name)


def _require_message(message: Any, where: str, path: Path) -> None:
    """Raise an error that names the message unless it has a role, says something, and is text all through."""
    if not isinstance(message, dict):
        raise FormatError(f"{where} is not an object", 'A message is {"role": ..., "content": ...}', path=path)
    role, content = message.get("role"), message.get("content")
    if not isinstance(role, str) or not _ROLE.fullmatch(role):
        shown = "no role" if "role" not in message else f"a role that is no word ({str(role)[:40]!r})"
        raise FormatError(f"{where} has {shown}", 'Give one such as "user" or "assistant"', path=path)
    says = [key for key, value in message.items() if key not in ("role", "content", "time") and value]
    if not isinstance(content, str | list) and not (content is None and says):
        shown = "no content" if content is None else f"content that is neither text nor a list of parts ({content!r})"
        raise FormatError(f"{where} has {shown[:120]}", "Give it as text", path=path)
    for key, value in message.items():
        for text in texts_of(value):
            require_text(text, f"{where}: {key}", path=path)


def _time(value: Any, where: str, path: Path) -> float:
    """Return seconds since 1970 of a number or of ISO 8601, in UTC where that names no zone."""
    try:
        if isinstance(value, str):
            moment = datetime.fromisoformat(value)
            return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()
        if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value):
            return float(value)
    except (ValueError, OverflowError):
        pass
    raise FormatError(f"{where}: {value!r} is no time", "Give seconds since 1970, or ISO 8601", path=path)


def _rows(row: dict[str, Any], name: str, where: str, path: Path) -> list[dict[str, Any]]:
    """Return a list of objects that a line may have."""
    found = row.get(name) or []
    if not isinstance(found, list) or not all(isinstance(item, dict) for item in found):
        raise FormatError(f"{where}: {name} is not a list of objects", path=path)
    return found


def _planted(
    row: dict[str, Any], name: str, places: Sequence[str], text: str, where: str, path: Path
) -> list[dict[str, Any]]:
    """Return facts or instructions, each with the indices of its messages and its text."""
    found, last = _rows(row, name, where, path), len(row["messages"]) - 1
    for number, one in enumerate(found, 1):
        for place in places:
            at = one.get(place)
            if not isinstance(at, int) or isinstance(at, bool) or not 0 <= at <= last:
                what = f"{where}: {place} of number {number} of {name} is no index of a message"
                raise FormatError(what, f"Give one from 0 to {last}", path=path)
        if not isinstance(one.get(text), str) or not one[text]:
            raise FormatError(f"{where}: number {number} of {name} has no {text}", "Give it as text", path=path)
    return found


def read_sessions(path: Path) -> Iterator[Session]:
    """Yield the sessions of a file in order.

    Raises:
        InputError: The file cannot be read or holds no session.
        FormatError: A line is not a session.
    """
    count = 0
    with opened_text(path, "Name a JSON lines file of sessions") as handle:
        lines = iter(lambda: handle.readline(MOST_LINE_BYTES + 1), "")
        for number, line in enumerate(lines, 1):
            if len(line) > MOST_LINE_BYTES:
                raise FormatError(f"line {number} is longer than {MOST_LINE_BYTES} characters", path=path)
            if without_mark(line).strip():
                count += 1
                yield _parse(line, path, number)
    if not count:
        raise InputError("holds no session", path=path)


def find_session(path: Path, wanted: str | None) -> Session:
    """Return the session of a given id, or the first one.

    Raises:
        InputError: No session has this id, or several have.
    """
    if wanted is None:
        return next(read_sessions(path))
    known, found = [], list[Session]()
    for session in read_sessions(path):
        known.append(session.id)
        found += [session] if session.id == wanted else []
    if len(found) > 1:
        what = f"the sessions of lines {found[0].line} and {found[1].line} both have the id {wanted!r}"
        raise InputError(what, "Give each an id of its own", path=path)
    if found:
        return found[0]
    shown = ", ".join(known[:5]) + (", ..." if len(known) > 5 else "")
    raise InputError(f"no session has the id {wanted!r}", f"The file holds {shown}", path=path)


def text_ids(tokenizer: Tokenizer, text: str) -> list[int]:
    """Return the token ids of text as it is: no special tokens added, and those that it spells are taken as such."""
    return ids_of(tokenizer, text)


def plain_text_ids(tokenizer: Tokenizer, text: str, *, special_tokens: bool = False) -> list[int]:
    """Return the token ids of plain text, the tokenizer's opening token (if it has one) before them.

    Args:
        tokenizer: A transformers tokenizer.
        text: The text.
        special_tokens: Whether what spells a special token becomes it.
    """
    opening = [] if tokenizer.bos_token_id is None else [int(tokenizer.bos_token_id)]
    return [*opening, *plain_ids(tokenizer, text, special_tokens=special_tokens)]


def session_token_ids(
    session: Session, tokenizer: Tokenizer, *, ask: bool = False, special_tokens: bool = False
) -> list[int]:
    """Lay a session out by the tokenizer's chat template; plain text as it is.

    Args:
        session: The conversation.
        tokenizer: A transformers tokenizer.
        ask: End with the assistant's turn opened, ready to answer.
        special_tokens: Whether text that spells a special token becomes that token.

    Raises:
        InputError: The tokenizer has no chat template, or the template refuses the messages or leaves something out.
    """
    if session.text is not None:
        return plain_text_ids(tokenizer, session.text, special_tokens=special_tokens or session.special_tokens)
    said = session.dialogue(special_tokens=special_tokens)
    try:
        if has_template(tokenizer):
            require_rendered(tokenizer, said, session.place)
        return layout_ids(tokenizer, said, ask=ask, name=session.place)
    except InputError as error:
        error.path = error.path or session.path
        raise


def tokens_until(session: Session, tokenizer: Tokenizer, messages: int, token_ids: Sequence[int]) -> int:
    """Return how many of a session's tokens its first messages take.

    A template may lay them out otherwise once others follow: what is counted then is what they have in common.

    Args:
        session: The session.
        tokenizer: Its tokenizer.
        messages: How many messages.
        token_ids: The tokens of the session.

    Raises:
        InputError: The template refuses so few messages.
    """
    said = replace(session, messages=session.messages[:messages]).dialogue()
    return common_prefix(layout_ids(tokenizer, said), token_ids)


def token_ages(session: Session, tokenizer: Tokenizer) -> list[float] | None:
    """Return how many seconds before the last message each token was said; None where the messages do not say when.

    Raises:
        InputError: As `session_token_ids`.
    """
    if not session.times:
        return None
    token_ids, ages = session_token_ids(session, tokenizer), list[float]()
    for count, time in enumerate(session.times, 1):
        try:
            end = len(token_ids) if count == len(session.times) else tokens_until(session, tokenizer, count, token_ids)
        except InputError:  # a template may refuse a conversation that ends there: these tokens belong to what follows
            continue
        ages += [max(session.times) - time] * (end - len(ages))
    return ages
