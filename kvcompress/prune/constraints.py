"""Constraints of a plan: lowest tiers of protected tokens, and how many tokens may stay in memory."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from kvcompress.errors import InputError
from kvcompress.prune.anchors import DELIMITER, INSTRUCTION, KINDS, MARK, SINK, Anchor
from kvcompress.prune.tiers import Tier
from kvcompress.snapshot import KVSnapshot, LayerKV

GUARANTEES: Mapping[str, Tier] = {
    **dict.fromkeys(KINDS, Tier.DROPPED),
    SINK: Tier.COARSE,
    DELIMITER: Tier.DROPPED,
    INSTRUCTION: Tier.COARSE,
    MARK: Tier.FINE,
}
"""Unless the user says otherwise: what carries a session's rules, and what the user marked, is always coded. Names,
numbers and delimiters are half of a dialogue; a budget that had to keep them all would decide nothing."""


@dataclass(frozen=True, slots=True, eq=False)
class Constraints:
    """What every plan of a session must keep to.

    Attributes:
        floor: [N] int64, the lowest tier of each token.
        keep_fraction: Share of the tokens that stays in memory, in (0, 1]; None drops nothing.
    """

    floor: Tensor
    keep_fraction: float | None = None

    def __post_init__(self) -> None:
        """Refuse a fraction that is none."""
        fraction = self.keep_fraction
        if fraction is not None and not 0 < fraction <= 1:
            raise InputError(f"a keep fraction of {fraction:g} is not above 0 and at most 1", "Ask for one such as 0.5")

    @property
    def must_stay(self) -> Tensor:
        """Which tokens may not be dropped, [N] bool."""
        return self.floor > int(Tier.DROPPED)

    def kept_tokens(self) -> int:
        """Return how many tokens stay.

        Raises:
            InputError: The anchors alone are more.
        """
        tokens = len(self.floor)
        kept = tokens if self.keep_fraction is None else min(tokens, math.ceil(self.keep_fraction * tokens))
        anchored = int(self.must_stay.sum())
        if anchored > kept:
            what = f"the guaranteed anchors alone are {anchored} tokens, of which a keep fraction leaves {kept}"
            raise InputError(what, f"Keep at least {anchored / tokens:.3f}, or guarantee less")
        return kept


def floor_of(anchors: Iterable[Anchor], tokens: int, guarantees: Mapping[str, Tier] = GUARANTEES) -> Tensor:
    """Return the lowest tier [N] int64 of each of N tokens: the highest guarantee of the anchors that it lies in."""
    floor = torch.zeros(tokens, dtype=torch.int64)
    for anchor in anchors:
        part = floor[anchor.start : anchor.stop]
        part.copy_(part.clamp(min=int(guarantees[anchor.kind])))
    return floor


def choose_kept(constraints: Constraints, loss: Tensor) -> Tensor:
    """Return which tokens stay, [N] bool: those that must, then those of most loss, of equal ones the newest.

    Args:
        constraints: How many stay.
        loss: [N] float64, what dropping each token is foreseen to cost.

    Raises:
        InputError: The guaranteed anchors alone are too many.
    """
    kept, stay = constraints.kept_tokens(), constraints.must_stay.clone()
    ranked = torch.where(stay, torch.inf, loss.double())
    order = len(loss) - 1 - torch.sort(ranked.flip(0), descending=True, stable=True).indices
    stay[order[:kept]] = True
    return stay


def drop(snapshot: KVSnapshot, kept: Tensor) -> KVSnapshot:
    """Return the snapshot without the tokens that are not kept; the others stay at their positions.

    A layer with a sliding window keeps its own rule: its mask counts on every token of the window.

    Args:
        snapshot: The cache.
        kept: [N] bool.

    Raises:
        InputError: A layer would hold no token.
    """
    layers = []
    for index, (kind, layer) in enumerate(zip(snapshot.origin.layer_kinds, snapshot.layers, strict=True)):
        if kind != "full_attention" or bool(kept[layer.positions].all()):
            layers.append(layer)
            continue
        rows = torch.nonzero(kept[layer.positions])[:, 0]
        if not len(rows):
            raise InputError(f"layer {index} would hold no token", "Keep more")
        layers.append(LayerKV(layer.keys[:, rows], layer.values[:, rows], layer.positions[rows]))
    return KVSnapshot(tuple(layers), snapshot.token_ids, snapshot.origin)
