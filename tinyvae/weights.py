"""Matrices stored as bytes: one scale a row, so that a codec stays small beside the model it serves."""

from __future__ import annotations

import torch
from torch import Tensor, nn

LARGEST = 127


class Int8Matrix(nn.Module):
    """A matrix of 8-bit integers with a scale for each row.

    Rounding to 127 steps of the row's largest entry costs about a tenth of a thousandth of a row's energy, far less
    than what a quantised cache loses; what is fitted afterwards is fitted to the rounded matrix.

    Attributes:
        values: [rows, columns] int8.
        scales: [rows] float32.
    """

    values: Tensor
    scales: Tensor

    def __init__(self, rows: int, columns: int) -> None:
        super().__init__()
        self.register_buffer("values", torch.zeros(rows, columns, dtype=torch.int8))
        self.register_buffer("scales", torch.zeros(rows))
        self._dense: Tensor | None = None

    @torch.no_grad()
    def store(self, matrix: Tensor) -> None:
        """Round a matrix [rows, columns] of any float type and keep it."""
        scales = matrix.detach().float().abs().amax(1) / LARGEST
        steps = matrix.detach().float() / scales.clamp(min=torch.finfo(torch.float32).tiny)[:, None]
        self.scales.copy_(scales)
        self.values.copy_(steps.round().clamp(-LARGEST, LARGEST).to(torch.int8))
        self._dense = None

    @property
    def dense(self) -> Tensor:
        """The stored matrix, [rows, columns] float32; made once."""
        if self._dense is None:
            self._dense = self.values.float() * self.scales[:, None]
        return self._dense

    def rows(self, index: Tensor) -> Tensor:
        """Return the rows [N, columns] float32 at index [N] int64, without making the whole matrix."""
        return self.values[index].float() * self.scales[index][:, None]

    def _load_from_state_dict(self, *arguments: object) -> None:
        self._dense = None
        super()._load_from_state_dict(*arguments)
