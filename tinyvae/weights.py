"""Matrices stored with few bits per number and one scale per row, so that a codec stays small.

While a codec is trained, a matrix has a float32 *master*, and `dense` is the master as it would be stored, with the
straight-through gradient (Bengio et al., arXiv 1308.3432): what is trained is what is kept.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from tinyvae.bits import pack_rows, packed_bytes, unpack_rows

REACHES = {4: (1.0, 0.85, 0.7, 0.6, 0.5, 0.4), 5: (1.0, 0.8, 0.65, 0.5), 6: (1.0, 0.75), 8: (1.0,)}
"""Bits -> how far the integers of a row may reach, as shares of its largest entry: the one of least error is taken."""


class StoredMatrix(nn.Module):
    """A matrix of integers of 4 to 8 bits with a scale for each row.

    Each bit less costs four times the error: at 8, 6 and 4 bits about .005, .08 and 1.2 % of a row's energy. What is
    fitted afterwards is fitted to the rounded matrix.

    Args:
        rows: Rows.
        columns: Columns.
        bits: Bits of an entry, 4, 5, 6 or 8.

    Attributes:
        packed: [rows, ceil(columns * bits / 8)] uint8, entries one after another, the lowest bit first.
        scales: [rows] bfloat16.
        master: [rows, columns] float32 while in training, else None.
    """

    packed: Tensor
    scales: Tensor

    def __init__(self, rows: int, columns: int, bits: int) -> None:
        super().__init__()
        self.columns, self.bits = columns, bits
        self.largest = (1 << (bits - 1)) - 1
        self.register_buffer("packed", torch.zeros(rows, packed_bytes(columns, bits), dtype=torch.uint8))
        self.register_buffer("scales", torch.zeros(rows, dtype=torch.bfloat16))
        self.master: nn.Parameter | None = None
        self._dense: Tensor | None = None

    @torch.no_grad()
    def store(self, matrix: Tensor) -> None:
        """Round a matrix [rows, columns] of any float type and keep it."""
        integers, scales = self._rounded(matrix.detach().float())
        self.scales.copy_(scales[:, 0])
        self.packed.copy_(pack_rows(integers.to(torch.int16) + self.largest, self.bits))
        self._dense = None

    def begin_training(self) -> None:
        """Make a master [rows, columns] of what is stored now."""
        if self.master is None:
            self.master = nn.Parameter(self.dense.clone())

    def end_training(self) -> None:
        """Keep the master as integers and drop it."""
        if self.master is not None:
            self.store(self.master)
            self.master = None

    @property
    def dense(self) -> Tensor:
        """The stored matrix, [rows, columns] float32; made once."""
        if self.master is not None:
            return self._as_stored(self.master)
        if self._dense is None:
            self._dense = self._unpacked(slice(None))
        return self._dense

    def rows(self, index: Tensor) -> Tensor:
        """Return the rows [N, columns] float32 at index [N] int64, without making the whole matrix."""
        if self.master is not None:
            return self._as_stored(self.master[index])
        return self._unpacked(index)

    def _unpacked(self, index: Tensor | slice) -> Tensor:
        integers = unpack_rows(self.packed[index], self.bits, self.columns) - self.largest
        return integers.float() * self.scales[index].float()[:, None]

    def _rounded(self, matrix: Tensor) -> tuple[Tensor, Tensor]:
        """Return integers [N, columns] and scales [N, 1] bfloat16 of rows."""
        largest = matrix.abs().amax(1, keepdim=True) if self.columns else matrix.new_zeros(len(matrix), 1)
        integers, scales = torch.zeros_like(matrix), torch.zeros_like(largest).bfloat16()
        least = torch.full_like(largest, torch.inf)
        for reach in REACHES[self.bits]:
            tried = (reach * largest / self.largest).bfloat16()
            rounded = (matrix / tried.float().clamp(min=torch.finfo(torch.float32).tiny)).round()
            rounded = rounded.clamp(-self.largest, self.largest)
            error = (matrix - rounded * tried.float()).square().sum(1, keepdim=True)
            better = error < least
            integers, scales = torch.where(better, rounded, integers), torch.where(better, tried, scales)
            least = torch.minimum(error, least)
        return integers, scales

    def _as_stored(self, master: Tensor) -> Tensor:
        with torch.no_grad():
            integers, scales = self._rounded(master)
            change = integers * scales.float() - master
        return master + change

    def _load_from_state_dict(self, *arguments: object) -> None:
        self._dense = None
        super()._load_from_state_dict(*arguments)


def as_parameter(module: nn.Module, name: str) -> None:
    """Turn a buffer of a module into a float32 parameter, for training."""
    value = module.get_buffer(name)
    delattr(module, name)
    module.register_parameter(name, nn.Parameter(value.float().clone()))


def as_buffer(module: nn.Module, name: str, dtype: torch.dtype) -> None:
    """Turn a trained parameter of a module back into a buffer; a buffer stays one."""
    if name in dict(module.named_parameters(recurse=False)):
        value = module.get_parameter(name).detach()
        delattr(module, name)
        module.register_buffer(name, value.to(dtype))


class RankedMatrix(nn.Module):
    """A matrix whose leading rows carry most: they are stored in 8 bits, the others in 4.

    Args:
        rows: Rows, the most important first.
        columns: Columns.
        sharp_rows: Leading rows in 8 bits.
    """

    def __init__(self, rows: int, columns: int, sharp_rows: int) -> None:
        super().__init__()
        self.sharp_rows = min(rows, sharp_rows)
        self.sharp = StoredMatrix(self.sharp_rows, columns, 8)
        self.rest = StoredMatrix(rows - self.sharp_rows, columns, 4)
        self._dense: Tensor | None = None

    def store(self, matrix: Tensor) -> None:
        """Round a matrix [rows, columns] of any float type and keep it."""
        self.sharp.store(matrix[: self.sharp_rows])
        self.rest.store(matrix[self.sharp_rows :])
        self._dense = None

    def begin_training(self) -> None:
        """Make masters of what is stored now."""
        self.sharp.begin_training()
        self.rest.begin_training()

    def end_training(self) -> None:
        """Keep the masters as integers and drop them."""
        self.sharp.end_training()
        self.rest.end_training()
        self._dense = None

    @property
    def is_training(self) -> bool:
        """Whether there are masters."""
        return self.sharp.master is not None

    @property
    def dense(self) -> Tensor:
        """The stored matrix, [rows, columns] float32; made once."""
        if self.is_training:
            return torch.cat([self.sharp.dense, self.rest.dense])
        if self._dense is None:
            self._dense = torch.cat([self.sharp.dense, self.rest.dense])
        return self._dense

    def _load_from_state_dict(self, *arguments: object) -> None:
        self._dense = None
        super()._load_from_state_dict(*arguments)
