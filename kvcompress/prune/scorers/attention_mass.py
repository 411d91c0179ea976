"""Keep the tokens that the newest queries attend to: SnapKV.

After "SnapKV: LLM Knows What You are Looking for Before Generation" (Li et al., arXiv 2404.14469). The last 32 tokens
are the observation window: their attention is summed over the window and smoothed along the tokens by average pooling
of kernel 7; the window itself comes first. What differs: a layer, or the mean over layers, chooses, not a head. Cost:
the model runs over the last 32 tokens. Evidence: window_attention.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import avg_pool1d

from kvcompress.prune.evidence.record import WINDOW_ATTENTION, Evidence

WINDOW_TOKENS = 32
POOLING_TOKENS = 7


class AttentionMass:
    """Attention mass of the last queries."""

    name = "attention_mass"
    needs: tuple[str, ...] = (WINDOW_ATTENTION,)

    def score(self, evidence: Evidence) -> Tensor:
        """Return the pooled mass, mean over layers; the window's tokens have more than any other, the newest most."""
        masses = evidence.require_window_attention()
        total = torch.stack([pooled(mass.double().mean(0)) for mass in masses]).mean(0)
        window = min(WINDOW_TOKENS, evidence.tokens)
        top = float(total.max()) if evidence.tokens else 0.0
        total[evidence.tokens - window :] = top * (1 + torch.arange(1, window + 1) / WINDOW_TOKENS)
        return total


def pooled(mass: Tensor) -> Tensor:
    """Return attention mass [N] float64, smoothed along the tokens before the observation window."""
    early = len(mass) - WINDOW_TOKENS
    out = mass.clone()
    if early > 0:
        out[:early] = avg_pool1d(mass[None, :early], POOLING_TOKENS, 1, POOLING_TOKENS // 2)[0]
    return out


SCORER = AttentionMass()
