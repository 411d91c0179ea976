"""Check that two models differ only in their weights, so that a codec of one can be tried on the other.

Configurations are compared by what they mean, not by digest: the same model converted by another tool writes 100000.0
for 100000, rounds an epsilon to float32, and leaves out or adds keys that its class does not know.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from kvcompress.errors import MismatchError
from kvcompress.hf.fingerprint import (
    RUN_TIME_KEYS,
    SPECIAL_TOKEN_KEYS,
    config_json,
    configured_rope_digest,
    rope_digest,
)
from kvcompress.hf.types import CausalLM
from kvcompress.snapshot import Origin

UNHEARD_KEYS = RUN_TIME_KEYS | SPECIAL_TOKEN_KEYS | {"unk_token_id", "initializer_range"}
"""They steer loading, generation and training; what a cache means does not depend on them."""

TOLERANCE = 1e-6
"""Relative difference of numbers that are the same but for float32."""


@dataclass(frozen=True, slots=True)
class Architecture:
    """A model without its weights.

    Attributes:
        config: Its configuration, as `Origin.config`.
        rope: Digest of how it rotates, as in its fingerprint.
    """

    config: Mapping[str, Any]
    rope: str

    @classmethod
    def of_origin(cls, origin: Origin) -> Architecture:
        """Return that of a cache's model."""
        return cls(origin.config, origin.fingerprint.rope)

    @classmethod
    def of_model(cls, model: CausalLM) -> Architecture:
        """Return that of a model at hand."""
        return cls(config_json(model), rope_digest(model))

    def require_same(self, other: Architecture) -> None:
        """Raise `MismatchError` naming what differs in `other` (found) from self (expected).

        A key that one side lacks is unknown to the model's class, which then does not heed it.

        Raises:
            MismatchError: A part of the configuration or the rotary embedding differs.
            InputError: A configuration is not understood.
        """
        for key in sorted((self.config.keys() & other.config.keys()) - UNHEARD_KEYS):
            mine, theirs = self.config[key], other.config[key]
            if not _alike(mine, theirs):
                raise MismatchError(f"the model's architecture ({key})", _spelt(mine), _spelt(theirs), REMEDY)
        if self.rope == other.rope:
            return
        # Digests of equal numbers in another spelling; frequencies that are not as configured make another digest.
        for side in (self, other):
            if side.rope != configured_rope_digest(side.config):
                raise MismatchError("the model's rope", self.rope[:16], other.rope[:16], REMEDY)


REMEDY = "Weights may differ, nothing else may: use the codec's own model, or fit a codec for this one"


def _alike(mine: Any, theirs: Any) -> bool:
    if isinstance(mine, Mapping) and isinstance(theirs, Mapping):
        return mine.keys() == theirs.keys() and all(_alike(mine[key], theirs[key]) for key in mine)
    if isinstance(mine, list | tuple) and isinstance(theirs, list | tuple):
        return len(mine) == len(theirs) and all(map(_alike, mine, theirs))
    numbers = all(isinstance(one, int | float) and not isinstance(one, bool) for one in (mine, theirs))
    return math.isclose(mine, theirs, rel_tol=TOLERANCE) if numbers else bool(mine == theirs)


def _spelt(value: Any) -> str:
    text = json.dumps(value, default=str)
    return text if len(text) <= 40 else f"{text[:39]}…"
