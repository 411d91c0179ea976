"""Fit a codec to a model in memory: `kv.fit`, the same as `kvcompress fit` from files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from kvcompress.codec.directory import require_place_of_codec
from kvcompress.data.harvest import tokenized_sessions
from kvcompress.data.sessions import Session, session_token_ids
from kvcompress.errors import InputError
from kvcompress.fit.run import Announce, FitSource, Progress, fit_checkpoint
from kvcompress.fit.settings import FitSettings
from kvcompress.format.atomic_directory import require_directory, sweep
from kvcompress.hf.capture import check_ids
from kvcompress.hf.families import context_tokens
from kvcompress.hf.types import CausalLM, Tokenizer
from kvcompress.hub.bundled import recompute_name

Messages = Sequence[Mapping[str, Any]]
Sessions = str | Path | Sequence[Tensor | Sequence[int] | Messages]
"""A file of JSON lines, or sessions: each as token ids [N] int64, or as messages of role and content."""


@dataclass(frozen=True, slots=True)
class FittedCodec:
    """A codec that was fitted, verified and saved.

    Attributes:
        path: Its directory, for `load_codec` and for `codec=...` of every call.
        fingerprint: What its files name.
        promises: How each quality word is stored, of those that were verified to hold; the others it does not have.
        tokens: That it was fitted to.
        file_bytes: Of its weights on disk.
        seconds: That it took.
        floor_kl_nats: Mean KL of what its transform alone loses; None where it was not measured.
        notes: What a user should know, a sentence each: why nothing is promised, for example.
        peak_bytes: The most memory that the process has held.
        threads: Of torch.
    """

    path: Path
    fingerprint: str
    promises: Mapping[str, str]
    tokens: int
    file_bytes: int
    seconds: float
    floor_kl_nats: float | None
    notes: tuple[str, ...]
    peak_bytes: int
    threads: int


def fit(
    model: CausalLM,
    tokenizer: Tokenizer | None,
    sessions: Sessions,
    output: str | Path,
    *,
    tokens: int | None = None,
    recompute_layers: int = 0,
    codec_share: float = 0.08,
    settings: FitSettings | None = None,
    force: bool = False,
    progress: Progress = lambda stage, done, total: None,
) -> FittedCodec:
    """Fit a codec to a model's sessions, verify on sessions kept out of the fit what it can promise, and save it.

    Minutes for a small model. What has been found so far lies in `<output>.fit` until the codec is there: a call that
    was killed goes on where it stopped.

    Args:
        model: The model, in evaluation mode.
        tokenizer: Of the model; messages and session files need it, and the codec then names it.
        sessions: What was said: a file of JSON lines, or a list of sessions, each a list of token ids or of messages.
        output: Directory to make. With `recompute_layers` the codec goes into `recompute-<m>` in it.
        tokens: Cut sessions at so many tokens; None cuts them at the model's context.
        recompute_layers: Layers that the model runs when a session is restored; fewer are coded then.
        codec_share: Largest size of the codec, as a share of the model's 16-bit weights.
        settings: All settings of a fit, instead of the two before.
        force: Replace a codec that lies there.
        progress: Called with stage, done, total.

    Raises:
        InputError: Model, sessions or settings cannot be used, there are too few sessions, or a codec lies there.
        FormatError: The file of sessions is damaged.
    """
    _require_model(model)
    if settings is not None and (recompute_layers, codec_share) != (0, 0.08):
        raise InputError("settings say everything about a fit", "Put recompute_layers and codec_share into them")
    settings = settings or FitSettings(recompute_layers=recompute_layers, codec_share=codec_share)
    if not isinstance(settings, FitSettings):
        raise InputError(f"settings of a fit are FitSettings, not {type(settings).__name__}", "Leave them out")
    if tokens is not None and (type(tokens) is not int or tokens < 2):
        raise InputError(f"sessions cannot be cut at {tokens!r} tokens", "Choose 2 or more")
    place = place_of(Path(output), settings.recompute_layers, force=force)
    rows = tuple(_rows(model, tokenizer, sessions))
    return fit_source(FitSource(None, tokens=tokens, rows=rows, loaded=(model, tokenizer)), place, settings, progress)


def fit_source(
    source: FitSource,
    place: Path,
    settings: FitSettings,
    progress: Progress = lambda stage, done, total: None,
    announce: Announce = lambda line: None,
) -> FittedCodec:
    """Fit a codec to what a source names and save it; see `kvcompress.fit.run.fit_checkpoint`.

    Args:
        source: Model and sessions, or shards.
        place: From `place_of`.
        settings: Of the fit.
        progress: Called with stage, done, total.
        announce: Called with the notes as they come.
    """
    notes = list[str]()

    def told(line: str) -> None:
        notes.append(line)
        announce(line)

    summary = fit_checkpoint(source, place, settings, progress, told)
    return FittedCodec(
        path=place,
        fingerprint=summary["fingerprint"],
        promises=summary["promises"],
        tokens=summary["tokens"],
        file_bytes=summary["file_bytes"],
        seconds=summary["fit_seconds"],
        floor_kl_nats=summary["floor_kl_nats"],
        notes=tuple(notes),
        peak_bytes=summary["peak_bytes"],
        threads=summary["threads"],
    )


def place_of(output: Path, recompute_layers: int, *, force: bool) -> Path:
    """Return where a codec goes.

    Raises:
        InputError: A codec lies there, and `force` is not given, or what lies there is no codec.
    """
    place = output / recompute_name(recompute_layers) if recompute_layers else output
    require_directory(output, force=True)
    require_place_of_codec(place)
    if (place / "config.json").exists() and not force:
        sweep(place)
        raise InputError("already holds a codec", "Pass --force to replace it", path=place)
    return place


def _require_model(model: object) -> None:
    """Raise `InputError` for what is no model: a name, most often."""
    if not hasattr(model, "get_input_embeddings"):
        what = f"a fit needs a causal language model of transformers, not {type(model).__name__}"
        raise InputError(what, "Load it with kv.load_model")


def _rows(model: CausalLM, tokenizer: Tokenizer | None, sessions: Sessions) -> list[tuple[str, Tensor]]:
    """Return name and token ids [N] int64 of each session, cut at the model's context."""
    if isinstance(sessions, str | Path):
        return [(session.id, ids) for session, ids in tokenized_sessions(model, tokenizer, Path(sessions))]
    if not isinstance(sessions, Sequence):
        what = f"sessions are a file or a list, not {type(sessions).__name__}"
        raise InputError(what, "Give a list of sessions, each a list of token ids or of messages")
    limit, rows = context_tokens(model), list[tuple[str, Tensor]]()
    for number, session in enumerate(sessions):
        ids = _messages_ids(session, tokenizer, number) if _is_messages(session) else session
        try:
            rows.append((str(number), check_ids(model, ids[:limit])))  # type: ignore[arg-type]
        except (InputError, TypeError, IndexError) as error:
            what = f"session {number} is neither token ids nor messages"
            told = error.what if isinstance(error, InputError) else f"it is {type(session).__name__}"
            raise InputError(f"{what}: {told}", "Give a list of token ids, or of {role, content}") from error
    if not any(len(ids) for _, ids in rows):
        raise InputError("no session holds a token", "Give some sessions to fit to")
    return rows


def _is_messages(session: object) -> bool:
    return isinstance(session, Sequence) and bool(session) and isinstance(session[0], Mapping)


def _messages_ids(session: Any, tokenizer: Tokenizer | None, number: int) -> list[int]:
    if tokenizer is None:
        raise InputError("messages need the model's tokenizer", "Give it, or give token ids")
    for message in session:
        said = isinstance(message, Mapping) and all(isinstance(message.get(name), str) for name in ("role", "content"))
        if not said:
            raise InputError(f"session {number} has a message without role and content", "Give both as text")
    return session_token_ids(Session(str(number), [dict(message) for message in session]), tokenizer)
