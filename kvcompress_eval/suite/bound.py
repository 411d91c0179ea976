"""The fewest bits that a codec of Gaussian latents needs at the distortion that was measured.

Reverse water-filling (Shannon 1959; Cover and Thomas, Elements of Information Theory, 10.3.3): components of variance
v_i at distortion D need sum max(0, log2(v_i / w) / 2) bits, where the water level w solves sum min(w, v_i) = D. The
covariance is that of the latents: conditional on the tokens and on decoded lower layers, for what these predict is
subtracted, and weighted by sensitivity.
Tokens are taken one by one; a codec that predicts latents from those of other tokens may fall below it. Distortion is
what the codec takes it for: where it gives tokens steps of their own, errors count in units of these, and a token whose
step is half as wide has components four times as wide.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from kvcompress.codec.tinyvae import TinyVAECodec
from kvcompress.format.container import to_bytes
from kvcompress.hf.channels import group_positions
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


class BoundOf:
    """Collects over sessions what the bound of a codec's latents at a rate needs.

    Args:
        codec: A TinyVAE codec.
        rate: Rate index.
    """

    def __init__(self, codec: TinyVAECodec, rate: int) -> None:
        self.codec, self.rate = codec, rate
        self._groups = [_Latents() for _ in codec.groups]
        self._tokens = self._sessions = self._file_bytes = self._latent_bytes = 0

    @torch.inference_mode()
    def add(self, snapshot: KVSnapshot) -> None:
        """Take up a session's latents and the size of its file."""
        codec, analysed = self.codec, self.codec.analyse(snapshot)
        decoded = list[tuple[Tensor, Tensor]]()
        for group, layers in enumerate(codec.groups):
            vae, places = codec.vae(group), group_positions(snapshot, layers)
            rates = codec.qps(group, snapshot.token_ids, self.rate)[places]
            below = codec.lower[group].rows(decoded, places, snapshot.tokens)
            found, context = analysed.latents[group]
            context, latents = vae.given(context, found, below)
            symbols, levels, predicted = vae.quantized(latents, context, rates)
            decoded.append((places, context.ordinary(predicted)))
            coded = torch.zeros_like(latents)
            coded[:, : symbols.shape[1]] = vae.dequantize(symbols, context, rates, levels)
            self._groups[group].add(latents, coded, rates - self.rate)
        encoded = analysed.encode(self.rate)
        self._latent_bytes += sum(len(data) for name, data in encoded.sections.items() if name.startswith("latents."))
        self._file_bytes += len(to_bytes(encoded))
        self._tokens += snapshot.tokens
        self._sessions += 1

    def found(self) -> Bound:
        """Return the bound over the sessions added, at least one."""
        bound_bits = sum(group.bits() for group in self._groups) / self._tokens
        at_bound = (self._file_bytes - self._latent_bytes + bound_bits * self._tokens / 8) / self._sessions
        return Bound(8 * self._latent_bytes / self._tokens, bound_bits, self._file_bytes / self._sessions, at_bound)


class _Latents:
    """Latents of one group: their second moments, squared errors, and how many tokens have which step."""

    def __init__(self) -> None:
        self.outer: Tensor | None = None
        self.errors, self.counts = 0.0, Counter[int]()

    def add(self, latents: Tensor, coded: Tensor, finer: Tensor) -> None:
        """Take up latents [T, R], what is decoded of them, and how much finer [T] than the rate their steps are."""
        wide = latents.double()
        self.outer = wide.T @ wide if self.outer is None else self.outer.addmm_(wide.T, wide)
        energy = torch.exp2(2 * finer.double() / LEVELS_PER_OCTAVE)[:, None]
        self.errors += float(((wide - coded.double()).square() * energy).sum())
        self.counts.update(finer.tolist())

    def bits(self) -> float:
        """Return the bits of all tokens at the bound."""
        tokens = self.counts.total()
        if self.outer is None or not tokens:
            return 0.0
        variances = torch.linalg.eigvalsh(self.outer / tokens).clamp(min=0).numpy()
        offsets = np.array(sorted(self.counts))
        shares = np.array([self.counts[offset] for offset in offsets]) / tokens
        components = np.outer(np.exp2(2 * offsets / LEVELS_PER_OCTAVE), variances).ravel()
        return rate_bits(components, self.errors / tokens, np.repeat(shares, len(variances))) * tokens
