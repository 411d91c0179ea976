"""What was fitted for scorers: weights, a small network, and how a rank in each scorer's order turns into importance.

It lies beside this module as JSON, written by `python -m eval prune --fit`: the fit looks at recorded sessions and at
what damage the loss of each token did. Another model may have a file of its own.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from kvcompress.errors import CheckpointError
from kvcompress.prune.evidence.record import ranks

FITTED = Path(__file__).with_name("fitted.json")
KNOTS = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.85, 0.9, 0.925, 0.95, 0.97, 0.98, 0.99, 0.995, 1.0)
"""Ranks at which curves are known; most of the importance lies in few tokens, so they stand close at the end."""

REMEDY = "Fit it again with `python -m eval prune --fit`"


@dataclass(frozen=True, slots=True)
class Profile:
    """How importance follows from a scorer's order and the codec's own opinion.

    The importance of a token, relative to the session's mean, is own ** share * 2 ** curve(rank): what the codec
    expects by id and age, as far as the scorer does not know better, times what tokens of that rank were worth on
    fitting sessions.

    Attributes:
        share: Exponent of the codec's own expectation.
        curve: Logarithm (base 2) of the importance at the ranks `KNOTS`.
    """

    share: float
    curve: tuple[float, ...]

    def importance(self, score: Tensor, own: Tensor) -> Tensor:
        """Return the importance [N] float64 of tokens, of mean 1.

        Args:
            score: [N] float, a scorer's.
            own: [N] float, what the codec expects, as the logarithm (base 2) of importance.
        """
        if not len(score):
            return torch.zeros(0, dtype=torch.float64)
        logs = np.interp(ranks(score).numpy(), KNOTS, np.array(self.curve)) + self.share * own.double().numpy()
        importance = torch.from_numpy(np.exp2(logs - logs.max()))
        return importance / importance.mean()


FLAT = Profile(1.0, (0.0,) * len(KNOTS))
"""Of a scorer that was never fitted: its order says nothing about how much more one token is worth than another."""


@cache
def load_fitted(path: Path = FITTED) -> Mapping[str, Any]:
    """Return the fitted numbers.

    Raises:
        CheckpointError: The file is missing or damaged.
    """
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"the fitted numbers of scorers cannot be read ({error})", REMEDY, path=path) from error
    if not isinstance(found, dict):
        raise CheckpointError("the fitted numbers of scorers are not a JSON object", REMEDY, path=path)
    return found


def profile_of(scorer: str, path: Path = FITTED) -> Profile:
    """Return the profile of a scorer, `FLAT` where it was not fitted."""
    found = part(load_fitted(path), "profiles", path).get(scorer)
    if found is None:
        return FLAT
    try:
        profile = Profile(float(found["share"]), tuple(float(value) for value in found["curve"]))
        if len(profile.curve) != len(KNOTS):
            raise ValueError(f"a curve of {len(profile.curve)} values")
        return profile
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"the profile of {scorer!r} is damaged ({error})", REMEDY, path=path) from error


def part(fitted: Mapping[str, Any], name: str, path: Path = FITTED) -> Mapping[str, Any]:
    """Return a part of the fitted numbers, raising `CheckpointError` where it is missing."""
    found = fitted.get(name)
    if not isinstance(found, dict):
        raise CheckpointError(f"the fitted numbers of scorers hold no {name!r}", REMEDY, path=path)
    return found
