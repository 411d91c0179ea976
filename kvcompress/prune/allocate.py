"""Tiers from importance: Lagrangian allocation under one budget.

For each token and tier the encoder knows the bits b and the squared error e of its latents, for it has tried them all.
With importance w the damage is w e, and the plan that loses least at given bits gives every token the tier of least

    b + lambda w e

with one lambda for all (Everett 1963; Shoham and Gersho 1988): no other plan of these bits has less damage, up to the
convex hull. The list of tiers costs bits too: a tier costs -log2 of its share. Where importance vary and steps are fine
this gives steps proportional to w ** -1/2, as reverse water-filling does; where a token is worth little, nothing.

What is tried leaves out that a token's neighbours are predicted from it, so bits and errors are those of all tokens at
one tier; the file's true size is measured, not summed.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from kvcompress.codec.analysis import Latents
from kvcompress.codec.tinyvae import TinyVAECodec
from kvcompress.hf.channels import group_positions
from kvcompress.prune.tiers import OFFSETS, Tier
from kvcompress.snapshot import KVSnapshot
from tinyvae import Context

CHOICES = (Tier.PRIOR, Tier.COARSE, Tier.FINE)
"""Tiers that a budget decides between; exact and dropped are asked for."""

ROUNDS = 4
LEVELS_PER_IMPORTANCE_OCTAVE = 8
"""A step goes with importance ** -1/2, and sixteen levels are an octave of it."""


def own_importance_log2(codec: TinyVAECodec, snapshot: KVSnapshot) -> Tensor:
    """Return [N] float32: log2 of what the codec itself expects each token to be worth, by id and age."""
    total = torch.zeros(snapshot.tokens, dtype=torch.float32)
    for group in range(len(codec.groups)):
        total += codec.vae(group).qps(snapshot.token_ids, 0).float() / LEVELS_PER_IMPORTANCE_OCTAVE / len(codec.groups)
    return total - total.mean() if snapshot.tokens else total


@dataclass(frozen=True, slots=True, eq=False)
class Costs:
    """What each tier costs each token at one QP.

    Attributes:
        qp: Quantisation parameter of the coarse tier.
        bits: [len(CHOICES), N] float64.
        errors: [len(CHOICES), N] float64, squared error of the latents, summed over groups.
    """

    qp: int
    bits: Tensor
    errors: Tensor


@torch.inference_mode()
def measure_costs(codec: TinyVAECodec, snapshot: KVSnapshot, qp: int, latents: Latents | None = None) -> Costs:
    """Try every tier on every token.

    Args:
        codec: The codec.
        snapshot: The cache, whole or pruned.
        qp: Quantisation parameter of the coarse tier.
        latents: Of each group, as `codec.latents` gives them; computed if not given.
    """
    bits = torch.zeros(len(CHOICES), snapshot.tokens, dtype=torch.float64)
    errors = torch.zeros_like(bits)
    for group, layers in enumerate(codec.groups):
        place = group_positions(snapshot, layers)
        found = latents[group] if latents is not None else codec.latents(snapshot, group)
        errors[0, place] += found[0].double().square().sum(1)  # prior only: no bits, and all is lost
        for row, tier in enumerate(CHOICES[1:], 1):
            offsets = torch.full((snapshot.tokens,), OFFSETS[tier], dtype=torch.int64)
            qps = codec.qps(group, snapshot.token_ids, qp, offsets)[place]
            spent, lost = _tried(codec, group, *found, qps)
            bits[row, place] += spent
            errors[row, place] += lost
    return Costs(qp, bits, errors)


def _tried(codec: TinyVAECodec, group: int, latents: Tensor, context: Context, qps: Tensor) -> tuple[Tensor, Tensor]:
    """Return bits and squared errors [T] float64 of tokens at their QPs."""
    vae = codec.vae(group)
    symbols, levels = vae.quantize(latents, context, qps)
    bits = torch.from_numpy(codec.bank.code_lengths(symbols.numpy(), levels.numpy()).sum(1))
    lost = latents.double().clone()
    lost[:, : symbols.shape[1]] -= vae.dequantize(symbols, context, qps, levels).double()
    return bits, lost.square().sum(1)


def allocate(costs: Costs, importance: Tensor, weight: float, floor: Tensor) -> Tensor:
    """Return the tier [N] int64 of each token at one Lagrange multiplier.

    Args:
        costs: What each tier costs.
        importance: [N] float64.
        weight: Lambda: bits that a unit of damage is worth.
        floor: [N] int64, the tier below which each token must not fall.
    """
    damage = costs.errors * importance
    allowed = torch.tensor([int(tier) for tier in CHOICES])[:, None] >= floor.clamp(max=int(CHOICES[-1]))
    side = torch.zeros(len(CHOICES), 1, dtype=torch.float64)
    picked = torch.zeros(importance.shape, dtype=torch.int64)
    for _ in range(ROUNDS):
        cost = (costs.bits + weight * damage + side).masked_fill(~allowed, torch.inf)
        picked = cost.argmin(0)  # of equal costs the lower tier
        counts = torch.bincount(picked, minlength=len(CHOICES)).double()
        side = -torch.log2((counts + 0.5) / (counts.sum() + 0.5 * len(CHOICES)))[:, None]
    return torch.tensor([int(tier) for tier in CHOICES])[picked]


def foreseen_damage(costs: Costs, importance: Tensor, tiers: Tensor) -> float:
    """Return the sum of importance times error of a plan, in the unit of the importance."""
    return float((costs.errors.gather(0, _row(tiers)[None])[0] * importance).sum())


def foreseen_bits(costs: Costs, tiers: Tensor) -> Tensor:
    """Return the bits [N] float64 of each token under a plan."""
    return costs.bits.gather(0, _row(tiers)[None])[0]


def _row(tiers: Tensor) -> Tensor:
    """Return the row of `CHOICES` of each tier: dropped as prior only, exact as fine."""
    return tiers.clamp(int(CHOICES[0]), int(CHOICES[-1])) - int(CHOICES[0])


def offsets_of(tiers: Tensor) -> Tensor:
    """Return the QP offsets [N] int64 of tiers [N]."""
    return torch.tensor([OFFSETS[tier] for tier in Tier])[tiers]
