"""What a file says that was coded for other weights than the codec's own, and who may read it.

A codec codes caches of the very weights that it was fitted to. With `kvcompress.fit.adopt` it may be tried on others of
the same architecture and vocabulary; a file then names both weights, and only the ones that recorded it may go on from
it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from kvcompress.codec.promise import OTHER_WEIGHTS, Promise
from kvcompress.errors import FormatError, InputError, MismatchError
from kvcompress.format.container import HASH_CHARACTERS
from kvcompress.snapshot import ModelFingerprint, Origin


@dataclass(frozen=True, slots=True)
class Nearest:
    """The least that latents lost, of all that was measured.

    Attributes:
        sessions: That it was measured on; all of them only where it might have held.
        kl_nats: Mean KL(exact || decoded).
        context_lost: That over what the context is worth.
        top1_lost: 1 - agreement of the most likely token.
    """

    sessions: int
    kl_nats: float
    context_lost: float
    top1_lost: float


@dataclass(frozen=True, slots=True)
class Adopted:
    """The weights that a codec is tried on instead of its own.

    Attributes:
        own: What it was fitted to.
        session: What its sessions are recorded with.
        promises: What was measured to hold with them, by quality word.
        known: What sessions look like at these words, see `kvcompress.codec.out_of_distribution`.
        nearest: What came nearest of words that do not hold; None before anything was measured.
    """

    own: ModelFingerprint
    session: ModelFingerprint
    promises: Mapping[str, Promise] = field(default_factory=dict)
    known: Mapping[str, Any] = field(default_factory=dict)
    nearest: Nearest | None = None

    def statement(self, settings: Mapping[str, Any]) -> dict[str, Any]:
        """Return what a file says: both weights, and what was measured of its quality if it names one."""
        both = {"codec": self.own.weights, "session": self.session.weights}
        stated = {name: digest[:HASH_CHARACTERS] for name, digest in both.items()}
        words = [str(settings.get(name)) for name in ("stored", "quality")]  # "stored" may name a finer quality
        promise = next((self.promises[word] for word in words if word in self.promises), None)
        return stated if promise is None else stated | _figures(promise)

    def refusal(self, quality: str) -> InputError:
        """Return the error that tells why a quality word cannot be had with these weights."""
        remedy = "Give --sessions FILE to measure it, or use --max-kl, which measures on the session itself"
        if self.nearest is None:
            what = f"what the codec achieves at {quality!r} with these weights was never measured"
            return InputError(what, remedy)
        from kvcompress.metrics.fidelity import TIERS

        bounds = [tier for tier in TIERS if tier.name == quality]
        if not bounds:
            return InputError(f"no quality {quality!r} is known", "Use transparent, high or usable")
        tier, near = bounds[0], self.nearest
        what = (
            f"the codec does not keep {quality!r} with these weights: at best mean KL {near.kl_nats:.3g} nats (at most "
            f"{tier.max_kl_nats:g}), context lost {near.context_lost:.1%} (at most {tier.max_context_lost:.0%}), top-1 "
            f"{1 - near.top1_lost:.1%} (at least {tier.min_top1_agreement:.0%}), over {near.sessions} sessions"
        )
        return InputError(what, "Use --max-kl, or fit a codec for these weights")


def _figures(promise: Promise) -> dict[str, Any]:
    measured = {name: loss.measured for name, loss in promise.losses().items()}
    return {"sessions": promise.sessions, **measured}


def require_recorded(settings: Mapping[str, Any], own: ModelFingerprint, preset: bytes, origin: Origin) -> None:
    """Refuse a file whose session is of another model than its codec's, unless it says that its weights are others.

    Args:
        settings: Of the file.
        own: What its codec was fitted to.
        preset: Canonical JSON of the codec's origin; empty for none.
        origin: Of the session.

    Raises:
        MismatchError: They are different models, other weights than the file says, or the session's configuration is
            not the one that was recorded.
        FormatError: What the file says is damaged.
    """
    from kvcompress.hf.origin_check import require_consistent, require_same_origin

    stated = settings.get(OTHER_WEIGHTS)
    if stated is None:
        if preset not in (b"", b"{}") and own.config == origin.fingerprint.config:
            require_same_origin(own_origin(preset), origin)
        own.require_match(origin.fingerprint)
        require_consistent(origin)
        return
    require_consistent(origin)
    if not isinstance(stated, Mapping) or not all(isinstance(stated.get(name), str) for name in ("codec", "session")):
        raise FormatError(f"the setting {OTHER_WEIGHTS!r} is damaged")
    for part, wanted in (("codec", own), ("session", origin.fingerprint)):
        if stated[part] != wanted.weights[:HASH_CHARACTERS]:
            remedy = "Use the codec that made the file"
            raise MismatchError(f"the weights of the {part}", stated[part][:16], wanted.weights[:16], remedy)
    require_same_architecture(preset, origin)


def require_same_architecture(preset: bytes, origin: Origin) -> None:
    """Raise `MismatchError` where a session's model differs from a codec's in more than its weights.

    Args:
        preset: Canonical JSON of the codec's origin; empty for none.
        origin: Of the session.

    Raises:
        InputError: The codec does not say what its model is like.
    """
    from kvcompress.hf.architecture import Architecture

    own = own_origin(preset)
    Architecture.of_origin(own).require_same(Architecture.of_origin(origin))


def own_origin(preset: bytes) -> Origin:
    """Return the origin of a codec's own model; raises `InputError` where the codec, an old one, does not know it."""
    if preset in (b"", b"{}"):
        what = "the codec does not say what its model is like, so other weights cannot be compared with it"
        raise InputError(what, "Fit it again with this version")
    return Origin.from_json(json.loads(preset))
