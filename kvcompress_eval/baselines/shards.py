"""Harvested caches as calibration: a model of thousands of channels a token is then run over its sessions once."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from kvcompress.data.shards import FIT, Shards, opening_digest
from kvcompress.errors import InputError
from kvcompress.hf import fingerprint
from kvcompress.snapshot import KVSnapshot, LayerKV
from kvcompress_eval.baselines.protocol import Calibration


@dataclass(frozen=True, slots=True, eq=False)
class ShardCalibration(Calibration):
    """Harvested caches as calibration, read one at a time.

    Attributes:
        shards: Of sessions that are not measured.
        tokens: Caches are cut at.
    """

    shards: Shards
    tokens: int

    @classmethod
    def of(
        cls,
        directory: Path,
        sessions: int,
        tokens: int,
        model: Any = None,
        tokenizer: Any = None,
        *,
        few: bool = False,
    ) -> ShardCalibration:
        """Take the first sessions of a harvest that are for fitting.

        Args:
            directory: Of the harvest.
            sessions: At most so many.
            tokens: Of each.
            model: For baselines that run it; its harvest it must be.
            tokenizer: Of that model.
            few: Fit only what a quick look needs.

        Raises:
            InputError: There is no finished harvest.
            MismatchError: It is of another model.
        """
        shards = Shards(directory).part(FIT)
        if model is not None:
            fingerprint(model, tokenizer).require_match(shards.origin.fingerprint, path=directory.name)
        shards.rows = shards.rows[:sessions]
        return cls(model, tokenizer, [torch.zeros(0)] * len(shards), shards, tokens, few=few)

    def snapshots(self) -> Iterator[KVSnapshot]:
        """Yield the cache of each session."""
        for number in range(len(self.shards)):
            yield shortened(self.shards.snapshot(number), self.tokens)


def shortened(snapshot: KVSnapshot, tokens: int) -> KVSnapshot:
    """Return the first tokens of a snapshot."""
    layers = tuple(
        LayerKV(layer.keys[:, :tokens], layer.values[:, :tokens], layer.positions[:tokens]) for layer in snapshot.layers
    )
    return KVSnapshot(layers, snapshot.token_ids[:tokens], snapshot.origin)


def require_apart(directory: Path, measured: Sequence[Tensor]) -> None:
    """Raise `InputError` where a session that is measured is also among those of a harvest.

    Args:
        directory: Of the harvest.
        measured: Token ids [N] int64 of each session.
    """
    shards = Shards(directory)
    known = {opening_digest(shards.token_ids(number)) for number in range(len(shards))}
    both = sum(opening_digest(ids) in known for ids in measured)
    if both:
        what = f"{both} of the sessions to measure are among those harvested"
        raise InputError(what, "Measure sessions that fitted nothing", path=directory.name)
