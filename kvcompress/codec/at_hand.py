"""Which codec at hand belongs to a model, and which one made a file: found by fingerprints, without being named."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path

from kvcompress.codec.directory import load_tinyvae
from kvcompress.codec.facts import CodecFacts, Part, read_facts
from kvcompress.errors import CheckpointError, InputError, MismatchError
from kvcompress.hub.bundled import require_intact
from kvcompress.hub.places import all_codecs
from kvcompress.snapshot import ModelFingerprint


def codec_for(model: ModelFingerprint, *, same_weights: bool = True) -> Path:
    """Return the directory of the first codec at hand that belongs to a model.

    Args:
        model: The model's fingerprint.
        same_weights: Whether its weights must be those that the codec was fitted to.

    Raises:
        InputError: There is none.
    """
    mine = {name: digest for name, digest in asdict(model).items() if same_weights or name in ("config", "rope")}
    for facts in _readable():
        if _agree(facts.model, mine):
            require_intact(facts.directory)
            return facts.directory
    what = f"no codec at hand belongs to this model (weights {model.weights[:12]})"
    raise InputError(what, "Make one with `kvcompress fit`, fetch one with `kvcompress codecs pull`, or name one")


def codec_that_made(codec_fingerprint: str) -> Path:
    """Return the directory of the codec at hand that has a fingerprint.

    Raises:
        MismatchError: There is none.
    """
    for facts in _readable():
        for part in facts.parts:
            if _fingerprint(part) == codec_fingerprint:
                require_intact(part.directory)
                return part.directory
    remedy = "Name the directory of its codec, or fetch it with `kvcompress codecs pull`"
    raise MismatchError("the codec", codec_fingerprint[:16], "none at hand", remedy)


def _readable() -> Iterator[CodecFacts]:
    """Yield what the codecs at hand say of themselves; a damaged one cannot be meant."""
    for found in all_codecs():
        try:
            yield read_facts(found.directory)
        except CheckpointError:
            continue


def _agree(theirs: Mapping[str, str | None], mine: Mapping[str, str | None]) -> bool:
    """Tell whether digests known on both sides are equal."""
    return all(theirs.get(name) in (None, digest) or digest is None for name, digest in mine.items())


def _fingerprint(part: Part) -> str | None:
    """Return a codec's fingerprint; older ones do not state it."""
    if part.fingerprint is not None:
        return part.fingerprint
    try:
        return load_tinyvae(part.directory).fingerprint
    except CheckpointError:
        return None
