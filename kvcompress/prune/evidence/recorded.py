"""Collect evidence when a session is recorded, in a file for later plans."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from kvcompress.codec.directory import load_codec
from kvcompress.hf.types import CausalLM, Tokenizer
from kvcompress.prune.evidence.collect import collect
from kvcompress.prune.evidence.file import save_evidence
from kvcompress.prune.evidence.record import Evidence
from kvcompress.prune.scorers.registry import SCORERS, find_scorer
from kvcompress.snapshot import KVSnapshot


def write_evidence(
    path: Path,
    model: CausalLM,
    tokenizer: Tokenizer | None,
    snapshot: KVSnapshot,
    scorers: Sequence[str] | None = None,
    codec: str | Path | None = None,
    ages_seconds: Sequence[float] | None = None,
    force: bool = False,
) -> None:
    """Collect what scorers need of a session and store it, see `kvcompress.prune.evidence.file`.

    Args:
        path: File to write.
        model: The model that recorded the session, in evaluation mode.
        tokenizer: Its tokenizer.
        snapshot: The session.
        scorers: Names of the scorers; None means all.
        codec: Codec that the plan will be for; None collects nothing that is of a codec's latents.
        ages_seconds: Age of each of at least N tokens, where a clock ran.
        force: Replace an existing file.

    Raises:
        InputError: A scorer is unknown, or the file exists.
        MismatchError: The codec is of another model.
    """
    needs = {need for name in scorers or SCORERS for need in find_scorer(name).needs}
    loaded = load_codec(codec) if codec is not None else None
    if loaded is not None:
        loaded.require_compatible(snapshot)
    clock = None if ages_seconds is None else torch.tensor(ages_seconds[: snapshot.tokens], dtype=torch.float32)
    known = Evidence(snapshot, ages_seconds=clock)
    found = collect(model, snapshot, needs, tokenizer=tokenizer, codec=loaded, known=known)
    save_evidence(path, found, loaded.fingerprint if loaded is not None else "", force=force)
