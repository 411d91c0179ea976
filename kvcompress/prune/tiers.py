"""The five tiers of a token, from dropped to exact."""

from __future__ import annotations

from enum import IntEnum

from kvcompress.errors import InputError
from tinyvae.offsets import PRIOR_ONLY


class Tier(IntEnum):
    """What is kept of a token; more is larger.

    DROPPED: It leaves every layer, in the file and in memory; its position stays free.
    PRIOR: Nothing is coded; its entry is what the codec expects from the tokens and from decoded neighbours.
    COARSE: Coded at the session's QP.
    FINE: Coded finer than that.
    EXACT: Beside all this its numbers are stored as they are, in the cache's own data type.
    """

    DROPPED = 0
    PRIOR = 1
    COARSE = 2
    FINE = 3
    EXACT = 4

    @property
    def word(self) -> str:
        """The tier's name for people."""
        return "prior only" if self is Tier.PRIOR else self.name.lower()


FINE_LEVELS = 16
"""How much finer than coarse: an octave of the step."""

OFFSETS = {Tier.DROPPED: PRIOR_ONLY, Tier.PRIOR: PRIOR_ONLY, Tier.COARSE: 0, Tier.FINE: FINE_LEVELS}
OFFSETS[Tier.EXACT] = FINE_LEVELS
"""Rate offset of each tier. An exact token is coded fine as well: its neighbours are predicted from it."""


def tier_named(word: str) -> Tier:
    """Return the tier of a name such as "fine" or "prior".

    Raises:
        InputError: There is none.
    """
    known = {tier.name.lower(): tier for tier in Tier}
    if word.lower() not in known:
        raise InputError(f"unknown tier {word!r}", f"Known are {', '.join(known)}")
    return known[word.lower()]
