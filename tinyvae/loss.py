"""What training minimises: bits and divergence, smooth stand-ins for what the entropy coder and the model will say.

With quantisation steps D a finer step costs one bit a latent that is coded and divides the divergence by four. So bits
and the logarithm of the divergence trade at a fixed rate at every step, and one loss serves all rates:

    bits + (coded latents / 2) log2(divergence)

Where both move along one rate-distortion curve the loss stays as it is; it falls only when the curve itself does.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

SHARPNESS = 1.7
"""Where the stand-in for bits turns up, in inverse steps: a latent of a quarter step then costs an eighth of a bit, as
the tables charge a Gaussian of that width."""


def rate_bits(innovations: Tensor, steps: Tensor) -> tuple[Tensor, Tensor]:
    """Return smooth bits and smooth count of coded latents of each token, both [T] float32.

    Half the log2 of one plus the square in steps: log2 of the magnitude where it is large, its square where it is
    small, as in the soft threshold of reverse water-filling. What it leaves out is constant in the innovations.

    Args:
        innovations: [T, R] float32, what prior and prediction leave.
        steps: [T, 1] float32 quantisation steps.
    """
    power = (SHARPNESS * innovations / steps).square()
    return 0.5 * torch.log2(1 + power).sum(1), (power.detach() / (1 + power.detach())).sum(1)


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


def trade(bits: Tensor, coded: Tensor, divergence: Tensor, usual_divergence: Tensor) -> Tensor:
    """Return bits plus the worth in bits of the divergence's change, see the module.

    Args:
        bits: [T] smooth bits of each token.
        coded: [T] smooth count of coded latents.
        divergence: Mean KL, in nats.
        usual_divergence: What it usually is at these steps: the slope of the logarithm is taken there, so that one
            session of tiny divergence does not outweigh the others.
    """
    worth = 0.5 * coded.mean() / math.log(2)
    return bits.mean() + worth * divergence / usual_divergence.clamp(min=1e-12)
