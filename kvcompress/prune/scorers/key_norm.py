"""Keep the tokens whose keys have a small norm: they receive the most attention.

After "A Simple and Effective L2 Norm-Based Strategy for KV Cache Compression" (Devoto et al., arXiv 2406.11430). There
each head ranks its own tokens; here a token has one score, the mean over layers of the standardised mean norm over
heads.
Cost: one pass over the keys. Evidence: none.
"""

from __future__ import annotations

from torch import Tensor

from kvcompress.prune.evidence.record import Evidence, over_layers, standardised
from kvcompress.snapshot import KVSnapshot


class KeyNorm:
    """The shorter the key, the more it is worth."""

    name = "key_norm"
    needs: tuple[str, ...] = ()

    def score(self, evidence: Evidence) -> Tensor:
        """Return minus the norm of each token's keys."""
        return over_layers(evidence.snapshot, [standardised(score) for score in layer_scores(evidence.snapshot)])


def layer_scores(snapshot: KVSnapshot) -> list[Tensor]:
    """Return for each layer [T] float32: minus the mean norm over heads of each key, which RoPE does not change."""
    return [-layer.keys.float().norm(dim=2).mean(0) for layer in snapshot.layers]


SCORER = KeyNorm()
