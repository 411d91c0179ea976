"""The QP offset of each token, from its id and its age, at no bits.

A step that is the same for all tokens is best only where the model cares about all of them alike. It does not: what
was said last, and tokens of some ids (delimiters, names, numbers), are looked at far more. Where a unit of squared
error in token t costs w_t, the least cost at given bits has steps proportional to w_t ** -1/2 (reverse water-filling).
So a token's step moves by an *offset*, an integer on the grid of QPs, looked up by id and age.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from tinyvae.quantize import LEVELS, LEVELS_PER_OCTAVE

AGES = 24
"""Classes of age: two to an octave, the last one open."""

PRIOR_ONLY = -4 * LEVELS
"""An offset below every level: nothing is coded, the token is the prior's and its neighbours' guess."""

LARGEST_OFFSET = 48

_EDGES = torch.tensor([(2 << (k // 2)) * (2 + k % 2) // 2 - 1 for k in range(AGES - 1)])
"""First age of classes 1, 2, ...: 1, 2, 3, 5, 7, 11, 15, 23, 31, ..."""


def age_classes(tokens: int) -> Tensor:
    """Return the class [N] int64 of each token's age, the number of tokens after it."""
    ages = torch.arange(tokens - 1, -1, -1)
    return torch.bucketize(ages, _EDGES, right=True)


def worn_offset(age_offset: Tensor, start: int, end: int) -> int:
    """Return how much coarser than their ages of today the newest tokens of a session may be kept for good.

    What is stored with a session's newest tokens stays as it is while they grow old, and tokens stored earlier were the
    newest once. As if the session had come in pieces of one length, token j of a piece is looked at in every age that
    it has in one of them, so its worth is the mean of these; 2 ** (2 a / octave) is the worth that an offset a is for.
    Only the mean over the piece is taken away: the slope within it still serves whoever goes on right now.

    Args:
        age_offset: [AGES] integer, see `fit_offsets`.
        start: Tokens before the piece, above 0.
        end: Tokens after it.

    Returns:
        Levels, 0 or below.
    """
    count = end - start
    own = age_offset.double()[age_classes(end).flip(0)]
    lives = -(-end // count)
    worth = torch.nn.functional.pad(torch.exp2(2 * own / LEVELS_PER_OCTAVE), (0, lives * count - end))
    times = lives - (torch.arange(count) >= count - (lives * count - end)).double()
    mean = LEVELS_PER_OCTAVE / 2 * torch.log2(worth.view(lives, count).sum(0) / times)
    return min(round(float((mean - own[:count]).mean())), 0)


def fit_offsets(
    sessions: Sequence[tuple[Tensor, Tensor, Tensor]], vocab_size: int, exponent: float, shrinkage: float = 64.0
) -> tuple[Tensor, Tensor]:
    """Fit the two tables of offsets to measured worths.

    The worth is modelled as a product, (share of the age) x (share of the id), by iterative proportional fitting
    (Deming and Stephan 1940): means of the worth itself, not of its logarithm, since cost is linear in it.

    Args:
        sessions: For each token ids [N] int64, classes of age [N] int64 and worths [N] float32: what a unit of squared
            error in each of its latents costs.
        vocab_size: V.
        exponent: Of the worth; 1 where the future is like what the worth was measured on, less as a hedge.
        shrinkage: Occurrences of average worth added to each token id.

    Returns:
        For ids [V] int8 and for ages [AGES] int8, in levels.
    """
    ids, ages = torch.cat([s[0] for s in sessions]), torch.cat([s[1] for s in sessions])
    worth = torch.cat([s[2] / s[2].mean().clamp(min=1e-30) for s in sessions]).double()
    of_id, of_age = torch.ones(vocab_size, dtype=torch.float64), torch.ones(AGES, dtype=torch.float64)
    for _ in range(8):
        of_age = _ratio(ages, worth, of_id[ids], AGES, 1.0)
        of_id = _ratio(ids, worth, of_age[ages], vocab_size, shrinkage)
    return _levels(of_id, exponent), _levels(_filled(of_age, ages), exponent)


def _ratio(index: Tensor, worth: Tensor, expected: Tensor, size: int, shrinkage: float) -> Tensor:
    """Return for each class its worth over what the other factor expects, drawn towards 1."""
    zeros = torch.zeros(size, dtype=torch.float64)
    found, foreseen = zeros.index_add(0, index, worth), zeros.index_add(0, index, expected)
    typical = shrinkage * expected.mean()
    return (found + typical) / (foreseen + typical)


def _filled(of_age: Tensor, ages: Tensor) -> Tensor:
    """Give ages that no session reached the share of the oldest that one did."""
    oldest = int(ages.max()) if len(ages) else 0
    return torch.where(torch.arange(AGES) <= oldest, of_age, of_age[oldest])


def _levels(share: Tensor, exponent: float) -> Tensor:
    octaves = 0.5 * exponent * torch.log2(share.clamp(min=1e-12))
    return (LEVELS_PER_OCTAVE * octaves).round().clamp(-LARGEST_OFFSET, LARGEST_OFFSET).to(torch.int8)
