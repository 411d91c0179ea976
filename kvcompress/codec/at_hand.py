"""Find the installed codec of a model, and the one that made a file: by digests, without torch."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

from kvcompress.codec.facts import CodecFacts, read_facts
from kvcompress.codec.promise import Promise, stated_promise
from kvcompress.codec.settings import CommonSettings
from kvcompress.errors import CheckpointError, FormatError, InputError, MismatchError
from kvcompress.hub.bundled import require_intact
from kvcompress.hub.places import all_codecs, find_codec

ARCHITECTURE = ("config", "rope")
"""Parts of a model's fingerprint that other weights of the same model share."""


def codec_for(model: Mapping[str, str | None], *, same_weights: bool = True) -> Path:
    """Return the directory of the first codec at hand that belongs to a model.

    Args:
        model: The model's fingerprint, part -> digest, None where it is not known.
        same_weights: Whether its weights must be those that the codec was fitted to.

    Raises:
        InputError: There is none.
        MismatchError: There is one of other weights of the same model.
    """
    shared = {name: model.get(name) for name in ARCHITECTURE}
    akin = [facts for facts in _readable() if _agree(facts.model, shared)]
    fitting = [facts for facts in akin if not same_weights or _agree(facts.model, model)]
    if fitting:
        require_intact(fitting[0].directory)
        return fitting[0].directory
    mine = str(model.get("weights"))
    if akin:
        remedy = "Fit a codec for them with `kvcompress fit`, or see --allow-other-weights"
        raise MismatchError("the model's weights", str(akin[0].model.get("weights"))[:16], mine[:16], remedy)
    what = f"no codec at hand belongs to this model (weights {mine[:12]})"
    raise InputError(what, "Make one with `kvcompress fit`, fetch one with `kvcompress codecs pull`, or name one")


def codec_that_made(codec_fingerprint: str) -> Path:
    """Return the directory of the codec at hand that has a fingerprint.

    Raises:
        MismatchError: There is none.
    """
    found = directory_that_made(codec_fingerprint)
    if found is None:
        remedy = "Name its directory with --codec, or fetch it with `kvcompress codecs pull`"
        raise MismatchError("the codec", codec_fingerprint[:16], "none at hand", remedy)
    require_intact(found)
    return found


def directory_that_made(codec_fingerprint: str) -> Path | None:
    """Return where the codec with a fingerprint lies, None where it is not at hand."""
    parts = (part for facts in _readable() for part in facts.parts)
    return next((part.directory for part in parts if part.fingerprint == codec_fingerprint), None)


def promise_of_file(codec: str | Path | None, codec_fingerprint: str, settings: CommonSettings) -> Promise | None:
    """Return what is promised of a file, where the codec that made it is at hand.

    Args:
        codec: Name, directory or Hub id; None takes the one at hand that made the file.
        codec_fingerprint: The codec that the file names.
        settings: Of the file.
    """
    try:
        place = directory_that_made(codec_fingerprint) if codec is None else find_codec(codec)
        return None if place is None else stated_promise(place, codec_fingerprint, settings)
    except (CheckpointError, FormatError):  # the file can be looked at without its codec
        return None


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
