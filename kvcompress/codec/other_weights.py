"""The statement in a file that was coded for weights other than the codec's own, and who may read the file.

A codec codes caches of the very weights that it was fitted to. With `kvcompress.fit.adopt` it may be tried on others of
the same architecture and vocabulary; a file then names both weights, and only the ones that recorded it may go on from
it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from kvcompress.codec.promise import Promise
from kvcompress.codec.settings import CommonSettings, OtherWeights
from kvcompress.errors import InputError, MismatchError
from kvcompress.format.container import HASH_CHARACTERS
from kvcompress.format.origin import origin_of_json
from kvcompress.snapshot import ModelFingerprint, Origin

NO_ORIGIN = (b"", b"{}")
"""Preset of a codec that does not say what its model is like, as older versions did not."""


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

    def statement(self, settings: CommonSettings) -> OtherWeights:
        """Return what a file says: both weights, and what was measured of its quality if it names one."""
        own, session = (one.weights[:HASH_CHARACTERS] for one in (self.own, self.session))
        words = (settings.stored, settings.quality)  # the first may name a finer quality
        promise = next((self.promises[word] for word in words if word is not None and word in self.promises), None)
        return OtherWeights(codec=own, session=session, **({} if promise is None else _figures(promise)))

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


def require_recorded(stated: OtherWeights | None, own: ModelFingerprint, preset: bytes, origin: Origin) -> None:
    """Refuse a file whose session is of another model than its codec's, unless it says that its weights are others.

    Args:
        stated: What the file says of its weights.
        own: What its codec was fitted to.
        preset: Canonical JSON of the codec's origin; empty for none.
        origin: Of the session.

    Raises:
        MismatchError: They are different models, or other weights than the file says.
    """
    if stated is None:
        own.require_match(origin.fingerprint)
        if preset not in NO_ORIGIN:
            from kvcompress.codec.same_model import require_same_model

            require_same_model(own_origin(preset), origin)
        return
    both = (("codec", stated.codec, own), ("session", stated.session, origin.fingerprint))
    for part, named, wanted in both:
        if named != wanted.weights[:HASH_CHARACTERS]:
            remedy = "Use the codec that made the file"
            raise MismatchError(f"the weights of the {part}", named[:16], wanted.weights[:16], remedy)
    require_same_architecture(preset, origin)


def require_same_architecture(preset: bytes, origin: Origin) -> None:
    """Raise `MismatchError` where a session's model differs from a codec's in more than its weights.

    Args:
        preset: Canonical JSON of the codec's origin; empty for none.
        origin: Of the session.

    Raises:
        InputError: The codec does not say what its model is like.
    """
    from kvcompress.codec.same_model import require_same_rotation
    from kvcompress.hf.architecture import Architecture

    own = own_origin(preset)
    Architecture.of_origin(own).require_same(Architecture.of_origin(origin))
    require_same_rotation(own, origin)


def own_origin(preset: bytes) -> Origin:
    """Return the origin of a codec's own model; raises `InputError` where the codec, an old one, does not know it."""
    if preset in NO_ORIGIN:
        what = "the codec does not say what its model is like, so other weights cannot be compared with it"
        raise InputError(what, "Fit it again with this version")
    return origin_of_json(json.loads(preset))
