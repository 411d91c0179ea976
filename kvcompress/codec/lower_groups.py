"""Regressors that decoded lower groups of layers give to the prior of a higher one.

Layers of a deep model say much of the same: a residual stream runs through all of them. Groups are coded lower ones
first, so the leading latents that a decoder has of those tell about the next, at no bits (AQUA-KV, arXiv 2501.19392,
predicts a layer from the one before it; here it is a group, in the latents that matter most, and of the token before
as well).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Lower:
    """Which latents a group is given.

    Attributes:
        groups: Lower groups and how many leading latents of each; none where nothing is given.
    """

    groups: tuple[tuple[int, int], ...] = ()

    @classmethod
    def from_json(cls, group: Mapping[str, Any]) -> Lower:
        """Read the field `lower` of a codec's group; it is missing where nothing is given."""
        return cls(tuple((int(number), int(latents)) for number, latents in group.get("lower", ())))

    def to_json(self) -> dict[str, Any]:
        """Return the same field."""
        return {"lower": [list(pair) for pair in self.groups]} if self.groups else {}

    @property
    def latents(self) -> int:
        """Latents of all of them, B."""
        return sum(latents for _, latents in self.groups)

    def rows(self, decoded: Sequence[tuple[Tensor, Tensor]], places: Tensor, tokens: int) -> Tensor | None:
        """Return what is given about the tokens of a group, [T, B] float32; None where nothing is.

        Args:
            decoded: Of each lower group its positions [T'] and latents [T', r].
            places: [T] int64, the positions of the group.
            tokens: N, of the session.
        """
        if not self.groups:
            return None
        parts = [_placed(decoded[group], latents, places, tokens) for group, latents in self.groups]
        return torch.cat(parts, 1)


def _placed(held: tuple[Tensor, Tensor], latents: int, places: Tensor, tokens: int) -> Tensor:
    """Return the leading latents of one group at positions [T]; 0 where it holds no token or decodes fewer latents."""
    positions, rows = held
    rows = rows[:, :latents]
    missing = latents - rows.shape[1]
    rows = torch.nn.functional.pad(rows, (0, missing)) if missing else rows
    if len(positions) == len(places) and torch.equal(positions, places):
        return rows
    return rows.new_zeros(tokens, latents).index_copy_(0, positions, rows)[places]
