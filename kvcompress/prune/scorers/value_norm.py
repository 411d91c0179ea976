"""Keep the tokens whose values have a large norm: they add most to the output.

The value's norm is the second factor of "Attention Score is not All You Need for Token Importance Indicator in KV Cache
Reduction: Value Also Matters" (Guo et al., arXiv 2406.12335); alone it is a control for that factor. Cost: one pass
over the values. Evidence: none.
"""

from __future__ import annotations

from torch import Tensor

from kvcompress.prune.evidence.record import Evidence, over_layers, standardised


class ValueNorm:
    """The longer the value, the more it is worth."""

    name = "value_norm"
    needs: tuple[str, ...] = ()

    def score(self, evidence: Evidence) -> Tensor:
        """Return the norm of each token's values, mean over heads, standardised and averaged over layers."""
        layers = evidence.snapshot.layers
        return over_layers(
            evidence.snapshot, [standardised(layer.values.float().norm(dim=2).mean(0)) for layer in layers]
        )


SCORER = ValueNorm()
