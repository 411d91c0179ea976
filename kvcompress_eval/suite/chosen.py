"""A session to measure, as token ids: light, so that a run can hold all of them and the cache of one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from kvcompress.data.sessions import Session
from kvcompress.errors import InputError
from kvcompress_eval.suite.rows import digest

TEST, OTHER = "test", "other"


@dataclass(frozen=True, slots=True, eq=False)
class Chosen:
    """A session to measure.

    Attributes:
        session: Its id, category and what was planted in it.
        stored: [N] int64, the tokens whose cache is stored.
        following: [T] int64, those after them.
        source: "test", or "other" where it is of another source than the codec's.
    """

    session: Session
    stored: Tensor
    following: Tensor
    source: str = TEST

    @property
    def ids(self) -> Tensor:
        """All its tokens [N + T] int64."""
        return torch.cat([self.stored, self.following])

    @property
    def digest(self) -> str:
        """What its rows are known by."""
        return digest([self.stored, self.following])


def choose_sessions(
    rows: Sequence[tuple[Session, Tensor]], count: int, tokens: int, continuation_tokens: int
) -> tuple[list[tuple[Session, Tensor]], list[Tensor]]:
    """Return the sessions to measure, cut to length, and the token ids of those left for calibration.

    Raises:
        InputError: None is long enough.
    """
    need = tokens + continuation_tokens
    chosen, rest = list[tuple[Session, Tensor]](), list[Tensor]()
    for session, ids in rows:
        if len(ids) >= need and len(chosen) < count:
            chosen.append((session, ids[:need]))
        else:
            rest.append(ids)
    if not chosen:
        longest = max((len(ids) for _, ids in rows), default=0)
        remedy = f"The longest has {longest}; store fewer with --tokens or give longer sessions"
        raise InputError(
            f"no session has the {need} tokens needed ({tokens} stored, then {continuation_tokens})", remedy
        )
    return chosen, rest
