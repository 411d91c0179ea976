"""How large the parts of a codec are, and which sizes fit a budget: ranks, columns of the token table, hidden units."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from kvcompress.channels import LayerShape
from tinyvae.prior import CONTEXTS, PAST_DIRECTIONS, SHARP_COLUMNS, SHARP_UNITS
from tinyvae.transform import SHARP_LATENTS

if TYPE_CHECKING:
    from kvcompress.closed_form import Group, Solved
    from kvcompress.shards import Shards

TABLE_SHARE = 0.25
"""Of the budget, for the token table."""

MOST_COLUMNS = 192
DISCARDED = 0.002
"""Share of the weighted variance that the ranks may leave out."""

UNITS_A_CHANNEL = 8
LEAST_UNITS = 16
CHANNELS_OF_FULL_RANK = 512
MOST_RANK_SHARE = 0.6
"""Of the channels of wide groups: decoding takes tokens x channels x rank."""

_BYTES_A_LATENT = 80
"""Levels and weights of the prediction."""


def model_bytes(shards: Shards) -> int:
    """Return the size of a harvest's model in 16 bits a weight."""
    return 2 * int(shards.settings["parameters"])


@dataclass(frozen=True)
class Budget:
    """What a codec may weigh.

    Attributes:
        file_bytes: Of its weights.
        vocab_size: V.
        groups: The groups of layers.
        shapes: Of every layer.
    """

    file_bytes: float
    vocab_size: int
    groups: Sequence[Group]
    shapes: Sequence[LayerShape]

    def most_rank(self, group: Group) -> int:
        """Return the largest rank of a group, whatever its spectrum."""
        width = group.width(self.shapes)
        return width if width <= CHANNELS_OF_FULL_RANK else max(CHANNELS_OF_FULL_RANK, int(MOST_RANK_SHARE * width))

    def latent_bytes(self, group: Group) -> float:
        """Return what one latent more of a group costs."""
        return group.width(self.shapes) / 2 + _BYTES_A_LATENT

    def fixed_bytes(self, columns: int, taps: int, units: int) -> float:
        """Return what everything but the latents weighs."""
        total = self.vocab_size * (columns / 2 + min(columns, SHARP_COLUMNS) / 2 + 2)
        for group in self.groups:
            width, known = group.width(self.shapes), group.known.channels(self.shapes)
            total += units * 0.75 * taps * columns + 2.0 * self.vocab_size
            total += units * (known + CONTEXTS * min(known, PAST_DIRECTIONS) + 2 * group.lower.latents)
            total += width * (units / 2 + min(units, SHARP_UNITS) / 2 + 4)
            total += width * max(group.blocks(self.shapes)) + SHARP_LATENTS * width / 2
        return total


def prior_columns(budget: Budget, embedding_size: int) -> int:
    """Return the columns of the token table that the budget allows."""
    affordable = TABLE_SHARE * budget.file_bytes / budget.vocab_size
    columns = int(2 * (affordable - 2) - SHARP_COLUMNS)
    return max(4, min(columns, MOST_COLUMNS, embedding_size, budget.vocab_size))


def prior_units(budget: Budget) -> int:
    """Return the hidden units of the prior."""
    width = max(group.width(budget.shapes) for group in budget.groups)
    return min(width, max(LEAST_UNITS, width // UNITS_A_CHANNEL))


def ranks(budget: Budget, solved: Sequence[Solved]) -> list[int]:
    """Return the rank of each group: the widest latents of all, until little variance or no budget is left."""
    prior = solved[0].prior
    left = budget.file_bytes - budget.fixed_bytes(prior.table.rank, prior.taps, prior.inward.columns)
    variances = torch.cat([part.variances.double() for part in solved])
    owner = torch.cat([torch.full((len(part.variances),), number) for number, part in enumerate(solved)])
    order = variances.argsort(descending=True)
    costs = torch.tensor([budget.latent_bytes(group) for group in budget.groups], dtype=torch.float64)
    total = sum(part.variance for part in solved)
    missing = total - variances[order].cumsum(0)
    wanted = int((missing > DISCARDED * total).sum()) + 1
    affordable = int((costs[owner[order]].cumsum(0) <= max(left, 0.0)).sum())
    chosen = owner[order[: max(1, min(wanted, affordable, len(order)))]]
    return [max(1, int((chosen == number).sum())) for number in range(len(solved))]
