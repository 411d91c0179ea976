"""Recorded sessions and their token ids.

JSON lines of `{"id", "messages": [{"role", "content"}]}`, or of `{"id", "text"}` for models without a chat template.
What a line may say beside: `category`, `facts` (see `kvcompress.metrics.recall`), `instructions` (see
`kvcompress.metrics.instructions`), and in each message `time`, when it was said: seconds since 1970 or ISO 8601.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kvcompress.errors import FormatError, InputError

if TYPE_CHECKING:
    from kvcompress.hf.types import Tokenizer

DEFAULT_CATEGORY = "dialogue"


@dataclass(frozen=True, slots=True)
class Session:
    """One recorded conversation or plain text.

    Attributes:
        id: Its name in the file.
        messages: Turns with `role` and `content`; empty for plain text.
        facts: Planted facts, each with `question_message` (index of the user turn that asks),
            `stated_message` and `value`; empty where the file has none.
        instructions: Standing instructions, each with `stated_message`, `position` and `text`; empty where there
            are none.
        category: What kind of session it is, e.g. "arithmetic": reports say their figures by category.
        text: The plain text of a session without turns, else None.
        times: When each message was said, seconds since 1970; empty where not all of them say it.
    """

    id: str
    messages: list[dict[str, str]]
    facts: list[dict[str, Any]] = field(default_factory=list)
    instructions: list[dict[str, Any]] = field(default_factory=list)
    category: str = DEFAULT_CATEGORY
    text: str | None = None
    times: tuple[float, ...] = ()


def _parse(line: str, path: Path, number: int) -> Session:
    where = f"line {number}"
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:
        reason = error.msg if isinstance(error, json.JSONDecodeError) else str(error)
        raise FormatError(
            f"{where} is not JSON ({reason})", "A session file has one JSON object a line", path=path
        ) from error
    if isinstance(row, dict) and isinstance(row.get("text"), str) and "messages" not in row:
        return Session(str(row.get("id", number)), [], category=str(row.get("category", "text")), text=row["text"])
    messages = row.get("messages") if isinstance(row, dict) else None
    if not isinstance(messages, list) or not messages:
        raise FormatError(f"{where} has no messages", 'Each line is {"id": ..., "messages": [...]}', path=path)
    for message in messages:
        fields = (message.get("role"), message.get("content")) if isinstance(message, dict) else ()
        if len(fields) != 2 or not all(isinstance(value, str) for value in fields):
            raise FormatError(f"{where} has a message without role and content", path=path)
    times = [_time(message.pop("time"), where, path) for message in messages if "time" in message]
    return Session(
        str(row.get("id", number)),
        messages,
        _rows(row, "facts", where, path),
        _rows(row, "instructions", where, path),
        str(row.get("category") or DEFAULT_CATEGORY),
        times=tuple(times) if len(times) == len(messages) else (),
    )


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


def read_sessions(path: Path) -> Iterator[Session]:
    """Yield the sessions of a file in order.

    Raises:
        InputError: The file cannot be read or holds no session.
        FormatError: A line is not a session.
    """
    count = 0
    try:
        with path.open(encoding="utf-8") as handle:
            for number, line in enumerate(handle, 1):
                if line.strip():
                    count += 1
                    yield _parse(line, path, number)
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not UTF-8 text"
        raise InputError(f"cannot be read ({reason})", "Name a JSON lines file of sessions", path=path) from error
    if not count:
        raise InputError("holds no session", path=path)


def find_session(path: Path, wanted: str | None) -> Session:
    """Return the session of a given id, or the first one.

    Raises:
        InputError: No session has this id.
    """
    known = []
    for session in read_sessions(path):
        if wanted is None or session.id == wanted:
            return session
        known.append(session.id)
    shown = ", ".join(known[:5]) + (", ..." if len(known) > 5 else "")
    raise InputError(f"no session has the id {wanted!r}", f"The file holds {shown}", path=path)


def text_ids(tokenizer: Tokenizer, text: str) -> list[int]:
    """Return the token ids of text as it is: no special tokens added, no warning about its length."""
    return list(tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])


def plain_text_ids(tokenizer: Tokenizer, text: str) -> list[int]:
    """Return the token ids of plain text, the tokenizer's opening token (if it has one) before them."""
    opening = [] if tokenizer.bos_token_id is None else [int(tokenizer.bos_token_id)]
    return [*opening, *text_ids(tokenizer, text)]


def session_token_ids(session: Session, tokenizer: Tokenizer, *, ask: bool = False) -> list[int]:
    """Lay a session out by the tokenizer's chat template; plain text as it is.

    Args:
        session: The conversation.
        tokenizer: A transformers tokenizer.
        ask: End with the assistant's turn opened, ready to answer.

    Raises:
        InputError: The tokenizer has no chat template or the template refuses the messages.
    """
    if session.text is not None:
        return plain_text_ids(tokenizer, session.text)
    if not getattr(tokenizer, "chat_template", None):
        raise InputError("the tokenizer has no chat template", "Give plain text: record --text, or lines of {id, text}")
    try:
        text = tokenizer.apply_chat_template(session.messages, tokenize=False, add_generation_prompt=ask)
    except Exception as error:  # templates raise whatever jinja raises
        raise InputError(f"the chat template refuses session {session.id} ({error})") from error
    return text_ids(tokenizer, text)


def token_ages(session: Session, tokenizer: Tokenizer) -> list[float] | None:
    """Return how many seconds before the last message each token was said; None where the messages do not say when.

    Raises:
        InputError: As `session_token_ids`.
    """
    if not session.times:
        return None
    ages: list[float] = []
    for count, time in enumerate(session.times, 1):
        end = len(session_token_ids(replace(session, messages=session.messages[:count]), tokenizer))
        ages += [max(session.times) - time] * (end - len(ages))
    return ages
