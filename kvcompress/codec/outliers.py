"""Outlier tokens, which the prior misses by far: detected in each session and coded in a class of their own.

Some tokens have activations far from those of all others (Sun et al., "Massive activations", arXiv 2402.17762): most
models make one of the token at place 0, some of others, anywhere (KVSink, arXiv 2508.04257). Much attention goes there,
so an error in them costs more than one elsewhere, and under the tables of ordinary tokens each symbol would be an
escape. The file names them: how many levels each lies above ordinary tokens, and how much finer its step is.

```
u32 count, then for each: u32 index of the token, u8 levels above ordinary tokens, u8 QPs finer
```
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from kvcompress.errors import FormatError
from tinyvae import Context, TinyVAE
from tinyvae.quantize import LEVELS_PER_OCTAVE, LOWEST_SCALE_LOG2

OUTLIERS = "outliers"
"""Section of a file that has some."""

PROPORTION = 6.0
"""A token is an outlier where its latents are so many times wider than its tables expect. Ordinary tokens of
SmolLM2-135M reach 2.5, its sink 8 to 40."""

FINER = 32
"""QPs by which an outlier is finer: a quarter of the step."""

MOST_LIFT = 255
_ROW = np.dtype([("token", "<u4"), ("lift", "u1"), ("finer", "u1")])


@dataclass(frozen=True, slots=True, eq=False)
class Outliers:
    """The outliers of a session.

    Attributes:
        tokens: [K] int64, ascending indices of tokens.
        lifts: [K] int32, levels above ordinary tokens.
        finer: [K] int32, QPs that each is finer.
    """

    tokens: Tensor
    lifts: Tensor
    finer: Tensor

    @classmethod
    def find(
        cls, vaes: Sequence[TinyVAE], found: Sequence[tuple[Tensor, Context]], places: Sequence[Tensor], tokens: int
    ) -> Outliers:
        """Return the outliers of a session of N tokens.

        Args:
            vaes: Of each group.
            found: Latents [T, R] of each group and their context.
            places: The positions [T] that each group holds.
            tokens: N.
        """
        width = torch.zeros(tokens, dtype=torch.float32)
        for vae, (latents, context), place in zip(vaes, found, places, strict=True):
            of_group = relative_width(vae, latents, context.token_ids)
            if vae.first_place is not None and len(place) and int(place[0]) == 0:
                of_group[0] /= 2 ** (int(vae.first_place[1]) / LEVELS_PER_OCTAVE)
            width[place] = torch.maximum(width[place], of_group)
        chosen = torch.nonzero(width > PROPORTION)[:, 0]
        lifts = (LEVELS_PER_OCTAVE * torch.log2(width[chosen])).round().clamp(0, MOST_LIFT).int()
        return cls(chosen, lifts, torch.full_like(lifts, FINER))

    def to_bytes(self) -> bytes:
        """Return the section."""
        rows = np.zeros(len(self.tokens), _ROW)
        rows["token"], rows["lift"], rows["finer"] = self.tokens, self.lifts, self.finer
        return len(rows).to_bytes(4, "little") + rows.tobytes()

    @classmethod
    def from_bytes(cls, data: bytes, tokens: int) -> Outliers:
        """Read the section of a session of N tokens; raises `FormatError` where it is none."""
        count = int.from_bytes(data[:4], "little")
        if len(data) < 4 or len(data) != 4 + count * _ROW.itemsize or not 0 < count <= tokens:
            raise FormatError(f"the section {OUTLIERS!r} is cut or too long", offset=len(data))
        rows = np.frombuffer(data[4:], _ROW)
        index = torch.from_numpy(rows["token"].astype(np.int64))
        if int(index[-1]) >= tokens or bool((index.diff() <= 0).any()):
            raise FormatError(f"the section {OUTLIERS!r} names tokens that the session does not have", offset=4)
        lifts, finer = (torch.from_numpy(rows[name].astype(np.int32)) for name in ("lift", "finer"))
        return cls(index, lifts, finer)

    def spread(self, tokens: int) -> tuple[Tensor, Tensor]:
        """Return lifts and finer QPs of all N tokens, [N] int32 each, 0 for ordinary ones."""
        zeros = torch.zeros(tokens, dtype=torch.int32)
        return zeros.index_copy(0, self.tokens, self.lifts), zeros.index_copy(0, self.tokens, self.finer)


def relative_width(vae: TinyVAE, latents: Tensor, token_ids: Tensor) -> Tensor:
    """Return [T] how many times wider the latents [T, R] of each token are than the tables of its id expect."""
    octaves = vae.base_level[0].float() / LEVELS_PER_OCTAVE + LOWEST_SCALE_LOG2
    expected = vae.config.reference_step * torch.exp2(octaves)
    leading = max(1, min(len(expected), int((vae.base_level[0] > vae.base_level[0].max() - 64).sum())))
    energy = (latents[:, :leading] / expected[:leading]).square().mean(1)
    of_id = torch.exp2(vae.token_level[token_ids].float() / LEVELS_PER_OCTAVE)
    return energy.sqrt() / of_id
