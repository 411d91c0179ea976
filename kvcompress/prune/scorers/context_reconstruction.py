"""Keep the tokens that the model attends to when it reads the session again: KVzip.

After "KVzip: Query-Agnostic KV Cache Compression with Context Reconstruction" (Kim et al., arXiv 2505.23416). The model
goes on from its cache with the session's own text, piece by piece; a token is worth the highest attention that any of
these queries pays to it. What differs: there is no "repeat the previous context" prompt, for small models were not
trained to obey one, and a token has one score, the mean over layers of the highest head. Cost: as much as prefilling
twice the session. Evidence: reconstruction.
"""

from __future__ import annotations

from torch import Tensor

from kvcompress.prune.evidence.record import RECONSTRUCTION, Evidence


class ContextReconstruction:
    """Attention while the session is read again."""

    name = "context_reconstruction"
    needs: tuple[str, ...] = (RECONSTRUCTION,)

    def score(self, evidence: Evidence) -> Tensor:
        """Return the highest attention over queries and heads, mean over layers."""
        layers = evidence.require_reconstruction()
        total = layers[0].float().amax(0)
        for heads in layers[1:]:
            total = total + heads.float().amax(0)
        return total / len(layers)


SCORER = ContextReconstruction()
