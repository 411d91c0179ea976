"""Conversations by the model's chat template, cut where the context ends and the question begins."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from kvcompress.data.sessions import Session, session_token_ids
from kvcompress.errors import InputError

Messages = list[dict[str, str]]


def exchange(user: str, assistant: str) -> Messages:
    """Return a turn and its answer."""
    return [{"role": "user", "content": user}, {"role": "assistant", "content": assistant}]


def count_tokens(tokenizer: Any, messages: Messages) -> int:
    """Return the tokens of a conversation."""
    return len(session_token_ids(Session("", messages), tokenizer))


def asked_after(tokenizer: Any, messages: Messages, questions: Sequence[str]) -> tuple[list[int], list[list[int]]]:
    """Return the tokens of a conversation, and of each question as the user's next turn, the answer's opened.

    Raises:
        InputError: The tokenizer has no chat template, or one whose turns change as a conversation goes on.
    """
    context = session_token_ids(Session("", messages), tokenizer)
    return context, [_behind(tokenizer, context, [*messages, _user(text)]) for text in questions]


def asked_within(
    tokenizer: Any, messages: Messages, said: str, questions: Sequence[str]
) -> tuple[list[int], list[list[int]]]:
    """Return the same where the user's last turn begins in the context and the question only ends it.

    Args:
        tokenizer: The model's.
        messages: Before that turn.
        said: Its beginning.
        questions: Its different ends.

    Raises:
        InputError: As `asked_after`.
    """
    turns = [[*messages, _user(f"{said}\n\n{text}")] for text in ("", *questions)]
    whole = [session_token_ids(Session("", turn), tokenizer, ask=True) for turn in turns]
    shared = next(at for at, tokens in enumerate(zip(*whole, strict=False)) if len(set(tokens)) > 1)
    context = whole[1][:shared]
    return context, [_behind(tokenizer, context, turn) for turn in turns[1:]]


def _user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


def _behind(tokenizer: Any, context: Sequence[int], messages: Messages) -> list[int]:
    """Return what follows the context in a conversation that begins with it, the answer's turn opened."""
    whole = session_token_ids(Session("", messages), tokenizer, ask=True)
    if whole[: len(context)] != list(context):
        what = "the chat template lays a turn out in another way once the next follows"
        raise InputError(what, "Name tasks of plain text with --task")
    return whole[len(context) :]
