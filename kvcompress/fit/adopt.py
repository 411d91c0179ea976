"""Use a codec with other weights of its model: refused by default, and measured before it promises anything.

```
codec ──► adopt: same architecture, same vocabulary? ──► no quality words, only --max-kl
              measured: sessions with these weights  ──► the words that hold, by the bounds of `fit.calibrate`
```
What was measured is kept in the user's own place, so that one measurement serves every session.
"""

from __future__ import annotations

import copy
import hashlib
import json
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from kvcompress.codec.facts import CodecFacts
from kvcompress.codec.other_weights import Adopted, Nearest, own_origin
from kvcompress.codec.promise import LATENTS, LOSSLESS, RESIDUAL, promises_from_json
from kvcompress.codec.tinyvae import TinyVAECodec
from kvcompress.errors import CheckpointError, FormatError, KVCompressError, MismatchError
from kvcompress.fit.calibrate import Calibration, calibrated
from kvcompress.fit.checkpoint import kept_out_of_fit, usable_sessions
from kvcompress.fit.trials import trials_from_sessions
from kvcompress.format.atomic import atomic_write
from kvcompress.format.strict_json import canonical_json, read_json
from kvcompress.hf import fingerprint, recompute_with
from kvcompress.hf.architecture import REMEDY, Architecture
from kvcompress.hf.fingerprint import vocabulary_digest
from kvcompress.hf.types import CausalLM, Tokenizer
from kvcompress.hub.places import home
from kvcompress.snapshot import ModelFingerprint

Progress = Callable[[str, int, int], None]


def adopt(codec: TinyVAECodec, model: CausalLM, tokenizer: Tokenizer | None) -> TinyVAECodec:
    """Return a codec for sessions of a model: itself where that is its own, else a copy without quality words.

    Weights are shared with the codec, whose files the copy reads and the other way round.

    Args:
        codec: The codec.
        model: The model that records the sessions.
        tokenizer: Its tokenizer; None is taken for the codec's own.

    Raises:
        MismatchError: The model differs from the codec's own in more than its weights.
        InputError: The codec does not say what its model is like.
    """
    found = fingerprint(model, tokenizer)
    try:
        codec.model_fingerprint.require_match(found)
        return codec
    except MismatchError:
        Architecture.of_origin(own_origin(codec.preset.origin)).require_same(Architecture.of_model(model))
    _require_vocabulary(codec.model_fingerprint, codec.fitted.get("vocabulary"), found, tokenizer)
    other = copy.copy(codec)
    other.adopted = Adopted(codec.model_fingerprint, found)
    other.recompute = recompute_with(model, tokenizer)
    return other


def measured(
    codec: TinyVAECodec, model: CausalLM, tokenizer: Tokenizer | None, sessions: Path | None, progress: Progress
) -> TinyVAECodec:
    """Return an adopted codec with the quality words that were measured to hold; without any where nothing was.

    A word that its own weights keep by latents alone must be kept so here as well; one that would have to be stored
    without loss is refused, with what came nearest.

    Args:
        codec: From `adopt`.
        model: The model of the sessions.
        tokenizer: Its tokenizer.
        sessions: JSON lines of recorded sessions, at least 19 that the codec was not fitted to. None takes what was
            measured before.
        progress: Called as the stages go on.

    Raises:
        TooFewSessionsError: Too few sessions are long enough.
        CheckpointError: What was measured before is damaged.
    """
    if codec.adopted is None:
        return codec
    place = _place(codec, codec.adopted.session)
    if sessions is None:
        return _with(codec, _stored(place), place) if place.is_file() else codec
    place.parent.mkdir(parents=True, exist_ok=True)
    rows = kept_out_of_fit(codec.fitted, usable_sessions(model, tokenizer, sessions))
    trials, resume_file = trials_from_sessions(model, rows, tokenizer), place.with_suffix(".trials.jsonl")
    residual = any(promise.residual_qp for promise in codec.own_promises.values())
    kinds = (LATENTS, RESIDUAL) if residual else (LATENTS,)
    found = calibrated(model, codec, trials, progress=progress, resume_file=resume_file, kinds=kinds)
    data = _to_json(codec, found)
    atomic_write(place, [json.dumps(data, sort_keys=True, indent=2).encode()], force=True)
    resume_file.unlink(missing_ok=True)
    return _with(codec, data, place)


def fit_of(facts: CodecFacts, model: CausalLM, tokenizer: Tokenizer | None) -> str:
    """Return whether a codec is for a model: "yes", "other weights" where it can be tried, or "no"."""
    own, found = ModelFingerprint.from_json(facts.model), fingerprint(model, tokenizer)
    try:
        own.require_match(found)
        return "yes"
    except MismatchError:
        pass
    try:
        Architecture.of_origin(own_origin(canonical_json(facts.origin))).require_same(Architecture.of_model(model))
        _require_vocabulary(own, facts.vocabulary, found, tokenizer)
    except KVCompressError:
        return "no"
    return "other weights"


def _require_vocabulary(
    own: ModelFingerprint, ours: str | None, found: ModelFingerprint, tokenizer: Tokenizer | None
) -> None:
    """Raise `MismatchError` unless token ids mean what they mean to a codec.

    Args:
        own: What the codec was fitted to.
        ours: Digest of its vocabulary; codecs of earlier versions do not say it.
        found: Of the model at hand.
        tokenizer: That model's.
    """
    if own.tokenizer is None or found.tokenizer is None or own.tokenizer == found.tokenizer:
        return
    if ours is None:
        raise MismatchError("the tokenizer", own.tokenizer[:16], found.tokenizer[:16], REMEDY)
    assert tokenizer is not None  # its digest is known
    theirs = vocabulary_digest(tokenizer)
    if ours != theirs:
        raise MismatchError("the tokenizer's vocabulary", ours[:16], theirs[:16], REMEDY)


def _place(codec: TinyVAECodec, session: ModelFingerprint) -> Path:
    """Return the file of what was measured of a codec with other weights."""
    digest = hashlib.sha256(canonical_json(asdict(session))).hexdigest()
    return home() / "other-weights" / f"{codec.fingerprint[:16]}-{digest[:16]}.json"


def _to_json(codec: TinyVAECodec, found: Calibration) -> dict[str, Any]:
    assert codec.adopted is not None
    kept = {name: promise for name, promise in found.promises.items() if promise.setting.kind != LOSSLESS}
    return {
        "codec": codec.fingerprint,
        "session": asdict(codec.adopted.session),
        "promises": {name: promise.to_json() for name, promise in kept.items()},
        "known": found.known,
        "nearest": asdict(found.nearest),
    }


def _stored(place: Path) -> Any:
    """Return what was measured before; `CheckpointError` where the file cannot be read."""
    try:
        return read_json(place, "what was measured with these weights")
    except FormatError as error:
        raise CheckpointError(error.what, "Measure it again with --sessions", path=place) from error


def _with(codec: TinyVAECodec, data: Any, place: Path) -> TinyVAECodec:
    """Return an adopted codec with what was measured."""
    assert codec.adopted is not None
    try:
        if (data["codec"], data["session"]) != (codec.fingerprint, asdict(codec.adopted.session)):
            raise ValueError("it is of another codec or of other weights")
        promises, nearest, known = promises_from_json(data["promises"]), Nearest(**data["nearest"]), data["known"]
    except (KeyError, TypeError, ValueError) as error:
        what = f"what was measured with these weights is damaged ({error})"
        raise CheckpointError(what, "Measure it again with --sessions", path=place) from error
    other = copy.copy(codec)
    other.adopted = replace(codec.adopted, promises=promises, known=known, nearest=nearest)
    return other
