"""`kvcompress record`: run a model over a session and keep its cache as a raw snapshot."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from kvcompress.cli.console import DtypeOption, ForceOption, JsonOption, ModelOption, show
from kvcompress.errors import InputError
from kvcompress.hub.bundled import DEFAULT_CODEC, DEFAULT_MODEL

if TYPE_CHECKING:
    from kvcompress.hf.conversation import Conversation
    from kvcompress.hf.types import CausalLM, Tokenizer
    from kvcompress.snapshot import KVSnapshot


def record(
    output: Annotated[Path, typer.Option("-o", "--output", help="Raw snapshot to write (.safetensors).")],
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

    require_writable(output, force)
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
        _write_evidence(evidence, language_model, tokenizer, snapshot, scorer, chosen, ages, force)
    save_raw(output, snapshot, force=force)
    data = {"output": str(output), "tokens": snapshot.tokens, "raw_bytes": snapshot.raw_bytes}
    data |= {"file_bytes": output.stat().st_size}
    show(data | ({"evidence": str(evidence)} if evidence is not None else {}), as_json=as_json)


def _write_evidence(
    path: Path,
    model: CausalLM,
    tokenizer: Tokenizer,
    snapshot: KVSnapshot,
    scorers: list[str] | None,
    codec_name: str | None,
    ages: list[float] | None,
    force: bool,
) -> None:
    """Collect what scorers need of a session, with the age of each token where a clock ran, and store it."""
    import torch

    from kvcompress.codec.directory import load_codec
    from kvcompress.prune.evidence.collect import collect
    from kvcompress.prune.evidence.file import save_evidence
    from kvcompress.prune.evidence.record import Evidence
    from kvcompress.prune.scorers.registry import SCORERS, find_scorer

    needs = {need for name in scorers or SCORERS for need in find_scorer(name).needs}
    codec = load_codec(codec_name) if codec_name is not None else None
    if codec is not None:
        codec.require_partner(snapshot)
    clock = None if ages is None else torch.tensor(ages[: snapshot.tokens], dtype=torch.float32)
    found = collect(
        model, snapshot, needs, tokenizer=tokenizer, codec=codec, known=Evidence(snapshot, ages_seconds=clock)
    )
    save_evidence(path, found, codec.fingerprint if codec is not None else "", force=force)


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
        stream = TextStream(tokenizer, lambda piece: typer.echo(piece, nl=False), ids)
        new_ids = talk.reply(ids, max_new_tokens=80, stop_ids=[tokenizer.eos_token_id], on_token=stream)
        stream.close()
        typer.echo()
        messages.append({"role": "assistant", "content": tokenizer.decode(new_ids, skip_special_tokens=True)})
        ids += new_ids
        stamps += [time.time()] * len(new_ids)
    if not ids:
        raise InputError("nothing was said, so there is nothing to record")
    return ids, [stamps[-1] - stamp for stamp in stamps], talk


def _line() -> str:
    try:
        return input("you> ").strip()
    except EOFError:
        return ""
