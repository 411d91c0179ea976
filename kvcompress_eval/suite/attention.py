"""How far the output of each layer's attention moves when the cache is a decoded one."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from kvcompress.errors import InputError
from kvcompress.metrics.fidelity import continuation_logits


def attention_modules(model: nn.Module) -> list[nn.Module]:
    """Return the attention module of each layer, in order of layers.

    Every decoder of transformers numbers them by `layer_idx`; the outermost module with a number is the attention.

    Raises:
        InputError: There is none.
    """
    found: dict[int, nn.Module] = {}
    for name, module in model.named_modules():
        index = getattr(module, "layer_idx", None)
        called = f"{name.rsplit('.', 1)[-1]} {type(module).__name__}".lower()
        if isinstance(index, int) and "att" in called:
            found.setdefault(index, module)
    if not found:
        raise InputError(f"no attention modules found in a {type(model).__name__}")
    return [found[index] for index in sorted(found)]


@contextmanager
def _recorded(modules: list[nn.Module]) -> Iterator[list[list[Tensor]]]:
    outputs: list[list[Tensor]] = [[] for _ in modules]

    def keep(slot: list[Tensor]) -> Any:
        return lambda module, inputs, output: slot.append((output[0] if isinstance(output, tuple) else output).detach())

    handles = [module.register_forward_hook(keep(slot)) for module, slot in zip(modules, outputs, strict=True)]
    try:
        yield outputs
    finally:
        for handle in handles:
            handle.remove()


def attention_errors(
    model: Any, exact_cache: Any, decoded_cache: Any, continuation: Tensor, first_position: int
) -> list[float]:
    """Return for each layer ||decoded - exact|| / ||exact|| of the attention output over the continuation.

    The two runs feed the same tokens; below the first layer their inputs differ as well, so errors of earlier layers
    are part of the figure, as they are of the damage.

    Args:
        model: The model of both caches.
        exact_cache: The cache as captured; not changed.
        decoded_cache: The cache as decoded; not changed.
        continuation: [T] int64.
        first_position: Position of its first token.
    """
    modules, runs = attention_modules(model), []
    for cache in (exact_cache, decoded_cache):
        with _recorded(modules) as outputs:
            continuation_logits(model, cache, continuation, first_position)
        runs.append([torch.cat([part.flatten(0, -2) for part in slot]).float() for slot in outputs])
    return [float((other - exact).norm() / exact.norm().clamp_min(1e-30)) for exact, other in zip(*runs, strict=True)]
