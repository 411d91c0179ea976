"""Load models only if a file needs them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

    from kvcompress.hf.partial_prefill import Recompute
    from kvcompress.snapshot import LayerKV, Origin


def recompute_by(model: str | None) -> Recompute | None:
    """Return what recomputes a file's first layers with a model by name, loaded when it is first asked.

    Args:
        model: Model directory or bundled name; None where the user named none.
    """
    if model is None:
        return None
    loaded: dict[str, Recompute] = {}

    def recompute(token_ids: Tensor, layers: int, origin: Origin) -> Sequence[LayerKV]:
        if origin.dtype not in loaded:
            from kvcompress.hf import load_model, recompute_with

            loaded[origin.dtype] = recompute_with(*load_model(model, origin.dtype))
        return loaded[origin.dtype](token_ids, layers, origin)

    return recompute
