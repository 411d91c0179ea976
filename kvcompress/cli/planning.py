"""The planned branch of `kvcompress encode`: loads model and codec, plans, writes table and history."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from kvcompress.cli.console import progress_bar
from kvcompress.cli.wishes import PlanWishes
from kvcompress.codec.directory import load_codec
from kvcompress.codec.lossless import LosslessCodec
from kvcompress.codec.tinyvae import TinyVAECodec
from kvcompress.errors import InputError
from kvcompress.format.container import Encoded
from kvcompress.hf import load_model
from kvcompress.prune.evidence.collect import collect
from kvcompress.prune.evidence.file import load_evidence
from kvcompress.prune.evidence.record import Evidence
from kvcompress.prune.history import load_history, save_history
from kvcompress.prune.scorers.registry import find_scorer
from kvcompress.prune.session import (
    DEFAULT_SCORERS,
    Asked,
    SessionPlanner,
    anchored_demand,
    encode_pruned,
    named_guarantees,
)
from kvcompress.prune.table import save_table
from kvcompress.snapshot import KVSnapshot


def encode_planned(
    snapshot: KVSnapshot,
    codec: str,
    model: str,
    target: dict[str, Any],
    lossless: bool,
    wishes: PlanWishes,
    force: bool,
) -> tuple[Encoded, tuple[str, ...]]:
    """Return the planned file and what is to be told about it.

    Args:
        snapshot: The whole cache.
        codec: Codec directory or bundled name.
        model: Model directory or bundled name.
        target: `quality`, `size_ratio` and `max_kl_nats`, at most one of them given.
        lossless: Keep what stays bit by bit instead.
        wishes: The options about the plan.
        force: Replace the table of an earlier run.
    """
    asked = Asked(
        scorers=tuple(wishes.scorers) or DEFAULT_SCORERS,
        keep_fraction=wishes.keep_fraction,
        patterns=tuple(wishes.patterns),
        messages=tuple(wishes.messages),
        guarantees=named_guarantees(wishes.guarantees),
        **target,
    )
    for name in asked.scorers:
        find_scorer(name)
    history = load_history(wishes.races)
    tinyvae = None if lossless else load_codec(codec)
    known = _stored_evidence(wishes, snapshot, tinyvae)
    language_model, tokenizer = load_model(model, snapshot.origin.dtype)
    if tinyvae is None:
        return _pruned_lossless(language_model, tokenizer, snapshot, asked, known), ()
    with progress_bar("encode") as progress:
        planner = SessionPlanner(tinyvae, language_model, tokenizer, snapshot, asked, history, progress, known)
        found = planner.run_quickly() if wishes.plan == "quick" else planner.run()
    if wishes.table is not None:
        save_table(wishes.table, found.table, found.race(), force=force)
    if wishes.races is not None:
        save_history(wishes.races, history)
    return found.encoded, found.notes


def _stored_evidence(wishes: PlanWishes, snapshot: KVSnapshot, codec: TinyVAECodec | None) -> Evidence | None:
    """Return stored evidence, without gradients that were taken of another codec's latents."""
    if wishes.evidence is None:
        return None
    found, fingerprint = load_evidence(wishes.evidence, snapshot)
    ours = codec.fingerprint if codec is not None else ""
    return found if fingerprint == ours else replace(found, sensitivity=None)


def _pruned_lossless(model: Any, tokenizer: Any, snapshot: KVSnapshot, asked: Asked, known: Evidence | None) -> Encoded:
    if asked.keep_fraction is None or len(asked.scorers) != 1:
        raise InputError(
            "a lossless file of a plan drops tokens by one scorer", "Give --keep-fraction, and one --scorer"
        )
    scorer = find_scorer(asked.scorers[0])
    demand = anchored_demand(tokenizer, snapshot, asked)
    demand.kept_tokens()
    evidence = collect(model, snapshot, scorer.needs, tokenizer=tokenizer, known=known)
    return encode_pruned(LosslessCodec().encode, evidence, scorer, demand)
