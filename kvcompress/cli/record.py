"""`kvcompress record`: run a model over a session and keep its cache as a raw snapshot."""

from __future__ import annotations

import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from kvcompress.cli.console import (
    LINES,
    DtypeOption,
    ForceOption,
    JsonOption,
    ModelOption,
    SpecialTokensOption,
    beside,
    require_output,
    show,
    written,
)
from kvcompress.errors import InputError, shown
from kvcompress.hub.bundled import DEFAULT_CODEC, DEFAULT_MODEL

if TYPE_CHECKING:
    from kvcompress.data.chat_template import Dialogue
    from kvcompress.hf.conversation import Conversation
    from kvcompress.hf.types import CausalLM, Tokenizer
    from kvcompress.snapshot import KVSnapshot

STORE = "Append to a store"


@dataclass(frozen=True, slots=True)
class Said:
    """What is recorded.

    Attributes:
        ids: Its tokens.
        name: What errors call it.
        ages: Of each token in seconds, where a clock ran.
        dialogue: The messages, where it has any.
    """

    ids: list[int]
    name: str
    ages: list[float] | None = None
    dialogue: Dialogue | None = None


def record(
    output: Annotated[
        Path | None,
        typer.Option(
            "-o",
            "--output",
            help="Raw snapshot to write (.safetensors); - for standard output.",
            show_default="none, with --store",
        ),
    ] = None,
    session: Annotated[Path | None, typer.Option(help="JSON lines of recorded sessions.")] = None,
    session_id: Annotated[str | None, typer.Option("--id", help="Session to record; the first if not given.")] = None,
    text: Annotated[Path | None, typer.Option(help="Plain text file to record instead of a session.")] = None,
    chat: Annotated[bool, typer.Option("--chat", help="Talk to the model; an empty line ends and records.")] = False,
    tokens: Annotated[int | None, typer.Option(help="Record only the first N tokens.", min=1)] = None,
    special_tokens: SpecialTokensOption = False,
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
    store: Annotated[
        Path | None,
        typer.Option(
            help="Append to a session of this store, which is made where it is missing.",
            show_default="none",
            rich_help_panel=STORE,
        ),
    ] = None,
    name: Annotated[
        str | None, typer.Option(help="Name of the session there.", show_default="none", rich_help_panel=STORE)
    ] = None,
    quality: Annotated[
        str | None,
        typer.Option(
            help="transparent, high or usable.", show_default="transparent, unless --lossless", rich_help_panel=STORE
        ),
    ] = None,
    lossless: Annotated[bool, typer.Option("--lossless", help="The identical bits.", rich_help_panel=STORE)] = False,
    force: ForceOption = False,
    as_json: JsonOption = False,
) -> None:
    """Run a model over a session, a text or a chat and write its cache, or append it to a stored session."""
    _require_target(output, store, name, quality, lossless)
    if sum((session is not None, text is not None, chat)) != 1:
        raise InputError("name exactly one of --session, --text and --chat")
    if session_id is not None and session is None:
        raise InputError("--id needs --session", "Name the session file with --session FILE.jsonl")
    if evidence is None and (scorer or codec):
        raise InputError(f"{'--scorer' if scorer else '--codec'} is about evidence", "Name its file with --evidence")
    from kvcompress.data.next_turn import with_dialogue
    from kvcompress.format.atomic import require_writable
    from kvcompress.hf import load_model
    from kvcompress.prune.evidence.recorded import write_evidence

    if output is not None:
        require_output(output, force, as_json)
    if evidence is not None:
        require_writable(evidence, force)
    language_model, tokenizer = load_model(model, dtype)
    if tokenizer is None:
        raise InputError("the model has no tokenizer", "Save one beside the model", path=model)
    if chat:
        said, talk = _chat(language_model, tokenizer, special_tokens)
        snapshot = talk.snapshot(said.ids[:tokens], tokenizer)
    else:
        said = _said(tokenizer, session, session_id, text, special_tokens)
        snapshot = _captured(language_model, tokenizer, said.ids[:tokens], store, name)
    if said.dialogue is not None and snapshot.tokens == len(said.ids):
        snapshot = with_dialogue(snapshot, tokenizer, said.dialogue)
    if evidence is not None:
        chosen = codec or (DEFAULT_CODEC if model == DEFAULT_MODEL else None)
        write_evidence(evidence, language_model, tokenizer, snapshot, scorer, chosen, said.ages, force)
    data: dict[str, Any] = {"tokens": snapshot.tokens, "raw_bytes": snapshot.raw_bytes}
    if store is not None and name is not None:
        data |= _append(store, name, snapshot, quality, lossless)
    if output is not None:
        data |= {"output": str(output), "file_bytes": _write(output, snapshot, said.name, force)}
    told = data | ({"evidence": str(evidence)} if evidence is not None else {})
    show(told, as_json=as_json, file=sys.stdout if output is None else beside(output))


def _require_target(
    output: Path | None, store: Path | None, name: str | None, quality: str | None, lossless: bool
) -> None:
    """Refuse what names no place for the cache, or half of one."""
    if output is None and store is None:
        raise InputError("nothing says where the cache is to go", "Name a file with -o, or --store DIR --name NAME")
    if (store is None) != (name is None):
        raise InputError("a session of a store has a place and a name", "Give both --store DIR and --name NAME")
    if store is None and (quality is not None or lossless):
        what = "--quality and --lossless say how a session is stored"
        raise InputError(what, "Give --store DIR and --name NAME, or encode the file afterwards")


def _captured(
    model: CausalLM, tokenizer: Tokenizer, ids: list[int], store: Path | None, name: str | None
) -> KVSnapshot:
    """Run the model over what is new: a stored session that the tokens begin with is gone on from."""
    import torch

    from kvcompress.hf import capture

    if store is not None and name is not None:
        from kvcompress.cli.store_common import opened
        from kvcompress.store.resume import grower

        with opened(store, create=True) as found:
            session = found.session(name, create=True)
            held = session.token_ids()
            if 0 < len(held) < len(ids) and held.tolist() == ids[: len(held)]:
                return grower(model, tokenizer)(session.snapshot(model=model, tokenizer=tokenizer), torch.tensor(ids))
    return capture(model, ids, tokenizer=tokenizer)


def _append(store: Path, name: str, snapshot: KVSnapshot, quality: str | None, lossless: bool) -> dict[str, Any]:
    """Append to a stored session; return what is told of it."""
    from kvcompress.cli.store_common import opened

    with opened(store, create=True) as found:
        session = found.session(name, create=True)
        entry = session.append(snapshot, quality=quality, lossless=lossless)
        size = found.objects.size(entry.segment) if entry.segment else 0
    return {"store": str(store), "name": name, "entry": entry.number, "start": entry.start, "segment_bytes": size}


def _write(output: Path, snapshot: KVSnapshot, session: str, force: bool) -> int:
    """Write a raw snapshot and return its bytes."""
    from kvcompress.format.raw_snapshot import save_raw

    with written(output) as place:
        save_raw(place, snapshot, force=force, session=session)
        return place.stat().st_size


def _said(
    tokenizer: Tokenizer, session: Path | None, session_id: str | None, text: Path | None, special_tokens: bool
) -> Said:
    """Return a session or a text."""
    from kvcompress.data.sessions import find_session, plain_text_ids, session_token_ids, token_ages
    from kvcompress.data.text_files import read_text

    if session is not None:
        found = find_session(session, session_id)
        ids = session_token_ids(found, tokenizer, special_tokens=special_tokens)
        dialogue = found.dialogue(special_tokens=special_tokens) if found.text is None else None
        return Said(ids, f"session {found.id!r} of {session.name}", token_ages(found, tokenizer), dialogue)
    assert text is not None
    return Said(plain_text_ids(tokenizer, read_text(text), special_tokens=special_tokens), f"the text {text.name}")


def _chat(model: CausalLM, tokenizer: Tokenizer, special_tokens: bool) -> tuple[Said, Conversation]:
    """Talk until an empty line; return all that was said, and the conversation."""
    from kvcompress.data.chat_template import Dialogue, layout_ids, user
    from kvcompress.data.recovery import said
    from kvcompress.hf.conversation import Conversation, stop_ids
    from kvcompress.hf.generation import TextStream

    dialogue, ids, stamps = Dialogue(()), list[int](), list[float]()
    talk, stops = Conversation(model), stop_ids(model, tokenizer)
    while line := _line():
        dialogue = dialogue.then(user(line), special_tokens=special_tokens)
        ids = layout_ids(tokenizer, dialogue, ask=True)
        stamps = [*stamps[: len(ids)], *[time.time()] * (len(ids) - len(stamps))]
        stream = TextStream(tokenizer, _echo, ids)
        new_ids = talk.reply(ids, max_new_tokens=80, stop_ids=stops, on_token=stream)
        stream.close()
        typer.echo()
        spoken = new_ids[:-1] if new_ids and new_ids[-1] in stops else new_ids
        dialogue = dialogue.then({"role": "assistant", "content": said(tokenizer, spoken)})
        ids += new_ids
        stamps += [time.time()] * len(new_ids)
    if not ids:
        raise InputError("nothing was said, so there is nothing to record")
    return Said(ids, "the chat", [stamps[-1] - stamp for stamp in stamps], dialogue), talk


def _echo(piece: str) -> None:
    typer.echo(shown(piece, keep=LINES), nl=False)


def _line() -> str:
    """Return what the user says, "" at the end; a line that is not text is said again."""
    from kvcompress.data.text_files import without_mark
    from kvcompress.hf.special_tokens import require_text

    while True:
        try:
            line = without_mark(input("you> ")).strip()
            require_text(line, "the line")
        except EOFError:
            return ""
        except UnicodeDecodeError:
            sys.stderr.write("error: the line is not UTF-8 text. Say it again.\n")
        except InputError as error:
            sys.stderr.write(f"error: {error}\n")
        else:
            return line
