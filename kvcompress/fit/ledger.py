"""Measurements of a calibration, stored in a file so that an interrupted one can continue."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from kvcompress.codec.promise import Setting
from kvcompress.format.atomic import atomic_write


@dataclass(frozen=True, slots=True)
class Facts:
    """What does not depend on a setting.

    Attributes:
        worth_nats: What the context beyond the last 32 tokens is worth.
        prefix_tokens: Tokens of the cache.
        continuation_tokens: Tokens that followed.
        opening_token: Id of the first token of the cache; None in ledgers of earlier versions.
    """

    worth_nats: float
    prefix_tokens: int
    continuation_tokens: int
    opening_token: int | None = None


@dataclass(frozen=True, slots=True)
class Losses:
    """Of one session at one setting.

    Attributes:
        kl_nats: Mean KL(exact || decoded).
        top1_lost: 1 - agreement of the most likely token.
        bits_per_token: Of the codec's own sections; 0 where the setting has no QP.
        error: Relative squared error of the cache; 0 likewise.
        size_ratio: Raw 16-bit bytes over those of the whole file; 0 where no file was made.
    """

    kl_nats: float
    top1_lost: float
    bits_per_token: float = 0.0
    error: float = 0.0
    size_ratio: float = 0.0


class Ledger:
    """What was measured, kept in a file of JSON lines so that a calibration that was killed goes on.

    Args:
        path: The file; None keeps nothing. One of another codec, or of other sessions, is begun anew.
        key: Names codec and sessions.
    """

    def __init__(self, path: Path | None, key: str) -> None:
        self.path = path
        self.facts: dict[int, Facts] = {}
        self.losses: dict[tuple[int, Setting], Losses] = {}
        if path is None:
            return
        lines = list(_whole_lines(path))
        known = bool(lines) and lines[0] == {"key": key}
        for line in lines[1:] if known else []:
            self._read(line)
        # What is not whole is cut off: a line that was being written when the run was killed.
        kept = lines if known else [{"key": key}]
        atomic_write(path, [(json.dumps(line) + "\n").encode() for line in kept], force=True)

    def _read(self, line: dict[str, Any]) -> None:
        session = line["session"]
        if "facts" in line:
            self.facts[session] = Facts(*line["facts"])
        else:
            self.losses[session, Setting.from_json(line["stored"])] = Losses(*line["losses"])

    def add_facts(self, session: int, facts: Facts) -> None:
        """Note what a session is."""
        self.facts[session] = facts
        self._append({"session": session, "facts": [*astuple(facts)]})

    def add(self, session: int, setting: Setting, losses: Losses) -> None:
        """Note what a session loses."""
        self.losses[session, setting] = losses
        self._append({"session": session, "stored": setting.to_json(), "losses": [*astuple(losses)]})

    def _append(self, line: dict[str, Any]) -> None:
        if self.path is not None:
            with self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")


def token_digest(parts: Sequence[Tensor]) -> str:
    """Return a sha256 over token ids."""
    digest = hashlib.sha256()
    for ids in parts:
        digest.update(len(ids).to_bytes(8, "little") + ids.numpy().tobytes())
    return digest.hexdigest()


def _whole_lines(path: Path) -> Iterator[dict[str, Any]]:
    """Yield the lines of a file as far as they are whole; nothing where there is no file."""
    if not path.is_file():
        return
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines(keepends=True):
        try:
            found = json.loads(line) if line.endswith("\n") else None
        except (ValueError, RecursionError):
            return
        if not isinstance(found, dict):
            return
        yield found
