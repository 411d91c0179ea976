"""What a codec knows about ordinary sessions, and whether a session is unlike them.

A quality word was measured on the sessions that a codec was calibrated on. A session of another kind (source code for
a codec of dialogues, another language, noise) is coded at the same step, but loses more: what the transform leaves
out, and what the model cares about, were learnt elsewhere. Two figures of the coded session tell, without the model:
the bits of its latents per token and the relative error of its cache.

Seen with the bundled model and its first codec, in closed form, 1,024 tokens at the rate of "high", in deviations above
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
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import fmean, stdev
from typing import Any

import torch

from kvcompress.codec import TinyVAECodec
from kvcompress.container import Encoded
from kvcompress.errors import CheckpointError
from kvcompress.promise import FALLBACK
from kvcompress.sections import own_sections
from kvcompress.snapshot import KVSnapshot
from kvcompress.trials import TrialSource

LEAST_SESSIONS = 8
"""Of fewer, the spread is not known."""

MOST_SESSIONS = 48
"""A deviation over 24 sessions is off by 15 %, over 48 by 10 %; four of them are what makes a session unlike."""


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


def figures_of(exact: KVSnapshot, encoded: Encoded, decoded: KVSnapshot) -> Figures:
    """Return the figures of a session, from its cache, its file and what the file decodes to."""
    latents_bytes = sum(len(encoded.sections[name]) for name in own_sections(encoded))
    lost, whole = torch.zeros((), dtype=torch.float64), torch.zeros((), dtype=torch.float64)
    for ours, theirs in zip(exact.layers, decoded.layers, strict=True):
        for part, guess in ((ours.keys, theirs.keys), (ours.values, theirs.values)):
            wide = part.double()
            whole += wide.square().sum()
            lost += (wide - guess.double()).square().sum()
    return Figures(8 * latents_bytes / max(exact.tokens, 1), float(lost / whole) if whole > 0 else 0.0)


@torch.inference_mode()
def measure_known(
    codec: TinyVAECodec,
    trials: Sequence[TrialSource],
    *,
    progress: Callable[[str, int, int], None] = lambda stage, done, total: None,
) -> dict[str, Any]:
    """Return what sessions look like at each promised rate: JSON-able, empty of fewer than 8 sessions.

    Args:
        codec: With its promises.
        trials: Sessions that it was not fitted to.
        progress: Called after each session.

    Returns:
        `{"sessions": count, "tiers": {name: {"bits_per_token": [mean, deviation], "error": [mean, deviation]}}}`,
        over sessions.
    """
    count = min(len(trials), MOST_SESSIONS)
    chosen = [trials[index * len(trials) // count] for index in range(count)]  # of every part: files are often sorted
    if count < LEAST_SESSIONS:
        return {}
    settings = {name: p.setting for name, p in codec.promises.items() if name != FALLBACK and p.rate is not None}
    found: dict[str, list[Figures]] = {name: [] for name in settings}
    for done, trial in enumerate(chosen, 1):
        snapshot = trial.snapshot
        latents = codec.analyse(snapshot)
        for name, setting in settings.items():
            assert setting.rate is not None
            encoded = codec.encode(snapshot, setting.rate, latents=latents, residual_rate=setting.residual_rate)
            found[name].append(figures_of(snapshot, encoded, codec.decode(encoded)))
        progress("ordinary sessions", done, len(chosen))
    tiers = {
        name: {
            "bits_per_token": _spread([figures.bits_per_token for figures in rows]),
            "error": _spread([figures.error for figures in rows]),
        }
        for name, rows in found.items()
    }
    return {"sessions": len(chosen), "tiers": tiers}


def _spread(numbers: Sequence[float]) -> list[float]:
    """Return mean and standard deviation, to six digits."""
    return [float(f"{number:.6g}") for number in (fmean(numbers), stdev(numbers))]


def is_unlike(codec: TinyVAECodec, quality: str, figures: Figures, tokens: int) -> bool:
    """Tell whether a session is far outside what the codec knows of ordinary ones at a quality; False if nothing.

    Args:
        codec: The codec.
        quality: One of its tiers.
        figures: Of the session, coded at the tier's rate.
        tokens: Length of the session.

    Raises:
        CheckpointError: What the codec knows is damaged.
    """
    if not knows(codec, quality):
        return False
    try:
        ordinary = codec.fitted["known"]["tiers"][quality]
        bits, error = ([float(number) for number in ordinary[name]] for name in ("bits_per_token", "error"))
        return BITS_LIMIT.is_exceeded(figures.bits_per_token, bits[0], bits[1], tokens) or ERROR_LIMIT.is_exceeded(
            figures.error, error[0], error[1], tokens
        )
    except (KeyError, IndexError, TypeError, ValueError) as failure:
        what = f"the codec's figures of ordinary sessions are damaged ({failure})"
        raise CheckpointError(what, "Measure them again with `kvcompress calibrate`") from failure


def knows(codec: TinyVAECodec, quality: str) -> bool:
    """Tell whether a codec has figures of ordinary sessions at a quality; codecs of older versions have none."""
    known = codec.fitted.get("known")
    return isinstance(known, dict) and quality in known.get("tiers", {})
