"""`kvcompress record`: run a model over a session and keep its cache as a raw snapshot."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from kvcompress.cli.console import DtypeOption, ForceOption, JsonOption, ModelOption, show
from kvcompress.errors import InputError
from kvcompress.zoo import DEFAULT_MODEL

if TYPE_CHECKING:
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
    force: ForceOption = False,
    as_json: JsonOption = False,
) -> None:
    """Run a model over a session, a text or a chat and write its cache."""
    if sum((session is not None, text is not None, chat)) != 1:
        raise InputError("name exactly one of --session, --text and --chat")
    if session_id is not None and session is None:
        raise InputError("--id needs --session", "Name the session file with --session FILE.jsonl")
    from kvcompress.atomic import require_writable
    from kvcompress.hf import load_model
    from kvcompress.raw import save_raw
    from kvcompress.zoo import find_checkpoint

    require_writable(output, force)
    language_model, tokenizer = load_model(find_checkpoint(model), dtype)
    if tokenizer is None:
        raise InputError("the model has no tokenizer", "Save one beside the model", path=model)
    ids = _token_ids(language_model, tokenizer, session, session_id, text)
    snapshot = _snapshot(language_model, tokenizer, ids if tokens is None else ids[:tokens])
    save_raw(output, snapshot, force=force)
    data = {"output": str(output), "tokens": snapshot.tokens, "raw_bytes": snapshot.raw_bytes}
    show(data | {"file_bytes": output.stat().st_size}, as_json=as_json)


def _token_ids(
    model: Any, tokenizer: Any, session: Path | None, session_id: str | None, text: Path | None
) -> list[int]:
    if session is not None:
        from kvcompress.sessions import find_session, session_token_ids

        return session_token_ids(find_session(session, session_id), tokenizer)
    if text is not None:
        try:
            content = text.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise InputError(f"cannot be read as text ({error})", path=text) from error
        from kvcompress.sessions import plain_text_ids

        return plain_text_ids(tokenizer, content)
    return _chat(model, tokenizer)


def _snapshot(model: Any, tokenizer: Any, ids: list[int]) -> KVSnapshot:
    from kvcompress.hf import capture

    return capture(model, ids, tokenizer=tokenizer)


def _chat(model: Any, tokenizer: Any) -> list[int]:
    """Talk until an empty line; return the token ids of the whole conversation."""
    from kvcompress.hf import capture, restore
    from kvcompress.resume import TextStream, generate_from
    from kvcompress.sessions import Session, session_token_ids

    messages: list[dict[str, str]] = []
    ids: list[int] = []
    while line := _line():
        messages.append({"role": "user", "content": line})
        ids = session_token_ids(Session("chat", messages), tokenizer, ask=True)
        cache = restore(capture(model, ids[:-1]), model)
        stream = TextStream(tokenizer, lambda piece: typer.echo(piece, nl=False), ids)
        new_ids = generate_from(
            model,
            cache,
            ids[-1:],
            next_position=len(ids) - 1,
            max_new_tokens=80,
            stop_ids=[tokenizer.eos_token_id],
            on_token=stream,
        )
        stream.close()
        typer.echo()
        messages.append({"role": "assistant", "content": tokenizer.decode(new_ids, skip_special_tokens=True)})
        ids += new_ids
    if not ids:
        raise InputError("nothing was said, so there is nothing to record")
    return ids


def _line() -> str:
    try:
        return input("you> ").strip()
    except EOFError:
        return ""
