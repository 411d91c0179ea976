"""A weighted sum of recency, similarity to the current question, and novelty (concert heuristic).

Score (a r + b s + c n) / (a + b + c) with recency r = exp(-age / tau), similarity s of the token's keys to the latest
queries and novelty n = 1 - (highest cosine to an earlier token's keys), after the ranking rule of the Persistent Memory
Logic Loop; weights .35, .50 and .08. A token whose similarity lies below the floor of .15 scores 0. What differs: that
rule ranks stored vectors by the similarity they had when they were stored; here it is to the queries of now. Ages are
counted in tokens, or in seconds where the evidence has a clock. Cost: one run over the latest queries, and all cosines
between keys.
Evidence: queries.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from kvcompress.errors import InputError
from kvcompress.prune.evidence.key_similarity import novelty, similarity
from kvcompress.prune.evidence.record import QUERIES, Evidence


@dataclass(frozen=True, slots=True)
class Concert:
    """Weighted recency, similarity and novelty.

    Attributes:
        recency: Weight a.
        similarity: Weight b.
        novelty: Weight c.
        floor: Least similarity that counts.
        tau_tokens: Age at which recency has fallen to 1/e, by tokens.
        tau_seconds: The same by the clock: six hours.
    """

    recency: float = 0.35
    similarity: float = 0.50
    novelty: float = 0.08
    floor: float = 0.15
    tau_tokens: float = 512.0
    tau_seconds: float = 21_600.0
    name: str = "concert"
    needs: tuple[str, ...] = (QUERIES,)

    def __post_init__(self) -> None:
        """Refuse weights that cannot be normalised."""
        weights = (self.recency, self.similarity, self.novelty)
        if min(weights) < 0 or sum(weights) <= 0 or self.tau_tokens <= 0 or self.tau_seconds <= 0:
            raise InputError("weights of the concert must not be negative or all zero, and tau must be positive")

    def parts(self, evidence: Evidence) -> Mapping[str, Tensor]:
        """Return recency, similarity and novelty, each in [0, 1]."""
        return {
            "recency": self.recencies(evidence),
            "similarity": similarity(evidence),
            "novelty": novelty(evidence),
        }

    def score(self, evidence: Evidence) -> Tensor:
        """Return the weighted mean of the parts, 0 below the floor."""
        parts = self.parts(evidence)
        total = self.recency * parts["recency"] + self.similarity * parts["similarity"]
        total = total + self.novelty * parts["novelty"]
        score = total / (self.recency + self.similarity + self.novelty)
        return torch.where(parts["similarity"] < self.floor, 0.0, score)

    def recencies(self, evidence: Evidence) -> Tensor:
        """Return exp(-age / tau) [N]; an age in the future counts as none."""
        if evidence.ages_seconds is not None:
            return torch.exp(-evidence.ages_seconds.float().clamp(min=0) / self.tau_seconds)
        ages = torch.arange(evidence.tokens - 1, -1, -1).float()
        return torch.exp(-ages / self.tau_tokens)


SCORER = Concert()
