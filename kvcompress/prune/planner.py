"""Plans of one session by one scorer: importance, kept tokens, and tiers for any budget of bytes.

```
score ──► profile ──► importance w ──┬──► loss of dropping: w x error of "prior only" ──► who stays
                                └──► least bits + lambda w x error  ──► tier of each token ──► file
```
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from kvcompress.codec.analysis import HIGHEST_QP, Analysis, Latents
from kvcompress.codec.exact_tokens import with_exact
from kvcompress.codec.settings import NOTHING_STATED, CommonSettings
from kvcompress.codec.tinyvae import TinyVAECodec
from kvcompress.errors import InputError
from kvcompress.format.container import Encoded, to_bytes
from kvcompress.hf.channels import group_positions
from kvcompress.prune.allocate import (
    CHOICES,
    Costs,
    allocate,
    foreseen_bits,
    foreseen_damage,
    measure_costs,
    offsets_of,
    own_importance_log2,
)
from kvcompress.prune.constraints import Constraints, choose_kept, drop
from kvcompress.prune.scorers.profiles import fitted_file, profile_of
from kvcompress.prune.scorers.registry import require_scores
from kvcompress.prune.tiers import Tier
from kvcompress.snapshot import KVSnapshot

HEDGE = 0.7
"""Exponent of the importance. Below 1 for a future that the evidence does not show; 0.5 and 1 gave files of 5 to 10 %
more bytes at equal KL, and 1 leaves tokens that nobody has asked for yet without any bits."""

LEAST_WEIGHT, MOST_WEIGHT = 2.0**-6, 2.0**20
"""Bits that losing an average token is worth: all prior only, and all fine."""

FITS = 0.985
"""A file of at least this share of the bytes asked for is near enough."""

AIMED = 0.993
"""Share of the bytes asked for that is aimed at."""

TRIES = 8


@dataclass(frozen=True, slots=True, eq=False)
class Plan:
    """What is kept of each token.

    Attributes:
        scorer: Whose importance it follows.
        qp: Quantisation parameter of the coarse tier.
        weight: Lagrange multiplier: bits that losing an average token is worth.
        tiers: [N] int64, the tier of each token.
        damage: Foreseen loss, as a share of that of coding nothing.
        bits: [N] float64 foreseen bits of each token.
    """

    scorer: str
    qp: int
    weight: float
    tiers: Tensor
    damage: float
    bits: Tensor


@dataclass(frozen=True, slots=True, eq=False)
class Planned:
    """A plan and its file."""

    plan: Plan
    encoded: Encoded
    file_bytes: int


@dataclass(slots=True)
class Planner:
    """Plans of one session by one scorer.

    Args:
        codec: The codec.
        snapshot: The whole cache.
        scorer: Name of the scorer; its profile says what its ranks are worth.
        score: [N] float, the scorer's.
        constraints: What the plans must keep to.
        settings: What the headers of files say beside the plan.

    Raises:
        InputError: The scores do not fit the session, or the guaranteed anchors are more than may stay.
    """

    codec: TinyVAECodec
    snapshot: KVSnapshot
    scorer: str
    score: Tensor
    constraints: Constraints
    settings: CommonSettings = NOTHING_STATED
    importance: Tensor = field(init=False)
    kept: Tensor = field(init=False)
    pruned: KVSnapshot = field(init=False)
    _latents: Latents = field(init=False, default_factory=list)
    _costs: dict[int, Costs] = field(init=False, default_factory=dict)
    _least: dict[int, Planned] = field(init=False, default_factory=dict)

    def __post_init__(self) -> None:
        """Decide who stays."""
        self.codec.require_compatible(self.snapshot)
        score = require_scores(self.score, self.snapshot.tokens, self.scorer)
        profile = profile_of(self.scorer, fitted_file(self.codec))
        importance = profile.importance(score, own_importance_log2(self.codec, self.snapshot)) ** HEDGE
        self.importance = importance / importance.mean().clamp(min=1e-300) if len(importance) else importance
        self._latents = self.codec.analyse(self.snapshot).latents
        if self.constraints.keep_fraction is None:
            self.kept, self.pruned = torch.ones(self.snapshot.tokens, dtype=torch.bool), self.snapshot
            return
        self.kept = choose_kept(self.constraints, self.importance * self._energy())
        self.pruned = drop(self.snapshot, self.kept)
        self._latents = self._latents_of_kept()

    def _energy(self) -> Tensor:
        """Return [N] float64: the squared latents, which is what coding nothing of a token loses."""
        total = torch.zeros(self.snapshot.tokens, dtype=torch.float64)
        for layers, (latents, _) in zip(self.codec.groups, self._latents, strict=True):
            total[group_positions(self.snapshot, layers)] += latents.double().square().sum(1)
        return total

    def _latents_of_kept(self) -> Latents:
        """Return latents and context of the tokens that each group still holds; they depend on no other token's."""
        found = []
        for layers, (latents, context) in zip(self.codec.groups, self._latents, strict=True):
            before, after = group_positions(self.snapshot, layers), group_positions(self.pruned, layers)
            stays = torch.isin(before, after)
            found.append((latents[stays], context[stays]))
        return found

    def costs(self, qp: int) -> Costs:
        """Return what each tier costs each token at a QP; tried once."""
        if qp not in self._costs:
            self._costs[qp] = measure_costs(self.codec, self.pruned, qp, self._latents)
        return self._costs[qp]

    def plan(self, qp: int, weight: float) -> Plan:
        """Return the plan of a QP and a Lagrange multiplier.

        Args:
            qp: Quantisation parameter of the coarse tier.
            weight: Bits that losing an average token is worth.
        """
        costs = self.costs(qp)
        unit = float((costs.errors[0] * self.importance).mean()) if len(self.importance) else 1.0
        tiers = allocate(costs, self.importance, weight / max(unit, 1e-300), self.constraints.floor)
        tiers = torch.where(self.kept, torch.maximum(tiers, self.constraints.floor), int(Tier.DROPPED))
        share = foreseen_damage(costs, self.importance, tiers) / max(unit * max(len(tiers), 1), 1e-300)
        return Plan(self.scorer, qp, weight, tiers, share, foreseen_bits(costs, tiers))

    def encode(self, plan: Plan) -> Planned:
        """Return the file of a plan."""
        offsets = offsets_of(plan.tiers)
        settings = replace(self.settings, plan=plan.scorer)
        told = offsets if bool(offsets.any()) else None
        encoded = Analysis(self.codec, self.pruned, self._latents).encode(plan.qp, settings, told)
        encoded = with_exact(encoded, self.pruned, plan.tiers == int(Tier.EXACT))
        return Planned(plan, encoded, len(to_bytes(encoded)))

    def within(self, qp: int, most_bytes: int) -> Planned | None:
        """Return the largest file found of at most `most_bytes`, None where even the smallest is larger.

        Foreseen bits say where to look; the file's size is measured. What is coded of a token costs more where its
        neighbours are not, so files are larger than foreseen, and the aim is read off between one that fits and one
        that does not.
        """
        least = self.smallest(qp)
        if least.file_bytes > most_bytes:
            return None
        best, below, above = least, least, None
        for _ in range(TRIES):
            tried = self.encode(self.plan(qp, self._weight_of(qp, _aim(below, above, AIMED * most_bytes))))
            if tried.file_bytes > most_bytes:
                above = tried
                continue
            below = tried
            best = max(best, tried, key=lambda planned: planned.file_bytes)
            if best.file_bytes >= FITS * most_bytes or tried.plan.weight >= MOST_WEIGHT:
                break
        return best

    def _weight_of(self, qp: int, latents_bytes: float) -> float:
        """Return the multiplier whose foreseen bits are about so many bytes (bisection on its logarithm)."""
        low, high = math.log2(LEAST_WEIGHT), math.log2(MOST_WEIGHT)
        for _ in range(18):
            middle = (low + high) / 2
            bits = float(self.plan(qp, 2.0**middle).bits.sum())
            low, high = (middle, high) if bits < 8 * latents_bytes else (low, middle)
        return float(2.0 ** ((low + high) / 2))

    def losing(self, qp: int, damage: float) -> Planned:
        """Return the file of the plan that is foreseen to lose about `damage`, in the unit of `Plan.damage`."""
        low, high = math.log2(LEAST_WEIGHT), math.log2(MOST_WEIGHT)
        for _ in range(18):
            middle = (low + high) / 2
            low, high = (low, middle) if self.plan(qp, 2.0**middle).damage <= damage else (middle, high)
        return self.encode(self.plan(qp, 2.0**high))

    def one_tier_damage(self, qp: int) -> float:
        """Return what the file of one tier at a QP is foreseen to lose, in the unit of `Plan.damage`."""
        costs = self.costs(qp)
        whole = float((costs.errors[0] * self.importance).sum())
        return float((costs.errors[CHOICES.index(Tier.COARSE)] * self.importance).sum()) / max(whole, 1e-300)

    def smallest(self, qp: int) -> Planned:
        """Return the file of the least that the constraints allows; made once."""
        if qp not in self._least:
            self._least[qp] = self.encode(self.plan(qp, LEAST_WEIGHT))
        return self._least[qp]


def _aim(below: Planned, above: Planned | None, wanted_bytes: float) -> float:
    """Return the bytes of latents to foresee for a file of the bytes wanted, from one below and one above it."""
    foreseen = float(below.plan.bits.sum()) / 8
    missing = wanted_bytes - below.file_bytes
    if above is None:
        return foreseen + missing
    share = missing / max(1, above.file_bytes - below.file_bytes)
    return foreseen + min(max(share, 0.1), 0.9) * (float(above.plan.bits.sum()) / 8 - foreseen)


def clamped_qp(qp: int) -> int:
    """Return a QP brought into its range."""
    return max(0, min(qp, HIGHEST_QP))


def cannot_be_met(most_bytes: int, least: Planned) -> InputError:
    """Return the error of a budget below what the guaranteed anchors cost."""
    anchored = int((least.plan.tiers > int(Tier.PRIOR)).sum())
    alone = f"the {anchored} guaranteed tokens alone make {least.file_bytes:,}"
    what = f"a file of {most_bytes:,} bytes cannot be met: {alone}"
    return InputError(what, "Allow more bytes or guarantee less")
