"""Keep the tokens whose cache the output depends on: squared gradients of sampled continuations.

An error e in a token's cache moves the next-token distribution by about e' F e / 2 nats, F being the Fisher
information of the predictions (Amari 1998; for pruning, Optimal Brain Damage of LeCun et al. 1989 with the expected
Hessian). The model goes on from the exact cache on its own, tokens are drawn from each of its predictions, and a token
is worth the energy of the gradient of their log-likelihood with respect to its latents: the trace of its block of F.
Cost: sampling a few continuations and one backward pass each. Evidence: sensitivity.
"""

from __future__ import annotations

from torch import Tensor

from kvcompress.prune.evidence.record import SENSITIVITY, Evidence


class OutputSensitivity:
    """Energy of the gradient."""

    name = "output_sensitivity"
    needs: tuple[str, ...] = (SENSITIVITY,)

    def score(self, evidence: Evidence) -> Tensor:
        """Return the squared gradient with respect to each token's cache."""
        return evidence.require_sensitivity()


SCORER = OutputSensitivity()
