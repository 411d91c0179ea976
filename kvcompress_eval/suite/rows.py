"""Rows of a run, one a session, codec and point, kept as they are measured: a run that was killed goes on.

A row belongs to what it names: the model, a session's tokens, a codec's fingerprint. Rows of anything else stay in the
file and are not read.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

Row = dict[str, Any]
Key = tuple[str, ...]


class Rows:
    """The rows of a file, and those added to it.

    Args:
        path: JSON lines; a last line that was cut is measured again.
        model: The model's fingerprint: rows of another are not read.
    """

    def __init__(self, path: Path, model: str) -> None:
        self.path, self.model = path, model[:16]
        self._rows: dict[Key, Row] = {}
        kept = []
        for line in path.read_text(encoding="utf-8").splitlines() if path.is_file() else []:
            try:
                row = json.loads(line)
                held = row["model"], tuple(row["key"])
            except (ValueError, KeyError, TypeError):
                continue
            kept.append(line)
            if held[0] == self.model:
                self._rows[held[1]] = row
        if path.is_file():
            path.write_text("".join(f"{line}\n" for line in kept), encoding="utf-8")

    def get(self, key: Key) -> Row | None:
        """Return the row of a key, None where it is not measured."""
        return self._rows.get(key)

    def of_session(self, session_digest: str) -> Row | None:
        """Return any row of a session that says what its context is worth."""
        found = (row for row in self._rows.values() if row["key"][-1] == session_digest and "worth_near_nats" in row)
        return next(found, None)

    def add(self, key: Key, row: Row) -> Row:
        """Keep a row, at once."""
        self._rows[key] = {"model": self.model, "key": list(key), **row}
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(self._rows[key]) + "\n")
        return self._rows[key]


def identity_of(baseline: Any) -> str:
    """Return 16 digits that tell one codec, with all that it was fitted to, from any other of its name."""
    return str(getattr(baseline, "identity", baseline.fingerprint))[:16]


def digest(ids: Sequence[Tensor] | Tensor) -> str:
    """Return 12 hexadecimal digits of token ids."""
    parts = [ids] if isinstance(ids, Tensor) else ids
    return hashlib.sha256(b"".join(part.numpy().tobytes() for part in parts)).hexdigest()[:12]
