"""The `.kvz` file. (Stage one: only the in-memory form.)"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True)
class Encoded:
    """A coded snapshot in memory: what a `.kvz` file holds.

    Attributes:
        codec: Name of the codec's kind, e.g. "tinyvae" or "lossless".
        codec_fingerprint: sha256 over the codec's weights and tables ("" for codecs without weights).
        model: Model fingerprint, part -> hash (None where unknown).
        model_name: A label.
        tokens: Number of tokens of the session.
        raw_bytes: Cache size at 16 bits a number.
        settings: JSON-able settings of the codec (rate index, quality word, ...).
        sections: Section name -> bytes, in file order.
    """

    codec: str
    codec_fingerprint: str
    model: Mapping[str, str | None]
    model_name: str
    tokens: int
    raw_bytes: int
    settings: Mapping[str, Any] = field(default_factory=dict)
    sections: Mapping[str, bytes] = field(default_factory=dict)
