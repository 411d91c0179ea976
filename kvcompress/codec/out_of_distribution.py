"""Out-of-distribution check: compare a session with the statistics of calibration.

A quality word was measured on the sessions that a codec was calibrated on. A session of another kind (source code for
a codec of dialogues, another language, noise) is coded at the same step, but loses more: what the transform leaves
out, and what the model cares about, were learnt elsewhere. Two figures of the coded session tell, without the model:
the bits of its latents per token and the relative error of its cache.

Seen with the bundled model and its first codec, in closed form, 1,024 tokens at the QP of "high", in deviations above
the mean of the calibration sessions (the highest of each kind), beside the mean KL of resuming over 128 further tokens,
of which "high" promises at most .02:

```
                                  bits error   KL
64 recorded sessions               1.5   2.3   .015
English prose (512 tokens)         3.1   3.4   .011
recorded, its words mixed          0.9   0.7   .024
recorded, its tokens mixed         3.4   1.2   .070   not noticed: each token is where the prior expects it
half recorded, half random ids     5.1   4.0   .043   noticed, as all below
German prose                       4.6   4.6   .043
Python source                      5.0   4.5   .097
recorded, in capitals              3.2   5.9   .046
random token ids                   8.8   5.5   .064
one token repeated                -0.5   9.7   .35
```

The two figures do not see how a session opens. Where all sessions open with one token, the model may hang its attention
on it: Gemma-3-270m without its opening token loses .06 nats at the QP of "transparent", which promises .005, and
takes no more bits than many an ordinary session. So a codec knows the opening tokens, too.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, stdev
from typing import TYPE_CHECKING, Any

from torch import Tensor

from kvcompress.errors import CheckpointError
from kvcompress.format.container import Encoded
from kvcompress.format.session import own_sections
from kvcompress.snapshot import KVSnapshot

if TYPE_CHECKING:
    from kvcompress.codec.tinyvae import TinyVAECodec

LEAST_SESSIONS = 8
"""Of fewer, the spread is not known. Over 24 sessions a deviation is off by 15 %, over 48 by 10 %; a session is unlike
beyond four of them."""


UNSEEN_SHARE = 0.05
"""Where the next session is less likely than this to open with a token that none has opened with yet, one that does is
unlike."""


@dataclass(frozen=True, slots=True)
class Limit:
    """Where a figure is far outside: both conditions hold.

    Attributes:
        deviations: More standard deviations above the mean than these.
        factor: More times the mean than this; guards against codecs whose calibration sessions are all alike.
        start_tokens: The deviations count 1 + start_tokens / tokens times as much: every session starts unlike.
    """

    deviations: float
    factor: float
    start_tokens: int

    def is_exceeded(self, number: float, mean: float, deviation: float, tokens: int) -> bool:
        """Tell whether the figure of a session of `tokens` tokens is far outside."""
        allowed = self.deviations * (1 + self.start_tokens / max(tokens, 1))
        return number > max(mean + allowed * deviation, self.factor * mean)


BITS_LIMIT = Limit(deviations=4.0, factor=1.4, start_tokens=128)
ERROR_LIMIT = Limit(deviations=3.8, factor=1.3, start_tokens=16)


@dataclass(frozen=True, slots=True)
class Figures:
    """Two figures of a coded session.

    Attributes:
        bits_per_token: Bits of its latents per token.
        error: Squared error of keys and values as cached over their squares, both summed over the whole cache.
    """

    bits_per_token: float
    error: float


def figures_of(exact: KVSnapshot, decoded: KVSnapshot, file: Encoded, start: int = 0) -> tuple[float, float]:
    """Return the bits of a codec's own sections per token from `start` on, and the squared error over the squares."""
    lost = whole = 0.0
    for ours, theirs in zip(exact.layers, decoded.layers, strict=True):
        for part, guess in ((ours.keys, theirs.keys), (ours.values, theirs.values)):
            wide = part.double()
            whole += float(wide.square().sum())
            lost += float((wide - guess.double()).square().sum())
    coded_bytes = sum(len(file.sections[name]) for name in own_sections(file))
    return 8 * coded_bytes / max(exact.tokens - start, 1), lost / whole if whole > 0 else 0.0


def figures_of_file(exact: KVSnapshot, encoded: Encoded, decoded: KVSnapshot, start: int = 0) -> Figures:
    """Return the figures of a session, from its cache, its file and what the file decodes to.

    Args:
        exact: The cache.
        encoded: Its file.
        decoded: What the file decodes to.
        start: The first token that the file holds; before it is what an earlier file holds.
    """
    return Figures(*figures_of(exact, decoded, encoded, start))


def calibration_statistics(
    figures: Mapping[str, Sequence[Figures]], openings: Sequence[int | None] = ()
) -> dict[str, Any]:
    """Return what ordinary sessions look like, JSON-able.

    Args:
        figures: Of all sessions at each quality.
        openings: Id of the first token of each session; None where it is not known.

    Returns:
        `{"sessions": count, "tiers": {name: {"bits_per_token": [mean, deviation], "error": [mean, deviation]}}}`,
        over sessions, without a quality of fewer than 8; and with `"openings": [ids]` where these are all that is to
        be expected, see `usual_openings`.
    """
    tiers = {
        name: {
            "bits_per_token": _spread([one.bits_per_token for one in rows]),
            "error": _spread([one.error for one in rows]),
        }
        for name, rows in figures.items()
        if len(rows) >= LEAST_SESSIONS
    }
    if not tiers:
        return {}
    usual = usual_openings(openings)
    return {"sessions": max(map(len, figures.values())), "tiers": tiers} | ({"openings": usual} if usual else {})


def usual_openings(openings: Sequence[int | None]) -> list[int]:
    """Return the ids that sessions open with, in order; none where the next may well open with another.

    A token not seen yet is as likely as the share of those seen once (Good 1953): sessions cut from the middle of texts
    open with anything, those of a chat template with one token.
    """
    counts = Counter(openings)
    once = sum(count == 1 for count in counts.values())
    if None in counts or len(openings) < LEAST_SESSIONS or once > UNSEEN_SHARE * len(openings):
        return []
    return sorted(opening for opening in counts if opening is not None)


def opens_out_of_distribution(codec: TinyVAECodec, token_ids: Tensor) -> bool:
    """Tell whether a session, ids [N] int64, opens with a token that ordinary ones do not; False if nothing is known.

    Raises:
        CheckpointError: What the codec knows is damaged.
    """
    known = codec.ordinary_sessions
    usual = known.get("openings") if isinstance(known, dict) else None
    if usual is None or not len(token_ids):
        return False
    if not isinstance(usual, list) or not all(type(opening) is int for opening in usual):
        what = f"the codec's opening tokens are damaged ({usual!r:.40})"
        raise CheckpointError(what, "Measure them again with `kvcompress calibrate`")
    return int(token_ids[0]) not in usual


def _spread(numbers: Sequence[float]) -> list[float]:
    """Return mean and standard deviation, to six digits."""
    return [float(f"{number:.6g}") for number in (fmean(numbers), stdev(numbers))]


def is_out_of_distribution(codec: TinyVAECodec, quality: str, figures: Figures, tokens: int) -> bool:
    """Tell whether a session is far outside what the codec knows of ordinary ones at a quality; False if nothing.

    Args:
        codec: The codec.
        quality: One of its tiers.
        figures: Of the session, coded at the tier's QP.
        tokens: Length of the session.

    Raises:
        CheckpointError: What the codec knows is damaged.
    """
    if not knows(codec, quality):
        return False
    try:
        ordinary = codec.ordinary_sessions["tiers"][quality]
        bits, error = ([float(number) for number in ordinary[name]] for name in ("bits_per_token", "error"))
        return BITS_LIMIT.is_exceeded(figures.bits_per_token, bits[0], bits[1], tokens) or ERROR_LIMIT.is_exceeded(
            figures.error, error[0], error[1], tokens
        )
    except (KeyError, IndexError, TypeError, ValueError) as failure:
        what = f"the codec's figures of ordinary sessions are damaged ({failure})"
        raise CheckpointError(what, "Measure them again with `kvcompress calibrate`") from failure


def knows(codec: TinyVAECodec, quality: str) -> bool:
    """Tell whether a codec has figures of ordinary sessions at a quality; codecs of older versions have none."""
    known = codec.ordinary_sessions
    return isinstance(known, dict) and quality in known.get("tiers", {})
