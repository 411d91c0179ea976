"""Run a model over tokens of a session, at the positions that they have in it, whatever its cache still holds."""

from __future__ import annotations

from torch import Tensor

from kvcompress.hf.call import CACHE_NAMES, cache_name, call, held_tokens, open_mask, take_logits
from kvcompress.hf.positions import model_positions
from kvcompress.hf.types import Cache, CausalLM

__all__ = ["CACHE_NAMES", "cache_name", "held_tokens", "open_mask", "run", "take_logits"]


def run(
    model: CausalLM,
    input_ids: Tensor,
    cache: Cache | None = None,
    *,
    position_ids: Tensor | None = None,
    attention_mask: Tensor | None = None,
    last_only: bool = False,
) -> Tensor:
    """Run a model over tokens and advance its cache in place. Whether gradients are kept is the caller's to say.

    Args:
        model: A causal language model.
        input_ids: [B, T] int64 on any device, T >= 1.
        cache: The model's cache of batch size B; None runs it without one.
        position_ids: [B, T] or [1, T] int64, the tokens' positions in the session, counted from 0; None leaves them to
            the model, which counts cache entries. Where that count is the same, it is left to the model anyway: so a
            whole cache goes on as without a break in every family, however it counts.
        attention_mask: [B, held + T] int64; None leaves it to the model. `open_mask` hides nothing.
        last_only: Spare the logits of all tokens but the last, where the model can.

    Returns:
        Logits [B, T, V], or [B, 1, V] with `last_only` where the model can: the last row is always the last token's.

    Raises:
        InputError: The model takes no cache, did not put the tokens into it, heeds no positions though entries are
            missing, or its code fails over the tokens.
    """
    if position_ids is not None:
        position_ids = model_positions(model, position_ids, cache, attention_mask)
    return call(model, input_ids, cache, position_ids=position_ids, attention_mask=attention_mask, last_only=last_only)
