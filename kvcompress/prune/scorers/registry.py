"""The interface of scorers, and how to find them by name."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from pathlib import Path
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from kvcompress.errors import InputError
from kvcompress.prune.evidence.record import Evidence
from kvcompress.prune.scorers.profiles import FITTED

SCORERS = (
    "sink_recent",
    "key_norm",
    "value_norm",
    "attention_mass",
    "expected_attention",
    "key_difference",
    "context_reconstruction",
    "output_sensitivity",
    "surprise",
    "salience",
    "concert",
    "learned",
    "random",
)
"""Modules of this room; each holds one scorer as `SCORER`."""


class Scorer(Protocol):
    """Says how much each token is worth.

    Attributes:
        name: Unique, e.g. "key_norm".
        needs: Kinds of evidence beyond the snapshot, of `kvcompress.prune.evidence.record.KINDS`.
    """

    name: str
    needs: tuple[str, ...]

    def score(self, evidence: Evidence) -> Tensor:
        """Return [N] float, higher = keep; only the order of the tokens counts."""
        ...


@runtime_checkable
class InParts(Protocol):
    """A scorer whose score has parts to show."""

    def parts(self, evidence: Evidence) -> Mapping[str, Tensor]:
        """Return the parts by name, each [N] float."""
        ...


@runtime_checkable
class Learns(Protocol):
    """A scorer whose numbers were fitted."""

    def fitted_in(self, path: Path) -> Scorer:
        """Return the scorer with the fitted numbers of a file."""
        ...


def find_scorer(name: str, fitted: Path = FITTED) -> Scorer:
    """Return the scorer of a name.

    Args:
        name: Its name.
        fitted: File of fitted numbers, from `kvcompress.prune.scorers.profiles.fitted_file`.

    Raises:
        InputError: There is none.
    """
    module = name.replace("-", "_")
    if module not in SCORERS:
        raise InputError(f"unknown scorer {name!r}", f"Known are {', '.join(SCORERS)}")
    scorer: Scorer = importlib.import_module(f"kvcompress.prune.scorers.{module}").SCORER
    return scorer.fitted_in(fitted) if isinstance(scorer, Learns) else scorer


def scored(scorer: Scorer, evidence: Evidence) -> Tensor:
    """Return the score [N] float32 of a scorer, checked.

    Raises:
        InputError: It is not one finite number for each token.
    """
    return require_scores(scorer.score(evidence), evidence.tokens, scorer.name)


def require_scores(score: Tensor, tokens: int, name: str) -> Tensor:
    """Return scores as [N] float32, raising `InputError` unless they are one number, not NaN, for each of N tokens."""
    if tuple(score.shape) != (tokens,):
        raise InputError(f"scores {name!r} of shape {tuple(score.shape)} do not fit {tokens} tokens")
    found = score.detach().to("cpu", torch.float32)
    if bool(torch.isnan(found).any()):
        raise InputError(f"scores {name!r} contain NaN")
    return found


def parts_of(scorer: Scorer, evidence: Evidence) -> dict[str, Tensor]:
    """Return the parts of a scorer's score by name, each [N] float32; the whole score where it has no parts."""
    if isinstance(scorer, InParts):
        return {name: require_scores(part, evidence.tokens, name) for name, part in scorer.parts(evidence).items()}
    return {scorer.name: scored(scorer, evidence)}
