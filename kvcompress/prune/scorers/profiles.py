"""Fitted parameters of scorers: weights, a small network, and the map from rank to importance.

It is JSON, written by `python -m eval prune --fit`: the fit looks at recorded sessions and at what damage the loss of
each token did. A codec may have the file of its model in its directory, as `scorers.json`; a codec that has none takes
the one beside this module, which was fitted to the bundled model: orders and their curves are much alike among models,
but plans then follow what tokens were worth to another one.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from kvcompress.errors import CheckpointError, FormatError
from kvcompress.format.json_fields import JsonFields
from kvcompress.prune.evidence.record import ranks

if TYPE_CHECKING:
    from kvcompress.codec.tinyvae import TinyVAECodec

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


def fitted_file(codec: TinyVAECodec) -> Path:
    """Return the file of the fitted numbers for a codec's model: its own, or the one that came along.

    Raises:
        CheckpointError: Its own is damaged, or was fitted to another model.
    """
    if codec.scorers is None:
        return FITTED
    made, ours = part(load_fitted(codec.scorers), "made", codec.scorers), codec.model_fingerprint.weights
    if made.get("model") != ours:
        what = f"the fitted numbers of scorers are of the model {str(made.get('model'))[:16]}, the codec of {ours[:16]}"
        raise CheckpointError(what, REMEDY, path=codec.scorers)
    return codec.scorers


def load_fitted(path: Path = FITTED) -> Mapping[str, Any]:
    """Return the fitted numbers.

    Raises:
        CheckpointError: The file is missing or damaged.
    """
    try:
        changed = path.stat().st_mtime_ns
    except OSError as error:
        raise CheckpointError(f"the fitted numbers of scorers cannot be read ({error})", REMEDY, path=path) from error
    return _loaded(path, changed)


@lru_cache(maxsize=8)
def _loaded(path: Path, changed: int) -> Mapping[str, Any]:
    """Return the numbers of a file as it was when it was last changed."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"the fitted numbers of scorers cannot be read ({error})", REMEDY, path=path) from error
    if not isinstance(found, dict):
        raise CheckpointError("the fitted numbers of scorers are not a JSON object", REMEDY, path=path)
    return found


def profile_of(scorer: str, path: Path = FITTED) -> Profile:
    """Return the profile of a scorer, `FLAT` where it was not fitted."""
    profiles = part(load_fitted(path), "profiles", path)
    if scorer not in profiles:
        return FLAT
    try:
        given = JsonFields(profiles[scorer], f"the profile of {scorer!r} is damaged:", only=("share", "curve"))
        return Profile(given.number("share"), given.numbers("curve", len(KNOTS)))
    except FormatError as error:
        raise CheckpointError(error.what, REMEDY, path=path) from error


def part(fitted: Mapping[str, Any], name: str, path: Path = FITTED) -> Mapping[str, Any]:
    """Return a part of the fitted numbers, raising `CheckpointError` where it is missing."""
    found = fitted.get(name)
    if not isinstance(found, dict):
        raise CheckpointError(f"the fitted numbers of scorers hold no {name!r}", REMEDY, path=path)
    return found
