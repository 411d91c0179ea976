"""The settings in a file's header, typed for each codec; JSON only at the border.

A setting that this version does not know is not looked at, so that files of later versions are read; one that it
knows is of its type, or the file is refused. Nothing here needs torch, so that `kvcompress inspect` reads it at once.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any, Protocol

from kvcompress.errors import FormatError
from kvcompress.format.container import Encoded
from kvcompress.format.json_fields import JsonFields
from kvcompress.format.json_section import MAX_LAYERS

MOST_QP = 320
"""The codec's highest QP, known here without torch."""

MOST_SIZE = 0xFFFF
"""Heads of a layer, or numbers of a key or value, that a file may name."""

RESIDUAL_QP = "residual_rate"
OTHER_WEIGHTS = "other_weights"

_NAMES = {"qp": "rate", "residual_qp": RESIDUAL_QP}
"""Names in files of fields that are called otherwise here; the format keeps the older ones."""

_WHAT = "the setting"


class HasSettings(Protocol):
    """A file in memory, or its header alone."""

    @property
    def codec(self) -> str:
        """The codec's kind."""
        ...

    @property
    def settings(self) -> Mapping[str, Any]:
        """As JSON."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Certificate:
    """What was measured of a file's own session.

    Attributes:
        kl_nats: Mean KL(exact || decoded).
        max_kl_nats: The bound that was asked for.
        tail_tokens: Tokens at the session's own end that it was measured on; None where it was others.
        future_tokens: Tokens of sampled continuations that it was measured on; likewise.
    """

    kl_nats: float
    max_kl_nats: float
    tail_tokens: int | None = None
    future_tokens: int | None = None

    @classmethod
    def from_json(cls, value: object) -> Certificate:
        """Read what `to_json` of the settings wrote."""
        given = JsonFields(value, "the setting 'certificate' is damaged:")
        return cls(
            kl_nats=given.number("kl_nats"),
            max_kl_nats=given.number("max_kl_nats"),
            tail_tokens=given.optional(given.integer, "tail_tokens"),
            future_tokens=given.optional(given.integer, "future_tokens"),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class OtherWeights:
    """Of a session that was recorded with other weights than its codec was fitted to.

    Attributes:
        codec: First digits of the digest of the weights that the codec was fitted to.
        session: Those of the weights that recorded the session.
        sessions: How many sessions of these weights the quality was measured on; None where it was not.
        kl_nats: Mean KL over them, in nats; likewise.
        context_lost: That over what the context is worth.
        top1_lost: 1 - agreement of the most likely token.
    """

    codec: str
    session: str
    sessions: int | None = None
    kl_nats: float | None = None
    context_lost: float | None = None
    top1_lost: float | None = None

    @classmethod
    def from_json(cls, value: object) -> OtherWeights:
        """Read what `to_json` of the settings wrote."""
        given = JsonFields(value, f"the setting {OTHER_WEIGHTS!r} is damaged:")
        return cls(
            codec=given.text("codec"),
            session=given.text("session"),
            sessions=given.optional(given.integer, "sessions"),
            kl_nats=given.optional(given.number, "kl_nats"),
            context_lost=given.optional(given.number, "context_lost"),
            top1_lost=given.optional(given.number, "top1_lost"),
        )

    def words(self) -> str:
        """Return which weights they are, and what was measured with them."""
        told = f"recorded with weights {self.session[:12]}, its codec was fitted to {self.codec[:12]}"
        if self.sessions is not None and self.kl_nats is not None:
            told += f"; measured on {self.sessions} sessions of these: mean KL {self.kl_nats:.3g} nats"
        return told


@dataclass(frozen=True, slots=True, kw_only=True)
class CommonSettings:
    """What files of every codec may say; decoding needs none of it. All that the lossless codec's files say.

    Attributes:
        quality: The quality word that was asked for.
        stored: How the session is stored instead of as latents of that quality: a finer quality, "residual", "int8" or
            "lossless".
        unlike: Whether that is because the session differs from those that the codec was calibrated on.
        size_ratio: The size ratio that was asked for.
        plan: Scorer that the tiers of the tokens follow; None without a plan.
        certificate: What was measured on the session itself.
        continues: Whether the file is a segment that continues others; read from the setting `segment`, never written.
    """

    quality: str | None = None
    stored: str | None = None
    unlike: bool = False
    size_ratio: float | None = None
    plan: str | None = None
    certificate: Certificate | None = None
    continues: bool = False

    def common(self) -> dict[str, Any]:
        """Return the fields that settings of every codec have, by name: arguments of another codec's settings."""
        return {one.name: getattr(self, one.name) for one in fields(CommonSettings)}

    def to_json(self) -> dict[str, Any]:
        """Return what the header holds: nothing of what is None, false or 0, but for the QPs."""
        return _stated(self)

    @classmethod
    def from_json(cls, settings: Mapping[str, Any]) -> CommonSettings:
        """Read the settings of a header.

        Raises:
            FormatError: A setting is missing or is of another type.
        """
        return cls(**_common(settings))


NOTHING_STATED = CommonSettings()


@dataclass(frozen=True, slots=True, kw_only=True)
class Int8Settings(CommonSettings):
    """Settings of the int8 codec.

    Attributes:
        shapes: Runs of layers of one shape: layers, heads, size of a key, size of a value.
    """

    shapes: tuple[tuple[int, int, int, int], ...]

    @classmethod
    def from_json(cls, settings: Mapping[str, Any]) -> Int8Settings:
        """Read them, as `CommonSettings.from_json`."""
        return cls(**_common(settings), shapes=runs_of(settings))


@dataclass(frozen=True, slots=True, kw_only=True)
class TinyVAESettings(CommonSettings):
    """Settings of the TinyVAE codec.

    Attributes:
        qp: Quantisation parameter of the latents.
        residual_qp: That of the residual; None without one.
        recompute_layers: Layers that the model runs when the session is restored.
        other_weights: Of a session of other weights than the codec's own.
    """

    qp: int
    residual_qp: int | None = None
    recompute_layers: int = 0
    other_weights: OtherWeights | None = None

    @classmethod
    def from_json(cls, settings: Mapping[str, Any]) -> TinyVAESettings:
        """Read them, as `CommonSettings.from_json`."""
        given = JsonFields(settings, _WHAT)
        other = given.optional(given.value, OTHER_WEIGHTS)
        return cls(
            **_common(settings),
            qp=given.integer("rate", most=MOST_QP),
            residual_qp=given.optional(given.integer, RESIDUAL_QP, most=MOST_QP),
            recompute_layers=given.optional(given.integer, "recompute_layers", most=MAX_LAYERS) or 0,
            other_weights=OtherWeights.from_json(other) if OTHER_WEIGHTS in settings else None,
        )


_KINDS: Mapping[str, type[CommonSettings]] = {
    "tinyvae": TinyVAESettings,
    "int8": Int8Settings,
    "lossless": CommonSettings,
}


def settings_of(file: HasSettings) -> CommonSettings:
    """Return the settings of a file as its codec writes them; of a codec that this version does not know, none.

    Args:
        file: The file, or its header.

    Raises:
        FormatError: A setting is missing or is of another type.
    """
    kind = _KINDS.get(file.codec)
    return CommonSettings() if kind is None else kind.from_json(file.settings)


def restated(encoded: Encoded, changes: CommonSettings) -> Encoded:
    """Return a file whose settings also say what `changes` do; no section of it changes, and no other setting."""
    return replace(encoded, settings={**encoded.settings, **changes.to_json()})


def _stated(part: Any) -> dict[str, Any]:
    """Return the fields of settings, or of a part of them, that say something, under their names in files."""
    found: dict[str, Any] = {}
    for one in fields(part):
        value = getattr(part, one.name)
        if isinstance(value, Certificate | OtherWeights):
            value = _stated(value)
        elif one.name == "shapes":
            value = [list(run) for run in value]
        elif one.name == "continues" or value is None or (one.name in ("unlike", "recompute_layers") and not value):
            continue
        found[_NAMES.get(one.name, one.name)] = value
    return found


def _common(settings: Mapping[str, Any]) -> dict[str, Any]:
    given = JsonFields(settings, _WHAT)
    certificate, segment = given.optional(given.value, "certificate"), settings.get("segment")
    return {
        "quality": given.optional(given.text, "quality"),
        "stored": given.optional(given.text, "stored"),
        "unlike": given.optional(given.flag, "unlike") or False,
        "size_ratio": given.optional(given.number, "size_ratio", least=0),
        "plan": given.optional(given.text, "plan"),
        "certificate": Certificate.from_json(certificate) if "certificate" in settings else None,
        "continues": isinstance(segment, Mapping) and segment.get("start") != 0,
    }


def runs_of(settings: Mapping[str, Any]) -> tuple[tuple[int, int, int, int], ...]:
    """Return the setting "shapes": runs of layers of one shape, see `Int8Settings`.

    Raises:
        FormatError: It is missing, or no list of such runs.
    """
    value = settings.get("shapes")
    return tuple(_run(run) for run in (value if isinstance(value, list) else [None]))


def _run(run: object) -> tuple[int, int, int, int]:
    numbers = run if isinstance(run, list) else []
    if len(numbers) != 4 or not all(type(number) is int and 0 <= number <= MOST_SIZE for number in numbers):
        raise FormatError("the setting 'shapes' is not a list of [layers, heads, key size, value size]")
    layers, heads, key, value = numbers
    return layers, heads, key, value
