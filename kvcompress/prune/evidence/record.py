"""Evidence: the input of scorers, collected once per session.

Everything but the snapshot is optional; a scorer names what it needs in `needs`, and
`kvcompress.prune.evidence.collect.collect` brings it. Where layers are concerned there is one entry a layer, over all N
tokens of the session: what a layer no longer holds counts nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor

from kvcompress.errors import InputError
from kvcompress.hf.rope import rope_of
from kvcompress.snapshot import KVSnapshot

_Found = TypeVar("_Found")

SURPRISE, WINDOW_ATTENTION, QUERIES = "surprise", "window_attention", "queries"
RECONSTRUCTION, SENSITIVITY = "reconstruction", "sensitivity"
KINDS = (SURPRISE, WINDOW_ATTENTION, QUERIES, RECONSTRUCTION, SENSITIVITY)
"""What takes a run of the model, in the order of its cost."""


@dataclass(frozen=True, slots=True, eq=False)
class QueryStatistics:
    """Moments of one layer's queries, RoPE undone.

    Attributes:
        mean: [Hq, D] float32.
        covariance: [Hq, D, D] float32.
        scaling: What products of queries and keys are multiplied by.
    """

    mean: Tensor
    covariance: Tensor
    scaling: float

    @property
    def heads(self) -> int:
        """Number of query heads."""
        return len(self.mean)


@dataclass(frozen=True, slots=True, eq=False)
class Evidence:
    """What is known of a session's tokens.

    Attributes:
        snapshot: The exact cache.
        surprise: [N] float32, -log p of each token given those before it, in nats; the first is 0.
        window_attention: For each layer [Hq, N] float32, attention that the last queries pay to each token, summed.
        queries: For each layer the moments of the latest queries.
        reconstruction: For each layer [Hq, N] float32, the most that any query pays while the session is read again.
        sensitivity: [N] float32, squared gradient of sampled continuations with respect to the token's cache.
        ages_seconds: [N] float32, how long ago each token was said, or None where no clock ran.
    """

    snapshot: KVSnapshot
    surprise: Tensor | None = None
    window_attention: tuple[Tensor, ...] | None = None
    queries: tuple[QueryStatistics, ...] | None = None
    reconstruction: tuple[Tensor, ...] | None = None
    sensitivity: Tensor | None = None
    ages_seconds: Tensor | None = None

    @property
    def tokens(self) -> int:
        """Number of tokens of the session, N."""
        return self.snapshot.tokens

    @property
    def kinds(self) -> tuple[str, ...]:
        """What was collected, of `KINDS`."""
        return tuple(kind for kind in KINDS if getattr(self, kind) is not None)

    def require_surprise(self) -> Tensor:
        """Return the surprise, raising `InputError` where it was not collected."""
        return _present(self.surprise, SURPRISE)

    def require_window_attention(self) -> tuple[Tensor, ...]:
        """Return the attention of the last queries, raising `InputError` where it was not collected."""
        return _present(self.window_attention, WINDOW_ATTENTION)

    def require_queries(self) -> tuple[QueryStatistics, ...]:
        """Return the moments of queries, raising `InputError` where they were not collected."""
        return _present(self.queries, QUERIES)

    def require_reconstruction(self) -> tuple[Tensor, ...]:
        """Return the attention of reading again, raising `InputError` where it was not collected."""
        return _present(self.reconstruction, RECONSTRUCTION)

    def require_sensitivity(self) -> Tensor:
        """Return the squared gradients, raising `InputError` where they were not collected."""
        return _present(self.sensitivity, SENSITIVITY)


def _present(found: _Found | None, name: str) -> _Found:
    if found is None:
        raise InputError(f"the evidence {name!r} was not collected", "Collect it with prune.evidence.collect")
    return found


def plain_keys(snapshot: KVSnapshot) -> list[Tensor]:
    """Return for each layer its keys [H, T, D] float32 without RoPE, where the layer has it."""
    rope = rope_of(snapshot.origin)
    return [rope.undo(index, layer.keys, layer.positions).float() for index, layer in enumerate(snapshot.layers)]


def standardised(score: Tensor) -> Tensor:
    """Return a layer's score [T] with mean 0 and deviation 1, so that layers can be averaged; 0 where all are alike."""
    score = score.float()
    if score.numel() < 2:
        return torch.zeros_like(score)
    deviation = score.std()
    return (score - score.mean()) / deviation if deviation > 0 else torch.zeros_like(score)


def over_layers(snapshot: KVSnapshot, scores: Sequence[Tensor]) -> Tensor:
    """Return the mean over layers of scores of the tokens that each holds.

    Args:
        snapshot: Its layers' positions say which tokens the scores are of.
        scores: For each layer [T] float.

    Returns:
        [N] float32; a token that a layer does not hold has that layer's lowest score.
    """
    total = torch.zeros(snapshot.tokens, dtype=torch.float32)
    for layer, score in zip(snapshot.layers, scores, strict=True):
        if score.numel():
            spread = torch.full((snapshot.tokens,), float(score.min()), dtype=torch.float32)
            spread[layer.positions] = score.float()
            total += spread / len(scores)
    return total


def ranks(score: Tensor) -> Tensor:
    """Return each token's rank [N] float32 in [0, 1]: the share of tokens of less score, ties in the middle."""
    ordered = score.sort().values
    below = torch.searchsorted(ordered, score.contiguous())
    upto = torch.searchsorted(ordered, score.contiguous(), right=True)
    return (below + upto - 1).float() / (2 * max(len(score) - 1, 1))
