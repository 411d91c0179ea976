"""What a baseline is, and what it may learn from before it is measured."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from torch import Tensor

from kvcompress.format.container import Encoded
from kvcompress.hf import capture
from kvcompress.snapshot import KVSnapshot


class Baseline(Protocol):
    """One point of one family: a codec whose settings are fixed.

    Attributes:
        name: Unique in a report, e.g. "kivi-2bit".
        family: Points of a family are joined to a curve, e.g. "kivi".
        kind: The codec's name in the file.
        codec_bytes: What must be at hand to decode, beyond the program: tables, bases; 0 for most.
    """

    name: str
    family: str
    kind: str
    codec_bytes: int

    @property
    def fingerprint(self) -> str:
        """What a file must name to be this codec's; "" without weights."""
        ...

    def encode(self, snapshot: KVSnapshot) -> Encoded:
        """Code a snapshot into what the file holds, everything that decoding needs included."""
        ...

    def decode(self, encoded: Encoded) -> KVSnapshot:
        """Return the snapshot; eviction returns fewer positions a layer."""
        ...


@dataclass(frozen=True, slots=True, eq=False)
class Calibration:
    """What a baseline may be fitted to: the model and sessions that are never measured.

    Attributes:
        model: A causal language model in evaluation mode.
        tokenizer: Its tokenizer, or None.
        sessions: Token ids of each calibration session, [N] int64.
        few: Fit only what a quick look needs.
        fits: What one family fitted and another may use as well, by a name.
    """

    model: Any
    tokenizer: Any
    sessions: Sequence[Tensor]
    few: bool = field(default=False, kw_only=True)
    fits: dict[str, Any] = field(default_factory=dict, repr=False, kw_only=True)

    def snapshots(self) -> Iterator[KVSnapshot]:
        """Yield the cache of each calibration session."""
        for token_ids in self.sessions:
            yield capture(self.model, token_ids, tokenizer=self.tokenizer)
