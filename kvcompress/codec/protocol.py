"""The interface of every codec."""

from __future__ import annotations

from typing import Protocol

from kvcompress.format.container import Encoded
from kvcompress.snapshot import KVSnapshot


class Codec(Protocol):
    """What every codec offers."""

    kind: str

    @property
    def fingerprint(self) -> str:
        """What a file must name to be this codec's."""
        ...

    def decode(self, encoded: Encoded) -> KVSnapshot:
        """Return the snapshot that an encoded one stands for."""
        ...
