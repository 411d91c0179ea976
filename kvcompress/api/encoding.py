"""Encode a snapshot as its options say; the library and the command line both use this.

```
lossless ─► identical bits              quality ─► the QP that calibration verified, or finer
plan ─────► tiers by token              size_ratio, max_kl ─► search over QPs
link ─────► one of these with every number of recomputed layers; the lowest time to the first token wins
```
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from kvcompress.api.notes import notes_of
from kvcompress.api.options import DEFAULT_QUALITY, EncodeOptions, PlanOptions
from kvcompress.codec.at_hand import codec_for
from kvcompress.codec.directory import load_codec, load_parts
from kvcompress.codec.lossless import LosslessCodec
from kvcompress.codec.quality import encode_at_quality
from kvcompress.codec.size_ratio import encode_at_size_ratio
from kvcompress.codec.tinyvae import TinyVAECodec
from kvcompress.errors import InputError
from kvcompress.fit.adopt import adopt, measured
from kvcompress.format.container import Encoded, to_bytes
from kvcompress.format.default_device import on_cpu
from kvcompress.hf import load_model, recompute_with
from kvcompress.hf.types import CausalLM, Tokenizer
from kvcompress.prune.evidence.collect import collect
from kvcompress.prune.evidence.file import load_evidence
from kvcompress.prune.evidence.record import Evidence
from kvcompress.prune.history import load_history, save_history
from kvcompress.prune.scorers.registry import find_scorer
from kvcompress.prune.session import (
    DEFAULT_SCORERS,
    Asked,
    PlannedSession,
    SessionPlanner,
    anchored_constraints,
    encode_pruned,
    named_guarantees,
)
from kvcompress.rate.link import Choice as Choice
from kvcompress.rate.link import choose
from kvcompress.rate.max_kl import KLSearch, hold_back
from kvcompress.snapshot import KVSnapshot

Progress = Callable[[str, int, int], None]
ModelSource = Callable[[str], tuple[Any, Any]]
"""Gives model and tokenizer, for caches of a data type."""


@dataclass(frozen=True, slots=True, eq=False)
class Encoding:
    """A coded session and how it came about.

    Attributes:
        encoded: What a file of it holds.
        link: How every number of recomputed layers did, where a link chose.
        plan: The plan, where there was one of the codec.
        notes: What a user who looks at the file alone would miss, a sentence each.
    """

    encoded: Encoded
    link: Choice | None = None
    plan: PlannedSession | None = None
    notes: tuple[str, ...] = ()


@on_cpu
def encode(
    snapshot: KVSnapshot,
    options: EncodeOptions,
    *,
    codec: str | Path | None = None,
    model: ModelSource | None = None,
    progress: Progress = lambda stage, done, total: None,
) -> Encoding:
    """Encode a snapshot.

    Args:
        snapshot: The cache.
        options: What the file is to be.
        codec: Name, directory or Hub id; None takes the codec at hand that belongs to the snapshot's model.
        model: Gives model and tokenizer, called where options need them; None refuses such options.
        progress: Called with stage, done, total while a model runs.

    Raises:
        InputError: The options cannot be met, or no codec at hand belongs to the model.
        MismatchError: Codec or model is not the snapshot's.
        CheckpointError: The codec is missing or damaged.
    """
    if not isinstance(snapshot, KVSnapshot) or not isinstance(options, EncodeOptions):
        what = f"encode takes a snapshot and options, not {type(snapshot).__name__} and {type(options).__name__}"
        raise InputError(what, "Give what kv.capture returned and kv.EncodeOptions(...)")
    found = _encoding(snapshot, options, codec, model, progress)
    if options.plan is not None and not isinstance(options.plan, PlanOptions):
        return found
    reached = snapshot.raw_bytes / len(to_bytes(found.encoded))
    return replace(found, notes=(*found.notes, *notes_of(found.encoded, reached, found.link, codec)))


def _encoding(
    snapshot: KVSnapshot,
    options: EncodeOptions,
    codec: str | Path | None,
    model: ModelSource | None,
    progress: Progress,
) -> Encoding:
    if options.plan is not None and not isinstance(options.plan, PlanOptions):
        return options.plan.encode(snapshot)
    if options.plan is not None:
        return _planned(snapshot, options, options.plan, codec, _source(model), progress)
    if options.lossless:
        return Encoding(LosslessCodec().encode(snapshot))
    codecs = _codecs(snapshot, options, codec)
    if not (options.runs_model or any(one.recompute_layers for one in codecs)):
        return Encoding(_coded(snapshot, options, codecs[0]))
    language_model, tokenizer = _source(model)(snapshot.origin.dtype)
    for one in codecs:
        one.recompute = recompute_with(language_model, tokenizer)
    if options.other_weights:
        codecs = [_adopted(options, one, language_model, tokenizer, progress) for one in codecs]

    def coded(one: TinyVAECodec) -> Encoded:
        return _coded(snapshot, options, one, language_model, tokenizer, progress)

    if options.link_mbits is None:
        return Encoding(coded(codecs[0]))
    choice = choose(language_model, codecs, snapshot, coded, options.link_mbits)
    return Encoding(choice.encoded, link=choice)


def model_source(name: str | Path) -> ModelSource:
    """Return what loads a model by name, directory, GGUF file or Hub id, when it is needed."""
    return lambda dtype: load_model(name, dtype)


def _source(model: ModelSource | None) -> ModelSource:
    if model is None:
        raise InputError("these options run the model", "Give the model that recorded the session")
    return model


def _codecs(snapshot: KVSnapshot, options: EncodeOptions, codec: str | Path | None) -> list[TinyVAECodec]:
    """Return the codec that is asked for, or all of its directory where a link chooses."""
    place = codec or _codec_of(snapshot, same_weights=not options.other_weights)
    return load_parts(place) if options.link_mbits is not None else [load_codec(place, options.recompute_layers)]


def _codec_of(snapshot: KVSnapshot, *, same_weights: bool = True) -> Path:
    return codec_for(asdict(snapshot.origin.fingerprint), same_weights=same_weights)


def _adopted(
    options: EncodeOptions, own: TinyVAECodec, model: CausalLM, tokenizer: Tokenizer | None, progress: Progress
) -> TinyVAECodec:
    """Return a codec for the weights that recorded the session, measured with them where a quality word is asked."""
    codec = adopt(own, model, tokenizer)
    return codec if options.max_kl is not None else measured(codec, model, tokenizer, options.sessions, progress)


def _coded(
    snapshot: KVSnapshot,
    options: EncodeOptions,
    codec: TinyVAECodec,
    model: CausalLM | None = None,
    tokenizer: Tokenizer | None = None,
    progress: Progress = lambda stage, done, total: None,
) -> Encoded:
    """Encode with one codec."""
    if options.max_kl is not None:
        assert model is not None
        tail = hold_back(model, snapshot, tokenizer)
        return KLSearch(codec, model, snapshot, tail, options.max_kl, progress).winner()
    if options.size_ratio is not None:
        return encode_at_size_ratio(codec, snapshot, options.size_ratio)
    return encode_at_quality(codec, snapshot, options.quality or DEFAULT_QUALITY)


def _planned(
    snapshot: KVSnapshot,
    options: EncodeOptions,
    plan: PlanOptions,
    codec: str | Path | None,
    load: ModelSource,
    progress: Progress,
) -> Encoding:
    asked = Asked(
        scorers=tuple(plan.scorers) or DEFAULT_SCORERS,
        quality=options.quality,
        size_ratio=options.size_ratio,
        max_kl_nats=options.max_kl,
        keep_fraction=plan.keep_fraction,
        patterns=tuple(plan.keep),
        messages=tuple(plan.keep_messages),
        guarantees=named_guarantees(plan.guarantees),
    )
    for name in asked.scorers:
        find_scorer(name)
    history = load_history(plan.history)
    tinyvae = None if options.lossless else load_codec(codec or _codec_of(snapshot))
    known = _stored_evidence(plan, snapshot, tinyvae)
    language_model, tokenizer = load(snapshot.origin.dtype)
    if tinyvae is None:
        return Encoding(_pruned_lossless(language_model, tokenizer, snapshot, asked, known))
    planner = SessionPlanner(tinyvae, language_model, tokenizer, snapshot, asked, history, progress, known)
    found = planner.run() if plan.search else planner.run_quickly()
    if plan.history is not None:
        save_history(plan.history, history)
    return Encoding(found.encoded, plan=found, notes=found.notes)


def _stored_evidence(plan: PlanOptions, snapshot: KVSnapshot, codec: TinyVAECodec | None) -> Evidence | None:
    """Return stored evidence, without gradients that were taken of another codec's latents."""
    if plan.evidence is None:
        return None
    found, fingerprint = load_evidence(plan.evidence, snapshot)
    ours = codec.fingerprint if codec is not None else ""
    return found if fingerprint == ours else replace(found, sensitivity=None)


def _pruned_lossless(
    model: CausalLM, tokenizer: Tokenizer | None, snapshot: KVSnapshot, asked: Asked, known: Evidence | None
) -> Encoded:
    if asked.keep_fraction is None or len(asked.scorers) != 1:
        remedy = "Give a keep fraction (--keep-fraction), and one scorer"
        raise InputError("a lossless file of a plan drops tokens by one scorer", remedy)
    scorer = find_scorer(asked.scorers[0])
    constraints = anchored_constraints(tokenizer, snapshot, asked)
    constraints.kept_tokens()
    evidence = collect(model, snapshot, scorer.needs, tokenizer=tokenizer, known=known)
    return encode_pruned(LosslessCodec().encode, evidence, scorer, constraints)
