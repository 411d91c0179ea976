"""`kvcompress record`: run a model over a session and write its cache as a raw snapshot."""

from __future__ import annotations

import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from kvcompress.cli.console import (
    LINES,
    DtypeOption,
    ForceOption,
    JsonOption,
    ModelOption,
    SpecialTokensOption,
    beside,
    require_other,
    require_output,
    show,
    written,
)
from kvcompress.cli.record_options import (
    ChatOption,
    EvidenceCodecOption,
    EvidenceFileOption,
    NameOption,
    OutputOption,
    ScorerOption,
    SessionIdOption,
    SessionOption,
    StoredLosslessOption,
    StoredQualityOption,
    StoreOption,
    TextOption,
    TokensOption,
)
from kvcompress.cli.store_common import append_to, grown_from
from kvcompress.cli.waiting import waiting
from kvcompress.errors import InputError, shown
from kvcompress.hub.bundled import DEFAULT_CODEC, DEFAULT_MODEL

if TYPE_CHECKING:
    from kvcompress.data.chat_template import Dialogue
    from kvcompress.hf.conversation import Conversation
    from kvcompress.hf.types import CausalLM, Tokenizer
    from kvcompress.snapshot import KVSnapshot


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
    output: OutputOption = None,
    session: SessionOption = None,
    session_id: SessionIdOption = None,
    text: TextOption = None,
    chat: ChatOption = False,
    tokens: TokensOption = None,
    special_tokens: SpecialTokensOption = False,
    model: ModelOption = DEFAULT_MODEL,
    dtype: DtypeOption = "float32",
    evidence: EvidenceFileOption = None,
    scorer: ScorerOption = None,
    codec: EvidenceCodecOption = None,
    store: StoreOption = None,
    name: NameOption = None,
    quality: StoredQualityOption = None,
    lossless: StoredLosslessOption = False,
    force: ForceOption = False,
    as_json: JsonOption = False,
) -> None:
    """Run a model over a session, a text or a chat, and write its KV cache as a raw snapshot or into a store."""
    _require_target(output, store, name, quality, lossless)
    if sum((session is not None, text is not None, chat)) != 1:
        raise InputError("name exactly one of --session, --text and --chat")
    if session_id is not None and session is None:
        raise InputError("--id needs --session", "Name the session file with --session FILE.jsonl")
    if evidence is None and (scorer or codec):
        raise InputError(f"{'--scorer' if scorer else '--codec'} is about evidence", "Name its file with --evidence")
    from kvcompress.format.atomic import require_writable
    from kvcompress.hf import load_model
    from kvcompress.prune.evidence.recorded import write_evidence

    if output is not None:
        require_output(output, force, as_json, session, text, evidence)
    if evidence is not None:
        require_writable(evidence, force)
        require_other(evidence, session, text)
    with waiting("record", "loading the model"):
        language_model, tokenizer = load_model(model, dtype)
    if tokenizer is None:
        raise InputError("the model has no tokenizer", "Save one beside the model", path=model)
    read = None if chat else _said(tokenizer, session, session_id, text, special_tokens)
    target = (store, name) if store is not None and name is not None else None
    snapshot, said = _recorded(language_model, tokenizer, read, tokens, special_tokens, target)
    if evidence is not None:
        chosen = codec or (DEFAULT_CODEC if model == DEFAULT_MODEL else None)
        with waiting("record", "collecting evidence"):
            write_evidence(evidence, language_model, tokenizer, snapshot, scorer, chosen, said.ages, force)
    data: dict[str, Any] = {"tokens": snapshot.tokens, "raw_bytes": snapshot.raw_bytes}
    if target is not None:
        data |= append_to(*target, snapshot, quality, lossless)
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


def _write(output: Path, snapshot: KVSnapshot, session: str, force: bool) -> int:
    """Write a raw snapshot and return its bytes."""
    from kvcompress.format.raw_snapshot import save_raw

    with written(output) as place:
        save_raw(place, snapshot, force=force, session=session)
        return place.stat().st_size


def _recorded(
    model: CausalLM,
    tokenizer: Tokenizer,
    said: Said | None,
    tokens: int | None,
    special_tokens: bool,
    target: tuple[Path, str] | None,
) -> tuple[KVSnapshot, Said]:
    """Return the cache after the first tokens of what was said, or of a chat held now, and what was said.

    A stored session that these tokens go on from is gone on from, so that the model reads only what is new.
    """
    from kvcompress.data.next_turn import with_dialogue
    from kvcompress.hf import capture

    if said is None:
        said, talk = _chat(model, tokenizer, special_tokens)
        snapshot = talk.snapshot(said.ids[:tokens], tokenizer)
    else:
        with waiting("record", f"running the model over {len(said.ids[:tokens]):,} tokens"):
            grown = None if target is None else grown_from(*target, model, tokenizer, said.ids[:tokens])
            snapshot = grown or capture(model, said.ids[:tokens], tokenizer=tokenizer)
    if said.dialogue is not None and snapshot.tokens == len(said.ids):
        snapshot = with_dialogue(snapshot, tokenizer, said.dialogue)
    return snapshot, said


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
    from kvcompress.data.recovery import answer
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
        dialogue = dialogue.then(answer(tokenizer, dialogue, spoken))
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
