"""Options of an encode, validated once when they are created; imports nothing heavy."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from kvcompress.errors import InputError, require_positive

if TYPE_CHECKING:
    from kvcompress.api.planning import SessionPlan

DEFAULT_QUALITY = "transparent"
SEARCH, QUICK, NONE = "auto", "quick", "none"
PLANS = (SEARCH, QUICK, NONE)


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanOptions:
    """A plan gives each token a tier of its own; see docs/pruning.md.

    Attributes:
        search: Compare the scorers' plans and keep the best; otherwise the first scorer decides alone.
        scorers: Names of scorers; none means the default ones.
        keep: Regular expressions: what they match is coded fine, whatever its score.
        keep_messages: Indices of messages to be coded fine; negative from the end.
        keep_fraction: Share of the tokens that stays in memory; None drops nothing.
        guarantees: "KIND=TIER": the tier below which anchors of a kind never fall.
        history: JSON file of earlier searches, which steer this one; it is written again.
        evidence: File of `kvcompress record --evidence`.

    Lists do as well as tuples.

    Raises:
        InputError: The fraction is not above 0 and at most 1, or something is of another type.
    """

    search: bool = True
    scorers: Sequence[str] = ()
    keep: Sequence[str] = ()
    keep_messages: Sequence[int] = ()
    keep_fraction: float | None = None
    guarantees: Sequence[str] = ()
    history: Path | None = None
    evidence: Path | None = None

    def __post_init__(self) -> None:
        """Check all of it."""
        kinds = {"scorers": str, "keep": str, "keep_messages": int, "guarantees": str}
        for name, kind in kinds.items():
            given = getattr(self, name)
            if isinstance(given, str) or not isinstance(given, Sequence) or not all(type(one) is kind for one in given):
                what = f"{name} of a plan is {given!r}, not a list of {'texts' if kind is str else 'integers'}"
                raise InputError(what, "Put brackets around one alone")
            object.__setattr__(self, name, tuple(given))
        fraction = self.keep_fraction
        if fraction is not None and (isinstance(fraction, bool) or not isinstance(fraction, int | float)):
            raise InputError(f"a keep fraction of {fraction!r} is no number", "Ask for one such as 0.5")
        if fraction is not None and not 0 < fraction <= 1:
            raise InputError(f"a keep fraction of {fraction:g} is not above 0 and at most 1", "Ask for one such as 0.5")


@dataclass(frozen=True, slots=True, kw_only=True)
class EncodeOptions:
    """What a file is to be; of `quality`, `max_kl`, `size_ratio` and `lossless` at most one.

    Attributes:
        quality: "transparent" (the default), "high" or "usable": as the codec's calibration measured it.
        max_kl: Smallest file whose mean KL in nats, resumed on the session's own end, is at most this. Runs the model.
        size_ratio: Raw 16-bit size over file size, at least this or within 3 % of it.
        lossless: Give the identical bits back; needs no codec.
        recompute_layers: Layers that the model runs when the session is restored; the file leaves them out.
        link_mbits: Choose `recompute_layers` for the lowest time to the first token over a link of so many Mbit/s.
        plan: Tiers by token, or a plan that `kv.plan` made for this session; None codes all tokens alike.
        other_weights: Take a session of other weights of the codec's model, with `max_kl`, or with a quality that is
            measured on `sessions` once.
        sessions: JSON lines of sessions of the kind to be stored.

    Raises:
        InputError: Options contradict each other, or a number is impossible.
    """

    quality: str | None = None
    max_kl: float | None = None
    size_ratio: float | None = None
    lossless: bool = False
    recompute_layers: int | None = None
    link_mbits: float | None = None
    plan: PlanOptions | SessionPlan | None = None
    other_weights: bool = False
    sessions: Path | None = None

    def __post_init__(self) -> None:
        """Check all of it."""
        for name in ("lossless", "other_weights"):
            if not isinstance(getattr(self, name), bool):
                raise InputError(f"{name} is True or False, not {getattr(self, name)!r}", "Give one of them")
        targets = (self.quality is not None, self.max_kl is not None, self.size_ratio is not None, self.lossless)
        if sum(targets) > 1:
            raise InputError("quality, max KL, size ratio and lossless exclude each other", "Name one of them")
        if self.quality is not None and not isinstance(self.quality, str):
            raise InputError(f"a quality is a word, not {self.quality!r}", "Use transparent, high or usable")
        if sum(targets) and self.plan is not None and not isinstance(self.plan, PlanOptions):
            raise InputError("a plan that is made has its target", "Name the target in kv.plan")
        self._check_layers()
        self._check_other_weights()
        numbers = {
            "a bound on the mean KL (nats)": self.max_kl,
            "a size ratio": self.size_ratio,
            "a link's speed in Mbit/s": self.link_mbits,
        }
        for name, value in numbers.items():
            if value is not None:
                require_positive(name, value)

    def _check_layers(self) -> None:
        if self.recompute_layers is not None and type(self.recompute_layers) is not int:
            raise InputError(f"{self.recompute_layers!r} is no number of layers", "Give it as an integer")
        some = bool(self.recompute_layers) or self.link_mbits is not None
        if self.recompute_layers is not None and self.link_mbits is not None:
            raise InputError("a link chooses the layers to recompute", "Name the layers or the link, not both")
        if self.recompute_layers is not None and self.recompute_layers < 0:
            raise InputError(f"{self.recompute_layers} layers cannot be recomputed", "Choose 0 or more")
        if some and self.lossless:
            raise InputError("a lossless file stores every layer", "Name neither layers to recompute nor a link")
        if some and self.plan is not None:
            raise InputError("a plan is of all layers", "Name neither layers to recompute nor a link, or no plan")

    def _check_other_weights(self) -> None:
        if self.sessions is not None and not self.other_weights:
            raise InputError("sessions are what other weights are measured on", "Allow other weights too, or neither")
        if not self.other_weights:
            return
        if self.lossless or self.size_ratio is not None or self.plan is not None:
            what = "a lossless file" if self.lossless else "a plan" if self.plan is not None else "a size ratio"
            remedy = "Name a max KL, or a quality with sessions"
            raise InputError(f"{what} measures nothing, and other weights are not taken unmeasured", remedy)
        if self.max_kl is not None and self.sessions is not None:
            raise InputError("a max KL is measured on the session itself", "Leave the sessions out")

    @property
    def runs_model(self) -> bool:
        """Whether a model is needed: to measure, or to see that it can recompute what the file leaves out."""
        recomputes = bool(self.recompute_layers) or self.link_mbits is not None
        return self.max_kl is not None or recomputes or self.plan is not None or self.other_weights
