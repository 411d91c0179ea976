"""The promise of a quality word and its evidence; only measured qualities are promised.

A promise says how sessions are stored and what they then lose, measured over sessions that fitted nothing
(`kvcompress.fit.calibrate`), within bounds that hold in expectation for further sessions
(`kvcompress.metrics.conformal`). It is kept in the codec's `config.json`. Nothing here needs torch, so that `kvcompress
inspect` can read it at once.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from kvcompress.codec.settings import MOST_QP, CommonSettings, TinyVAESettings
from kvcompress.errors import CheckpointError, FormatError, InputError
from kvcompress.format.json_fields import JsonFields
from kvcompress.format.strict_json import read_json
from kvcompress.metrics.conformal import beyond_allowed, sessions_needed

QUALITIES = ("transparent", "high", "usable")
LATENTS, RESIDUAL, INT8, LOSSLESS = "latents", "residual", "int8", "lossless"
FALLBACK = "fallback"
"""Name of the promise for sessions unlike those that a codec knows: as good as transparent, by int8."""

_COUNTS = ("sessions", "prefix_tokens", "continuation_tokens")
_LOSSES = ("kl_nats", "context_lost", "top1_lost")

RECALIBRATE = "Measure again with `kvcompress calibrate CODEC --sessions FILE`"


@dataclass(frozen=True, slots=True, order=True)
class Setting:
    """A way to store a session.

    Attributes:
        kind: "latents"; "residual", which is latents and what they do not reach; "int8"; or "lossless".
        qp: Quantisation parameter of the latents, None without them.
        residual_qp: QP of the residual, None without one.

    Raises:
        ValueError: The QPs are not those of the kind, or out of range.
    """

    kind: str
    qp: int | None = None
    residual_qp: int | None = None

    def __post_init__(self) -> None:
        """Refuse what cannot be stored."""
        wanted = {LATENTS: (True, False), RESIDUAL: (True, True), INT8: (False, False), LOSSLESS: (False, False)}
        given = (self.qp, self.residual_qp)
        if wanted.get(self.kind) != tuple(qp is not None for qp in given):
            raise ValueError(f"QPs {given} do not belong to {self.kind!r}")
        for qp in given:
            if qp is not None and (type(qp) is not int or not 0 <= qp <= MOST_QP):
                raise ValueError(f"{qp!r} is no QP")

    def words(self) -> str:
        """Return it in words, for cards."""
        return {RESIDUAL: "latents and residual", INT8: "8 bits a value", LOSSLESS: "without loss"}.get(
            self.kind, self.kind
        )

    def to_json(self) -> dict[str, Any]:
        """Return what is not None."""
        stated = {"kind": self.kind, "rate": self.qp, "residual_rate": self.residual_qp}
        return {name: value for name, value in stated.items() if value is not None}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Setting:
        """Read what `to_json` returned; raises `TypeError` or `ValueError` where it is something else."""
        odd = set(data) - {"kind", "rate", "residual_rate"}
        if odd:
            raise TypeError(f"a setting has no {sorted(odd)[0]!r}")
        return cls(data["kind"], data.get("rate"), data.get("residual_rate"))


@dataclass(frozen=True, slots=True)
class Loss:
    """One loss over the sessions.

    Attributes:
        bound: Of its expectation.
        measured: Its mean; of context lost, the mean KL over the mean worth.
        beyond: Sessions that lose more than twice the bound.
    """

    bound: float
    measured: float
    beyond: int

    @classmethod
    def from_json(cls, data: Any) -> Loss:
        """Read one, raising `FormatError` where a number is none."""
        given = JsonFields(data, "of a loss", only=("bound", "measured", "beyond"))
        bound, measured = (float(given.number(name, least=0)) for name in ("bound", "measured"))
        return cls(bound, measured, given.integer("beyond"))


@dataclass(frozen=True, slots=True)
class Promise:
    """What a quality word means for one codec.

    Attributes:
        quality: The word.
        setting: How a session is stored.
        sessions: How many sessions it was measured on.
        prefix_tokens: Tokens of their caches, on average.
        continuation_tokens: Tokens that the model was resumed over, on average.
        kl_nats: Mean KL(exact || decoded).
        context_lost: KL over what the context is worth.
        top1_lost: 1 - agreement of the most likely token.
        size_ratio: Raw 16-bit bytes over those of whole files, mean; None where it was not measured.

    Raises:
        ValueError: The evidence does not bear the promise out.
    """

    quality: str
    setting: Setting
    sessions: int
    prefix_tokens: int
    continuation_tokens: int
    kl_nats: Loss
    context_lost: Loss
    top1_lost: Loss
    size_ratio: float | None = None

    def __post_init__(self) -> None:
        """Refuse a promise that its own evidence contradicts."""
        if sessions_needed(self.sessions):
            raise ValueError(f"{self.sessions} sessions are too few for a promise")
        if self.setting.kind == LOSSLESS:  # holds by construction, whatever the arithmetic of the model does
            return
        for name, loss in self.losses().items():
            if loss.measured > loss.bound or loss.beyond > beyond_allowed(self.sessions):
                raise ValueError(f"{name} of {loss.measured:g} does not keep {loss.bound:g}")

    @property
    def qp(self) -> int | None:
        """QP of the latents."""
        return self.setting.qp

    @property
    def residual_qp(self) -> int | None:
        """QP of the residual."""
        return self.setting.residual_qp

    def losses(self) -> dict[str, Loss]:
        """Return the three losses by name."""
        return {name: getattr(self, name) for name in _LOSSES}

    def to_json(self) -> dict[str, Any]:
        """Return a JSON-able dictionary without the quality, under which it is kept; `from_json` is its inverse."""
        counts = {name: getattr(self, name) for name in _COUNTS}
        losses = {name: asdict(loss) for name, loss in self.losses().items()}
        ratio = {} if self.size_ratio is None else {"size_ratio": self.size_ratio}
        return {"stored": self.setting.to_json(), **counts, **losses, **ratio}

    @classmethod
    def from_json(cls, quality: str, data: Any) -> Promise:
        """Read one.

        Raises:
            CheckpointError: It is damaged.
        """
        try:
            given = JsonFields(data, "the part", only=("stored", *_COUNTS, *_LOSSES, "size_ratio"))
            sessions, prefix, following = (given.integer(name) for name in _COUNTS)
            kl, context, top1 = (Loss.from_json(given.value(name)) for name in _LOSSES)
            ratio, setting = (
                given.optional(given.number, "size_ratio", least=0),
                Setting.from_json(given.value("stored")),
            )
            return cls(quality, setting, sessions, prefix, following, kl, context, top1, ratio)
        except (FormatError, KeyError, TypeError, ValueError) as error:
            told = error.what if isinstance(error, FormatError) else str(error)
            raise CheckpointError(f"the codec's promise {quality!r} is damaged ({told})", RECALIBRATE) from error


def promises_from_json(data: Any) -> dict[str, Promise]:
    """Read the promises of a codec's `config.json`; none where it has none.

    Raises:
        CheckpointError: They are damaged.
    """
    if not isinstance(data or {}, Mapping):
        raise CheckpointError("the codec's promises are damaged (not an object)", RECALIBRATE)
    found = {str(quality): part for quality, part in (data or {}).items()}
    ordered = sorted(found, key=[*QUALITIES, *found].index)  # the file sorts names; people read from fine to coarse
    return {quality: Promise.from_json(quality, found[quality]) for quality in ordered}


def unpromised(quality: str, promises: Mapping[str, Promise]) -> InputError:
    """Return the error that tells why a quality word cannot be had of a codec, and what can."""
    if promises and quality not in QUALITIES:
        known = ", ".join(name for name in promises if name != FALLBACK)
        return InputError(f"this codec promises no quality {quality!r}", f"It has: {known}; or use --size-ratio")
    what = f"this codec's quality {quality!r} was never verified on sessions"
    return InputError(what, "Run `kvcompress calibrate CODEC --sessions FILE`, or use --max-kl / --size-ratio")


def stated_promise(directory: Path, codec_fingerprint: str, settings: CommonSettings) -> Promise | None:
    """Return what a codec promises of a file's quality, from the codec's `config.json` alone.

    None where the file names no quality, was made by another codec, or holds a session unlike those of the promise.

    Args:
        directory: Of the codec.
        codec_fingerprint: The codec that the file names.
        settings: Of the file.
    """
    layers = settings.recompute_layers if isinstance(settings, TinyVAESettings) else 0
    part = directory / f"recompute-{layers}"
    place = (part if layers and part.is_dir() else directory) / "config.json"
    if settings.quality is None or not place.is_file():
        return None
    config = read_json(place, "config.json")
    fitted = config.get("fitted") if isinstance(config, dict) else None
    if not isinstance(fitted, dict) or fitted.get("fingerprint") != codec_fingerprint:
        return None
    return applying(promises_from_json(config.get("promises")), settings)


def applying(promises: Mapping[str, Promise], settings: CommonSettings) -> Promise | None:
    """Return the promise that covers a file.

    None covers sessions unlike those known or of other weights, plans, files without a quality, and segments that
    continue others: promises were measured on sessions coded at once.
    """
    latents = settings if isinstance(settings, TinyVAESettings) else None
    if settings.continues or settings.unlike or settings.plan is not None:
        return None
    if latents is not None and latents.other_weights is not None:
        return None
    promise = None if settings.quality in (None, FALLBACK) else promises.get(settings.quality)
    qp = None if latents is None else latents.qp
    return promise if promise is not None and promise.qp == qp else None


def promise_in_words(promise: Promise) -> str:
    """Return a promise and its evidence in one line."""
    kl, context, top1 = promise.kl_nats, promise.context_lost, promise.top1_lost
    return (
        f"stored as {promise.setting.words()}; on {promise.sessions} sessions kept out of the fit mean KL "
        f"{kl.measured:.3g} nats (at most {kl.bound:g}), context lost {context.measured:.2%} (at most "
        f"{context.bound:.0%}), top-1 {1 - top1.measured:.1%} (at least {1 - top1.bound:.0%})"
    )
