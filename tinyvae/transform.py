"""Analysis and synthesis transform: the sensitivity-weighted Karhunen-Loeve transform.

Let e be the error of the channels and W the weight matrix (how much the model's output cares). The
transform diagonalises the residual's covariance in the metric of W, so that a unit of error in any
latent costs the same. Then one quantisation step for all latents is optimal (reverse water-filling).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


def sensitivity_weight(fisher: Tensor, exponent: float = 0.7, floor: float = 0.02) -> Tensor:
    """Turn a Fisher matrix into the weight of the squared error.

    Args:
        fisher: [C, C] float64 mean outer product of gradients of sampled log-likelihoods.
        exponent: Power of the matrix; below 1 because the gradient at the exact cache underrates
            directions that matter once an error is there.
        floor: Share of the mean diagonal added to it.

    Returns:
        [C, C] float64, symmetric positive definite, of mean eigenvalue 1.
    """
    floored = fisher + floor * fisher.diagonal().mean() * torch.eye(len(fisher), dtype=fisher.dtype)
    values, vectors = torch.linalg.eigh(floored)
    powered = values.clamp(min=values[-1] * 1e-9) ** exponent
    weight: Tensor = (vectors * (powered / powered.mean())) @ vectors.T
    return weight


def weighted_klt(covariance: Tensor, weight: Tensor, rank: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return analysis [C, R], synthesis [R, C] and latent variances [R], largest first, float64.

    Args:
        covariance: [C, C] float64 of the residual to be coded.
        weight: [C, C] float64 positive definite.
        rank: Number of latents kept.
    """
    values, vectors = torch.linalg.eigh(weight)
    root = (vectors * values.sqrt()) @ vectors.T
    inverse_root = (vectors * values.rsqrt()) @ vectors.T
    variances, basis = torch.linalg.eigh(root @ covariance @ root)
    kept = slice(-min(rank, len(variances)), None)
    basis = basis[:, kept].flip(1)
    return root @ basis, basis.T @ inverse_root, variances[kept].flip(0).clamp(min=0)


class Transform(nn.Module):
    """Linear analysis and synthesis; `synthesise(analyse(x), 0)` is the projection on the kept latents.

    Attributes:
        analysis: [C, R] bfloat16.
        synthesis: [R, C] bfloat16.
    """

    analysis: Tensor
    synthesis: Tensor

    def __init__(self, channels: int, rank: int) -> None:
        super().__init__()
        self.register_buffer("analysis", torch.zeros(channels, rank, dtype=torch.bfloat16))
        self.register_buffer("synthesis", torch.zeros(rank, channels, dtype=torch.bfloat16))

    def analyse(self, channels: Tensor) -> Tensor:
        """Map channels [T, C] to latents [T, R], float32."""
        return channels @ self.analysis.float()

    def synthesise(self, latents: Tensor, expected: Tensor) -> Tensor:
        """Map the leading latents [T, r], r <= R, to channels [T, C] around the expected ones, float32."""
        return torch.addmm(expected, latents, self.synthesis[: latents.shape[1]].float())
