"""Sizes of a codec's parts within a budget: ranks, columns of the token table, hidden units."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from kvcompress.hf.channels import LayerShape
from tinyvae.neighbours import CODING_PASSES, MATCHES
from tinyvae.offsets import AGES
from tinyvae.prior import CONTEXTS, PAST_DIRECTIONS, SHARP_COLUMNS, SHARP_UNITS
from tinyvae.quantize import LEVELS
from tinyvae.tables import TABLE_ENTRIES

if TYPE_CHECKING:
    from kvcompress.data.shards import Shards
    from kvcompress.fit.closed_form import Group, Solved

TABLE_SHARE = 0.25
"""Of the budget, for the token table."""

MOST_COLUMNS = 192
DISCARDED = 0.001
"""Share of the weighted variance that may be lost to latents left out and to rounded weights."""

ROUNDED = 0.012
"""Share of a latent's variance that is lost where its synthesis is stored in 4 bits."""

NAMES_BYTES = 6000
"""Of each group: what the file says of its tensors before they begin."""

SCALE_BYTES = 2
"""Of each row of a stored matrix."""

SMALL_BYTES = 8 * LEVELS + AGES + 2 * CODING_PASSES * MATCHES
"""Of each group: centroids, offsets by age, levels by match."""

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
        total = self.vocab_size * (columns / 2 + min(columns, SHARP_COLUMNS) / 2 + 4) + 2.0 * TABLE_ENTRIES
        total += 4 * (LEVELS + 1)
        for group in self.groups:
            width, known = group.width(self.shapes), group.conditioning.channels(self.shapes)
            past = min(known, PAST_DIRECTIONS)
            regressors = known + CONTEXTS * past + 2 * group.lower.latents
            total += taps * columns * (units * 0.75 + SCALE_BYTES) + 2.0 * self.vocab_size
            total += regressors * (units + SCALE_BYTES) + known * (past + SCALE_BYTES)
            total += width * (units / 2 + min(units, SHARP_UNITS) / 2 + 4) + units * SCALE_BYTES
            total += columns * (units + SCALE_BYTES) + 4 * width  # place 0, where it has a prior of its own
            total += width * (max(group.blocks(self.shapes)) + SCALE_BYTES) + SMALL_BYTES + NAMES_BYTES
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


def ranks(budget: Budget, solved: Sequence[Solved]) -> list[tuple[int, int]]:
    """Return of each group how many latents are kept, and how many of these in 8 bits.

    What saves most variance a byte comes first, until little is lost or no budget is left: a latent more saves its
    variance, and its synthesis in 8 bits instead of 4 saves 1.2 % of it. Both are taken from the widest latent on.
    """
    prior = solved[0].prior
    fixed = budget.fixed_bytes(prior.table.rank, prior.taps, prior.inward.columns)
    left = budget.file_bytes - fixed
    gains, costs, owners, sharpened = list[Tensor](), list[Tensor](), list[Tensor](), list[Tensor]()
    for number, (group, part) in enumerate(zip(budget.groups, solved, strict=True)):
        variances, latent = part.variances.double(), budget.latent_bytes(group)
        for sharp, share, price in ((False, 1 - ROUNDED, latent), (True, ROUNDED, group.width(budget.shapes) / 2)):
            gains.append(share * variances)
            costs.append(torch.full_like(variances, price))
            owners.append(torch.full((len(variances),), number))
            sharpened.append(torch.full((len(variances),), sharp))
    gain, cost = torch.cat(gains), torch.cat(costs)
    order = (gain / cost).argsort(descending=True, stable=True)
    total = sum(part.variance for part in solved)
    wanted = int((total - gain[order].cumsum(0) > DISCARDED * total).sum()) + 1
    affordable = int((cost[order].cumsum(0) <= max(left, 0.0)).sum())
    chosen = order[: max(1, min(wanted, affordable, len(order)))]
    owner, is_sharp = torch.cat(owners)[chosen], torch.cat(sharpened)[chosen]
    found = []
    for number in range(len(solved)):
        rank = max(1, int(((owner == number) & ~is_sharp).sum()))
        found.append((rank, min(rank, int(((owner == number) & is_sharp).sum()))))
    return found
