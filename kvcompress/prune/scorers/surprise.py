"""Keep the tokens that the model did not expect; it can predict the others again.

Self-information as in "Compressing Context to Enhance Inference Efficiency of Large Language Models" (Li et al.,
Selective Context, arXiv 2310.06201), which drops tokens from prompts; here it ranks cache entries. Cost: as much as one
prefill. Evidence: surprise.
"""

from __future__ import annotations

from torch import Tensor

from kvcompress.prune.evidence.record import SURPRISE, Evidence


class Surprise:
    """-log p of each token."""

    name = "surprise"
    needs: tuple[str, ...] = (SURPRISE,)

    def score(self, evidence: Evidence) -> Tensor:
        """Return the surprise of each token in nats."""
        return evidence.require_surprise()


SCORER = Surprise()
