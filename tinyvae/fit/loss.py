"""Training losses besides bits: squared error weighted in bits, and the divergence of the model's predictions.

With quantisation steps D a finer step costs one bit a latent that is coded and divides the divergence by four. So bits
and the logarithm of the divergence trade at a fixed rate at every step, and one loss serves all rates:

    bits + (coded latents / 2) log2(divergence)

Where both move along one rate-distortion curve the loss stays as it is; it falls only when the curve itself does.
"""

from __future__ import annotations

import math

from torch import Tensor


def error_bits(squares: Tensor, steps: Tensor) -> Tensor:
    """Return what squared error that no latent can mend is worth, in bits a token, [T] float32.

    Where latents are coded each carries the squared error step**2 / 12, and taking a part of it away costs half the
    log2: that is the price of squared error at these steps.

    Args:
        squares: [T] float32 squared error of each token, in the metric in which the latents have unit weight.
        steps: [T, 1] float32 quantisation steps.
    """
    return 6.0 / math.log(2) * squares / steps[:, 0].square()


def divergence_nats(exact: Tensor, decoded: Tensor) -> Tensor:
    """Return the mean KL(exact || decoded) in nats of next-token logits [T, V], differentiable in the decoded ones."""
    log_p, log_q = exact.float().log_softmax(-1), decoded.float().log_softmax(-1)
    return (log_p.exp() * (log_p - log_q)).sum(-1).mean()


def trade(bits: Tensor, octave_bits: Tensor, divergence: Tensor, usual_divergence: Tensor) -> Tensor:
    """Return bits plus the worth in bits of the divergence's change, see the module.

    Args:
        bits: Mean bits of a token.
        octave_bits: Mean bits that halving the step would add: the number of coded latents, where these are wide.
        divergence: Mean KL, in nats.
        usual_divergence: What it usually is at these steps: the slope of the logarithm is taken there, so that one
            session of tiny divergence does not outweigh the others.
    """
    worth = 0.5 * octave_bits.detach() / math.log(2)
    return bits + worth * divergence / usual_divergence.clamp(min=1e-12)
