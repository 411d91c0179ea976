"""Keep the tokens that the newest queries attend to: the scorer `attention_mass` of `kvcompress.prune`, layer by layer.

The window itself is always kept; where fewer than 64 tokens are kept it fills half of them at most, for otherwise the
scores would have no say.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from kvcompress.hf import fingerprint
from kvcompress.hf.attention_hook import Observer
from kvcompress.prune.evidence.collect import read, require_whole
from kvcompress.prune.evidence.record import Evidence
from kvcompress.prune.scorers.attention_mass import WINDOW_TOKENS, pooled
from kvcompress.snapshot import KVSnapshot
from kvcompress_eval.baselines.eviction import points
from kvcompress_eval.baselines.protocol import Baseline, Calibration


class WindowAttention:
    """Attention mass of the last queries.

    Args:
        model: The model that made the caches, in evaluation mode.
        tokenizer: Its tokenizer, or None.
    """

    name = "attention-mass"

    def __init__(self, model: Any, tokenizer: Any = None) -> None:
        self.model, self.tokenizer = model, tokenizer
        self._observer: Observer | None = None

    def score(self, snapshot: KVSnapshot, kept_tokens: int) -> list[Tensor]:
        """Return the pooled attention of the observation window, infinity for its newest tokens.

        Raises:
            MismatchError: The snapshot comes from another model.
            InputError: The snapshot is pruned, or the model does not show its attention.
        """
        snapshot.origin.fingerprint.require_match(fingerprint(self.model, self.tokenizer))
        require_whole(snapshot)
        tokens = snapshot.tokens
        if tokens <= WINDOW_TOKENS:
            return [layer.positions.double() for layer in snapshot.layers]
        seen = read(self.observer(), Evidence(snapshot), tokens - WINDOW_TOKENS)
        certain = min(WINDOW_TOKENS, (kept_tokens + 1) // 2)
        scores = [pooled(mass.double().mean(0)) for mass in seen.require_window_attention()]
        for mass in scores:
            mass[tokens - certain :] = torch.inf
        return scores

    def observer(self) -> Observer:
        """Return a second handle of the model, with open attention; made once."""
        if self._observer is None:
            self._observer = Observer(self.model)
        return self._observer


def family(calibration: Calibration) -> list[Baseline]:
    """Return it at each keep fraction, observing through the calibration's model."""
    return list(points(WindowAttention(calibration.model, calibration.tokenizer)))
