"""Tiers of tokens, mixed at random as a plan mixes them: what is trained so is not at a loss when a plan prunes.

A plan (`kvcompress.prune`) stores some tokens coarser, leaves others to the prior, and drops others from memory. A
codec that was only trained on one tier for all has never seen a neighbour that says little.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from tinyvae.offsets import PRIOR_ONLY
from tinyvae.quantize import LEVELS_PER_OCTAVE

COARSER = (0, 1, 2, 4)
"""Octaves that the tiers of coded tokens lie below the session's QP."""

CODED_SHARE, PRIOR_SHARE = 0.6, 0.25
"""Shares of tokens that are coded, and that are left to the prior; the others are dropped."""

SPAN_TOKENS = 8
"""Tokens come in spans of about this length, as words and sentences do."""

KEPT_FIRST, KEPT_LAST = 4, 16
"""At both ends all tokens are coded at the session's QP."""


@dataclass(frozen=True, slots=True, eq=False)
class Tiers:
    """How each token of a session is treated.

    Attributes:
        offsets: [N] int32, added to the QP of each token.
        kept: [N] bool, tokens that stay in the cache.
    """

    offsets: Tensor
    kept: Tensor


def mixed_tiers(tokens: int, chance: torch.Generator) -> Tiers:
    """Draw tiers for a session of N tokens."""
    spans = -(-tokens // SPAN_TOKENS)
    choices = torch.tensor([-octaves * LEVELS_PER_OCTAVE for octaves in COARSER], dtype=torch.int32)
    coarser = choices[torch.randint(len(choices), (spans,), generator=chance)]
    fate = torch.rand(spans, generator=chance)
    offsets = torch.where(fate < CODED_SHARE, coarser, torch.full_like(coarser, PRIOR_ONLY))
    kept = fate < CODED_SHARE + PRIOR_SHARE
    offsets, kept = (part.repeat_interleave(SPAN_TOKENS)[:tokens].clone() for part in (offsets, kept))
    for end in (slice(0, KEPT_FIRST), slice(max(0, tokens - KEPT_LAST), tokens)):
        offsets[end], kept[end] = 0, True
    return Tiers(offsets, kept)
