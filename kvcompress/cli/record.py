"""`kvcompress record`: run a model over a session and keep its cache as a raw snapshot."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from kvcompress.cli.console import (
    LINES,
    DtypeOption,
    ForceOption,
    JsonOption,
    ModelOption,
    beside,
    printable,
    require_output,
    show,
    written,
)
from kvcompress.errors import InputError
from kvcompress.hub.bundled import DEFAULT_CODEC, DEFAULT_MODEL

if TYPE_CHECKING:
    from kvcompress.hf.conversation import Conversation
    from kvcompress.hf.types import CausalLM, Tokenizer


def record(
    output: Annotated[
        Path, typer.Option("-o", "--output", help="Raw snapshot to write (.safetensors); - for standard output.")
    ],
    session: Annotated[Path | None, typer.Option(help="JSON lines of recorded sessions.")] = None,
    session_id: Annotated[str | None, typer.Option("--id", help="Session to record; the first if not given.")] = None,
    text: Annotated[Path | None, typer.Option(help="Plain text file to record instead of a session.")] = None,
    chat: Annotated[bool, typer.Option("--chat", help="Talk to the model; an empty line ends and records.")] = False,
    tokens: Annotated[int | None, typer.Option(help="Record only the first N tokens.", min=1)] = None,
    model: ModelOption = DEFAULT_MODEL,
    dtype: DtypeOption = "float32",
    evidence: Annotated[
        Path | None, typer.Option(help="Also write what scorers look at, for `encode --evidence`.")
    ] = None,
    scorer: Annotated[
        list[str] | None,
        typer.Option(help="Scorer that the evidence is for; repeat it for several.", show_default="all"),
    ] = None,
    codec: Annotated[
        str | None, typer.Option(help="Codec that the evidence is for.", show_default="the bundled one for its model")
    ] = None,
    force: ForceOption = False,
    as_json: JsonOption = False,
) -> None:
    """Run a model over a session, a text or a chat and write its cache."""
    if sum((session is not None, text is not None, chat)) != 1:
        raise InputError("name exactly one of --session, --text and --chat")
    if session_id is not None and session is None:
        raise InputError("--id needs --session", "Name the session file with --session FILE.jsonl")
    if evidence is None and (scorer or codec):
        raise InputError(f"{'--scorer' if scorer else '--codec'} is about evidence", "Name its file with --evidence")
    from kvcompress.format.atomic import require_writable
    from kvcompress.format.raw_snapshot import save_raw
    from kvcompress.hf import capture, load_model
    from kvcompress.prune.evidence.recorded import write_evidence

    require_output(output, force, as_json)
    if evidence is not None:
        require_writable(evidence, force)
    language_model, tokenizer = load_model(model, dtype)
    if tokenizer is None:
        raise InputError("the model has no tokenizer", "Save one beside the model", path=model)
    ages: list[float] | None
    if chat:
        ids, ages, talk = _chat(language_model, tokenizer)
        snapshot = talk.snapshot(ids[:tokens], tokenizer)
    else:
        ids, ages = _said(tokenizer, session, session_id, text)
        snapshot = capture(language_model, ids[:tokens], tokenizer=tokenizer)
    if evidence is not None:
        chosen = codec or (DEFAULT_CODEC if model == DEFAULT_MODEL else None)
        write_evidence(evidence, language_model, tokenizer, snapshot, scorer, chosen, ages, force)
    data = {"output": str(output), "tokens": snapshot.tokens, "raw_bytes": snapshot.raw_bytes}
    with written(output) as place:
        save_raw(place, snapshot, force=force)
        data |= {"file_bytes": place.stat().st_size}
    told = data | ({"evidence": str(evidence)} if evidence is not None else {})
    show(told, as_json=as_json, file=beside(output))


def _said(
    tokenizer: Tokenizer, session: Path | None, session_id: str | None, text: Path | None
) -> tuple[list[int], list[float] | None]:
    """Return the token ids of a session or a text, and the age of each in seconds where a clock ran."""
    from kvcompress.data.sessions import find_session, plain_text_ids, session_token_ids, token_ages

    if session is not None:
        found = find_session(session, session_id)
        return session_token_ids(found, tokenizer), token_ages(found, tokenizer)
    assert text is not None
    try:
        content = text.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"cannot be read as text ({error})", path=text) from error
    return plain_text_ids(tokenizer, content), None


def _chat(model: CausalLM, tokenizer: Tokenizer) -> tuple[list[int], list[float], Conversation]:
    """Talk until an empty line; return the tokens of all that was said, their ages in seconds, and the conversation."""
    from kvcompress.data.sessions import Session, session_token_ids
    from kvcompress.hf.conversation import Conversation
    from kvcompress.hf.generation import TextStream

    messages: list[dict[str, str]] = []
    ids: list[int] = []
    stamps: list[float] = []
    talk = Conversation(model)
    while line := _line():
        messages.append({"role": "user", "content": line})
        ids = session_token_ids(Session("chat", messages), tokenizer, ask=True)
        stamps = [*stamps[: len(ids)], *[time.time()] * (len(ids) - len(stamps))]
        stream = TextStream(tokenizer, _echo, ids)
        new_ids = talk.reply(ids, max_new_tokens=80, stop_ids=[tokenizer.eos_token_id], on_token=stream)
        stream.close()
        typer.echo()
        messages.append({"role": "assistant", "content": tokenizer.decode(new_ids, skip_special_tokens=True)})
        ids += new_ids
        stamps += [time.time()] * len(new_ids)
    if not ids:
        raise InputError("nothing was said, so there is nothing to record")
    return ids, [stamps[-1] - stamp for stamp in stamps], talk


def _echo(piece: str) -> None:
    typer.echo(printable(piece, keep=LINES), nl=False)


def _line() -> str:
    try:
        return input("you> ").strip()
    except EOFError:
        return ""
