"""A control that ranks tokens at random.

Every scorer must beat it. The numbers depend on the tokens alone, so that the same session always gets the same ones.
Cost: none. Evidence: none.
"""

from __future__ import annotations

import hashlib

import torch
from torch import Tensor

from kvcompress.prune.evidence.record import Evidence


class Random:
    """Uniform numbers, seeded by the session's tokens."""

    name = "random"
    needs: tuple[str, ...] = ()

    def score(self, evidence: Evidence) -> Tensor:
        """Return a number from 0 to 1 for each token."""
        digest = hashlib.sha256(evidence.snapshot.token_ids.numpy().astype("<i8").tobytes()).digest()
        generator = torch.Generator().manual_seed(int.from_bytes(digest[:7], "little"))
        return torch.rand(evidence.tokens, generator=generator, dtype=torch.float32)


SCORER = Random()
