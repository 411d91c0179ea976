"""Keep the tokens whose keys differ from the average key: KeyDiff.

After "KeyDiff: Key Similarity-Based KV Cache Eviction for Long-Context LLM Inference in Resource-Constrained
Environments" (Park et al., arXiv 2504.15364). There each head ranks by minus the cosine to the mean of its normalised
keys; here a token has one score, the mean over heads and layers. Keys are as cached, RoPE applied, as in the paper.
Cost: one pass over the keys. Evidence: none.
"""

from __future__ import annotations

import torch
from torch import Tensor

from kvcompress.prune.evidence.record import Evidence, over_layers


class KeyDifference:
    """The less a key is like the average key, the more it is worth."""

    name = "key_difference"
    needs: tuple[str, ...] = ()

    def score(self, evidence: Evidence) -> Tensor:
        """Return minus the cosine of each key and its head's mean direction."""
        scores = []
        for layer in evidence.snapshot.layers:
            units = torch.nn.functional.normalize(layer.keys.float(), dim=2)
            anchor = units.mean(1, keepdim=True)
            scores.append(-torch.nn.functional.cosine_similarity(units, anchor, dim=2).mean(0))
        return over_layers(evidence.snapshot, scores)


SCORER = KeyDifference()
