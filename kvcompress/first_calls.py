"""Call torch's vectorised functions once in one thread, before any two threads can be the first to call one.

Intel's MKL, which torch uses on x86, looks for a function's kernel when it is first called. Where two threads make that
call together, one of them may take a kernel of low accuracy for its half of the tensor, once: cosines of positions then
are wrong by 1e-4, in one of some thousand processes, and a restored key with them (pytorch/pytorch#188792).
"""

from __future__ import annotations

import torch

FUNCTIONS = (
    *("acos", "asin", "atan", "cos", "cosh", "erf", "erfc", "erfinv", "exp", "expm1", "lgamma", "log", "log10"),
    *("log1p", "log2", "sin", "sinh", "sqrt", "tan", "tanh", "trunc"),
)
"""What torch hands to MKL: the list of `aten/src/ATen/cpu/vml.h`, and what went with it in earlier releases."""


def settle_kernels() -> None:
    """Make the first call of each function, in float32 and float64."""
    for dtype in (torch.float32, torch.float64):
        one = torch.full((1,), 0.5, dtype=dtype, device="cpu")
        for name in FUNCTIONS:
            getattr(torch, name)(one)
