"""The fewest bits that a codec of Gaussian latents needs at the distortion that was measured.

Reverse water-filling (Shannon 1959; Cover and Thomas, Elements of Information Theory, 10.3.3): components of variance
v_i at distortion D need sum max(0, log2(v_i / w) / 2) bits, where the water level w solves sum min(w, v_i) = D. The
covariance is that of the latents: conditional on the tokens, for the prior is subtracted, and weighted by sensitivity.
Tokens are taken one by one; a codec that predicts latents from those of other tokens may fall below it. Distortion is
what the codec takes it for: where it gives tokens steps of their own, errors count in units of these, and a token whose
step is half as wide has components four times as wide.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from kvcompress.channels import group_positions
from kvcompress.codec import TinyVAECodec
from kvcompress.container import to_bytes
from kvcompress.snapshot import KVSnapshot
from tinyvae.quantize import LEVELS_PER_OCTAVE

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Bound:
    """A codec at one rate beside the bound at the same distortion.

    Attributes:
        measured_bits: Bits of the latents sections, a token.
        bound_bits: Bits a token of the bound.
        file_bytes: Mean size of the files.
        bound_file_bytes: What they would be with the latents at the bound and all else as it is.
    """

    measured_bits: float
    bound_bits: float
    file_bytes: float
    bound_file_bytes: float

    @property
    def rate_over_bound(self) -> float:
        """Measured rate over the bound."""
        return self.measured_bits / self.bound_bits if self.bound_bits else float("inf")


def water_level(variances: Floats, distortion: float, weights: Floats | None = None) -> float:
    """Return w with sum min(w, v_i) = distortion; the largest variance where the distortion exceeds their sum.

    Args:
        variances: [N] variances.
        distortion: Their sum, cut at the level.
        weights: [N] how often each of them counts; once if not given.
    """
    order = np.argsort(-variances, kind="stable")
    falling = np.maximum(variances[order], 0.0)
    counts = np.ones(len(falling)) if weights is None else weights[order]
    filled = np.cumsum(falling * counts)
    levels = (distortion - (filled[-1] - filled)) / np.cumsum(counts)
    following = np.append(falling[1:], 0.0)
    inside = np.flatnonzero((following <= levels) & (levels <= falling))
    return float(levels[inside[0]]) if len(inside) else float(falling[0])


def rate_bits(variances: Floats, distortion: float, weights: Floats | None = None) -> float:
    """Return R(D) in bits for one draw of all components; arguments as of `water_level`."""
    level = water_level(variances, distortion, weights)
    if level <= 0:
        return float("inf")
    counts = np.ones(len(variances)) if weights is None else weights
    above = variances > level
    return float(0.5 * (np.log2(variances[above] / level) * counts[above]).sum())


@torch.inference_mode()
def bound_of(codec: TinyVAECodec, snapshots: Sequence[KVSnapshot], rate: int) -> Bound:
    """Return the bound for the latents of real sessions at a rate index.

    Args:
        codec: A TinyVAE codec.
        snapshots: Sessions, at least one; their latents are pooled.
        rate: Rate index.
    """
    bound_bits = 0.0
    tokens = sum(snapshot.tokens for snapshot in snapshots)
    for group, layers in enumerate(codec.groups):
        vae, rows, errors, finer = codec.vae(group), [], 0.0, list[torch.Tensor]()
        for snapshot in snapshots:
            place = group_positions(snapshot, layers)
            rates = codec.rates(group, snapshot.token_ids, rate)[place]
            latents, context = codec.latents(snapshot, group)
            symbols, levels = vae.quantize(latents, context, rates)
            coded = torch.zeros_like(latents)
            coded[:, : symbols.shape[1]] = vae.dequantize(symbols, context, rates, levels)
            rows.append(latents.double())
            finer.append(rates - rate)
            energy = torch.exp2(2 * finer[-1].double() / LEVELS_PER_OCTAVE)[:, None]
            errors += float(((latents - coded).double().square() * energy).sum())
        pooled = torch.cat(rows)
        covariance = pooled.T @ pooled / len(pooled)
        variances = torch.linalg.eigvalsh(covariance).clamp(min=0).numpy()
        offsets, counts = np.unique(torch.cat(finer).numpy(), return_counts=True)
        components = np.outer(np.exp2(2 * offsets / LEVELS_PER_OCTAVE), variances).ravel()
        weights = np.repeat(counts / len(pooled), len(variances))
        bound_bits += rate_bits(components, errors / len(pooled), weights) * len(pooled) / tokens
    latent_bytes = file_bytes = 0
    for snapshot in snapshots:
        encoded = codec.encode(snapshot, rate)
        file_bytes += len(to_bytes(encoded))
        latent_bytes += sum(len(data) for name, data in encoded.sections.items() if name.startswith("latents."))
    count = len(snapshots)
    at_bound = (file_bytes - latent_bytes + bound_bits * tokens / 8) / count
    return Bound(8 * latent_bytes / tokens, bound_bits, file_bytes / count, at_bound)
