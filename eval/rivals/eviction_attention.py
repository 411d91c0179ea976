"""Keep the tokens that the newest queries attend to: SnapKV.

After "SnapKV: LLM Knows What You are Looking for Before Generation" (Li et al., arXiv 2404.14469). The last 32 tokens
are the observation window: their attention is summed over the window, smoothed along the tokens by average pooling of
kernel 7, and the window itself is always kept. What differs: a layer, not a head, chooses, by the mean over heads; and
where fewer than 64 tokens are kept the window fills half of them at most, for otherwise the scores would have no say.
"""

from __future__ import annotations

import copy
import dataclasses
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import avg_pool1d

from eval.rivals.eviction import points
from eval.rivals.protocol import Calibration, Rival
from kvcompress.errors import InputError
from kvcompress.hf import fingerprint, restore
from kvcompress.snapshot import KVSnapshot, LayerKV

WINDOW_TOKENS = 32
POOLING_TOKENS = 7


class WindowAttention:
    """Attention mass of the last queries.

    Args:
        model: The model that made the caches, in evaluation mode.
        tokenizer: Its tokenizer, or None.
    """

    name = "attention-mass"

    def __init__(self, model: Any, tokenizer: Any = None) -> None:
        self.model, self.tokenizer = model, tokenizer
        self._observer: Any = None

    def score(self, snapshot: KVSnapshot, kept_tokens: int) -> list[Tensor]:
        """Return the pooled attention of the observation window, infinity for its newest tokens.

        Raises:
            MismatchError: The snapshot comes from another model.
            InputError: The snapshot is pruned, or the model does not show its attention.
        """
        snapshot.origin.fingerprint.require_match(fingerprint(self.model, self.tokenizer))
        tokens = snapshot.tokens
        if any(len(layer.positions) != tokens for layer in snapshot.layers):
            raise InputError("attention cannot be observed on a pruned cache", "Give a cache that holds every token")
        early = tokens - WINDOW_TOKENS
        if early < 1:
            return [layer.positions.double() for layer in snapshot.layers]
        certain = min(WINDOW_TOKENS, (kept_tokens + 1) // 2)
        scores = []
        for probabilities in self.attention(snapshot, early):
            mass = probabilities.double().mean(0).sum(0)
            mass[:early] = avg_pool1d(mass[None, :early], POOLING_TOKENS, 1, POOLING_TOKENS // 2)[0]
            mass[tokens - certain :] = torch.inf
            scores.append(mass.cpu())
        return scores

    @torch.no_grad()
    def attention(self, snapshot: KVSnapshot, early: int) -> list[Tensor]:
        """Run the tokens from `early` on against the cache before them.

        Returns:
            For each layer the attention probabilities [heads, T - early, T].
        """
        layers = tuple(
            LayerKV(layer.keys[:, :early], layer.values[:, :early], layer.positions[:early])
            for layer in snapshot.layers
        )
        origin = dataclasses.replace(snapshot.origin, next_position=early)
        cache = restore(KVSnapshot(layers, snapshot.token_ids[:early], origin), self.model, check_fingerprint=False)
        device = self.model.device
        output = self._observing()(
            input_ids=snapshot.token_ids[None, early:].to(device),
            position_ids=torch.arange(early, snapshot.tokens, device=device)[None],
            attention_mask=torch.ones(1, snapshot.tokens, dtype=torch.int64, device=device),
            past_key_values=cache,
            use_cache=True,
            output_attentions=True,
        )
        shown = [rows for rows in (output.attentions or ()) if rows is not None]
        wanted = (snapshot.tokens - early, snapshot.tokens)
        if len(shown) != len(layers) or any(tuple(rows.shape[-2:]) != wanted for rows in shown):
            raise _unseen(self.model)
        return [rows[0] for rows in shown]

    def _observing(self) -> Any:
        """Return a second handle of the model: the same weights, with an attention that shows its probabilities."""
        if self._observer is None:
            shared = {id(tensor): tensor for tensor in (*self.model.parameters(), *self.model.buffers())}
            observer = copy.deepcopy(self.model, shared)
            try:
                observer.set_attn_implementation("eager")
            except (AttributeError, ValueError) as error:
                raise _unseen(self.model) from error
            self._observer = observer
        return self._observer


def _unseen(model: Any) -> InputError:
    what = f"model type {model.config.model_type!r} does not show the attention probabilities of every layer"
    return InputError(what, "Use another scorer, or a family that supports attn_implementation='eager'")


def family(calibration: Calibration) -> list[Rival]:
    """Return it at each keep fraction, observing through the calibration's model."""
    return list(points(WindowAttention(calibration.model, calibration.tokenizer)))
