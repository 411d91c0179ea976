"""What a store says of its sessions and of itself."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class SessionInfo:
    """What `list` says of a session.

    Attributes:
        name: Its name.
        entries: Entries of its log.
        tokens: Tokens of its present state.
        created: When it was made, seconds since 1970.
        used: When it was last appended to or resumed.
        anchor: Anchor of its last entry, 16 hexadecimal digits.
    """

    name: str
    entries: int
    tokens: int
    created: float
    used: float
    anchor: str

    def to_json(self) -> dict[str, Any]:
        """Return the same, JSON-able."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class Statistics:
    """What a store takes and has cost.

    Attributes:
        generation: Raised by every change.
        sessions: Sessions with a name.
        segments: Segments.
        stored_bytes: Of segments on the disk.
        database_bytes: Of logs and tables.
        added_bytes: Of all segments that were ever added, each once.
        written_bytes: All that was written to the disk for it, segments and database.
    """

    generation: int
    sessions: int
    segments: int
    stored_bytes: int
    database_bytes: int
    added_bytes: int
    written_bytes: int

    @property
    def write_amplification(self) -> float:
        """Bytes written over bytes added."""
        return self.written_bytes / self.added_bytes if self.added_bytes else 0.0

    def to_json(self) -> dict[str, Any]:
        """Return the same, JSON-able."""
        return asdict(self) | {"write_amplification": self.write_amplification}
