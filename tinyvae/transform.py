"""Analysis and synthesis transform: the sensitivity-weighted Karhunen-Loeve transform.

Let e be the error of the channels and W the weight matrix (how much the model's output cares). The
transform diagonalises the residual's covariance in the metric of W, so that a unit of error in any
latent costs the same. Then one quantisation step for all latents is optimal (reverse water-filling).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from tinyvae.weights import RankedMatrix, StoredMatrix

SHARP_LATENTS = 64
"""Latents whose synthesis is stored in 8 bits where a codec does not say how many."""

SMOOTHED_LATENTS = 64
"""What an error costs is measured latent by latent and smoothed over as many neighbours on either side."""

EXACT_SIZE = 1024
"""Matrices up to this size are decomposed in double precision; larger ones in single, in half the time."""


def eigenvectors(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """Return eigenvalues [C], ascending, and eigenvectors [C, C] of a symmetric matrix, float64."""
    narrow = matrix if len(matrix) <= EXACT_SIZE else matrix.float()
    values, vectors = torch.linalg.eigh(narrow)
    return values.double(), vectors.double()


@dataclass(frozen=True, slots=True, eq=False)
class Metric:
    """The weight of a squared error: a positive definite matrix, by eigenvalues [C] and eigenvectors [C, C], float64.

    Decomposing a matrix is what costs, so it is done once for the matrix and its roots.
    """

    values: Tensor
    vectors: Tensor

    @classmethod
    def of(cls, matrix: Tensor) -> Metric:
        """Return the metric of a matrix [C, C]; eigenvalues below 1e-9 of the largest are lifted to that."""
        values, vectors = eigenvectors(matrix.double())
        return cls(values.clamp(min=float(values[-1]) * 1e-9), vectors)

    def __len__(self) -> int:
        """Return C."""
        return len(self.values)

    def scaled(self, factor: float) -> Metric:
        """Return it times a positive number."""
        return Metric(self.values * factor, self.vectors)

    def matrix(self) -> Tensor:
        """Return the matrix, [C, C] float64."""
        return (self.vectors * self.values) @ self.vectors.T

    def diagonal(self) -> Tensor:
        """Return the diagonal of the matrix, [C] float64."""
        return self.vectors.square() @ self.values

    def roots(self) -> tuple[Tensor, Tensor]:
        """Return the root of the matrix and the inverse of the root, both [C, C] float64."""
        vectors = self.vectors
        return (vectors * self.values.sqrt()) @ vectors.T, (vectors * self.values.rsqrt()) @ vectors.T


def sensitivity_weight(fisher: Tensor, exponent: float = 0.7, floor: float = 0.02, mean: float | None = None) -> Metric:
    """Turn a Fisher matrix into the weight of the squared error.

    Args:
        fisher: [C, C] float64 mean outer product of gradients of sampled log-likelihoods.
        exponent: Power of the matrix; below 1 because the gradient at the exact cache underrates
            directions that matter once an error is there.
        floor: Share of the mean diagonal added to it.
        mean: The mean diagonal over all groups of layers, where there are several: their weights are then in one unit.

    Returns:
        A metric of mean eigenvalue 1; without that scale where `mean` is given.
    """
    typical = float(fisher.diagonal().mean()) if mean is None else mean
    metric = Metric.of(fisher + floor * typical * torch.eye(len(fisher), dtype=fisher.dtype))
    powered = Metric(metric.values**exponent, metric.vectors)
    return powered if mean is not None else powered.scaled(1 / float(powered.values.mean()))


def weighted_klt(covariance: Tensor, metric: Metric, rank: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return analysis [C, R], synthesis [R, C] and latent variances [R], largest first, float64.

    Args:
        covariance: [C, C] float64 of the residual to be coded.
        metric: The weight of the squared error.
        rank: Number of latents kept.
    """
    root, inverse_root = metric.roots()
    variances, basis = eigenvectors(root @ covariance @ root)
    kept = slice(-min(rank, len(variances)), None)
    basis = basis[:, kept].flip(1)
    return root @ basis, basis.T @ inverse_root, variances[kept].flip(0).clamp(min=0)


def evened(synthesis: Tensor, variances: Tensor, fisher: Tensor, exponent: float) -> tuple[Tensor, Tensor]:
    """Scale latents so that a step costs the model about the same in each of them, and order them anew.

    The transform is found in a power of the Fisher matrix, and so are its units. A unit of error in latent j then costs
    c_j = (S F S')_jj, which still differs: on SmolLM2-135M by a factor of eight from the leading latents of the lower
    layers to the last ones of the higher. Units that go with c_j to half the exponent give the same steps a quality
    that takes a tenth of the bytes less at KL .004, and as many at KL .03.

    Args:
        synthesis: [R, C] float64.
        variances: [R] float64, of the latents.
        fisher: [C, C] float64, in a unit in which c_j is 1 on average.
        exponent: 0 leaves everything as it is, 1 is best for infinitesimal steps.

    Returns:
        Synthesis and variances, the widest latent first.
    """
    cost = ((synthesis @ fisher) * synthesis).sum(1).clamp(min=1e-12)
    scale = (0.5 * exponent * _smoothed(cost.log())).exp()
    wider = variances * scale.square()
    order = wider.argsort(descending=True, stable=True)
    return (synthesis / scale[:, None])[order], wider[order]


def _smoothed(values: Tensor) -> Tensor:
    """Return the mean of each value [R] and its neighbours, up to a quarter of its place on either side."""
    place = torch.arange(len(values))
    reach = (place // 4).clamp(max=SMOOTHED_LATENTS)
    sums = torch.nn.functional.pad(values.cumsum(0), (1, 0))
    start, end = place - reach, (place + reach + 1).clamp(max=len(values))
    return (sums[end] - sums[start]) / (end - start)


def block_metric(weight: Tensor, blocks: Sequence[int]) -> Tensor:
    """Return the diagonal blocks of a weight matrix, one under the other.

    Args:
        weight: [C, C] float64 positive definite.
        blocks: Sizes of the blocks, which add up to C.

    Returns:
        [C, largest block] float64; rows of smaller blocks end in zeros.
    """
    out, start = weight.new_zeros(len(weight), max(blocks)), 0
    for size in blocks:
        out[start : start + size, :size] = weight[start : start + size, start : start + size]
        start += size
    return out


def times_block_metric(rows: Tensor, metric: Tensor, blocks: Sequence[int]) -> Tensor:
    """Return rows [N, C] times the block-diagonal matrix of the symmetric parts of the blocks in `metric`."""
    if rows.requires_grad and len(set(blocks)) == 1:  # in a loop the gradient of each block is as large as the whole
        squares = metric.view(len(blocks), blocks[0], blocks[0])
        symmetric = (squares + squares.mT) / 2
        return (rows.view(len(rows), len(blocks), blocks[0]).transpose(0, 1) @ symmetric).transpose(0, 1).flatten(1)
    out, start = torch.empty_like(rows), 0
    for size in blocks:
        block = metric[start : start + size, :size]
        out[:, start : start + size] = rows[:, start : start + size] @ (block + block.T) / 2
        start += size
    return out


class Transform(nn.Module):
    """Linear analysis and synthesis; `synthesise(analyse(x), 0)` is the projection on the kept latents.

    Only the synthesis is stored. The analysis is its weighted least-squares inverse: the latents that come nearest to
    the channels in a metric. The metric of the whole transform would be as large as the channels squared; its diagonal
    blocks, one a head, are enough to say which part of the error to leave.

    Args:
        blocks: Sizes of the metric's blocks; they add up to the channels.
        rank: Latents.
        sharp: Of these, the first whose synthesis is stored in 8 bits; the others have 4, which lose 1.2 % of what
            they stand for. On SmolLM2-135M 64 sharp latents of 1,334 left a floor of .0015 nats in the lower layers,
            320 one of .0008, and all of them .0006.

    Attributes:
        synthesis: [R, C], the widest latent first.
        metric: [C, largest block]; in few bits the analysis would go astray.
        analysis_steps: While the synthesis is trained the analysis is made anew after so many steps: it costs more than
            all else of a step, and moves little in one.
    """

    def __init__(self, blocks: Sequence[int], rank: int, sharp: int = SHARP_LATENTS) -> None:
        super().__init__()
        self.blocks = tuple(blocks)
        self.synthesis = RankedMatrix(rank, sum(blocks), sharp)
        self.metric = StoredMatrix(sum(blocks), max(blocks), 8)
        self._analysis: Tensor | None = None
        self._versions: tuple[int, ...] = ()
        self.analysis_steps, self._steps_old = 1, 0

    @property
    def analysis(self) -> Tensor:
        """[C, R] float32, made from the synthesis once (in training after some steps).

        The encoder needs it, and a predictor its leading columns.
        """
        versions = tuple(master._version for master in self.synthesis.parameters())  # empty outside training
        if versions != self._versions:
            self._versions, self._steps_old = versions, self._steps_old + 1
        if self._analysis is None or self._steps_old >= self.analysis_steps:
            self._analysis, self._steps_old = self._inverse(self.synthesis.dense.detach()), 0
        return self._analysis

    @property
    def channel_weights(self) -> Tensor:
        """[C] float32, root of the metric's diagonal: what an error in a channel costs, apart from all others."""
        column = torch.cat([torch.arange(size) for size in self.blocks])
        diagonal = self.metric.dense.gather(1, column[:, None])[:, 0]
        return diagonal.clamp(min=0).sqrt()

    def _inverse(self, synthesis: Tensor) -> Tensor:
        wide, metric = synthesis.double(), self.metric.dense.double()
        weighted = times_block_metric(wide, metric, self.blocks)
        gram = weighted @ wide.T
        floor = 1e-9 * gram.diagonal().mean().clamp(min=1e-30) * torch.eye(len(gram), dtype=gram.dtype)
        solution: Tensor = torch.linalg.solve(gram + floor, weighted)
        return solution.T.float().contiguous()

    @torch.no_grad()
    def store(self, synthesis: Tensor, metric: Tensor) -> None:
        """Keep a synthesis [R, C] and the metric's blocks [C, largest block]."""
        self.synthesis.store(synthesis)
        self.metric.store(metric)
        self._analysis = None

    def begin_training(self) -> None:
        """Give the synthesis its float32 parameters."""
        self.synthesis.begin_training()

    def end_training(self) -> None:
        """Keep the trained synthesis."""
        self.synthesis.end_training()
        self._analysis = None

    def _load_from_state_dict(self, *arguments: object) -> None:
        self._analysis = None
        super()._load_from_state_dict(*arguments)

    def analyse(self, channels: Tensor) -> Tensor:
        """Map channels [T, C] to latents [T, R], float32."""
        return channels @ self.analysis

    def synthesise(self, latents: Tensor, expected: Tensor) -> Tensor:
        """Map the leading latents [T, r], r <= R, to channels [T, C] around the expected ones, float32."""
        return torch.addmm(expected, latents, self.synthesis.dense[: latents.shape[1]])
