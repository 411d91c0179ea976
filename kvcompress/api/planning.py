"""Plan a session without writing it: the tier of each token, and the file of that plan."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from kvcompress.api.encoding import Encoding, Progress, encode
from kvcompress.api.options import EncodeOptions, PlanOptions
from kvcompress.errors import InputError
from kvcompress.format.container import to_bytes
from kvcompress.format.default_device import on_cpu
from kvcompress.hf.types import CausalLM, Tokenizer
from kvcompress.prune.table import Table
from kvcompress.snapshot import KVSnapshot


@dataclass(frozen=True, slots=True, eq=False)
class SessionPlan:
    """The plan of one session, for `EncodeOptions(plan=...)`: encoding by it runs no model again.

    Attributes:
        snapshot: The session.
        encoding: The file of the plan and how it came about.
    """

    snapshot: KVSnapshot
    encoding: Encoding

    @property
    def table(self) -> Table:
        """What the file keeps of each token: tier, bits, text, anchors, parts of the score."""
        assert self.encoding.plan is not None
        return self.encoding.plan.table

    @property
    def tiers(self) -> Tensor:
        """[N] int64, the tier of each token, see `kvcompress.prune.tiers.Tier`."""
        return self.table.tiers

    @property
    def scorer(self) -> str:
        """Name of the plan that won: a scorer and how far its QP lies above that of one tier, or "one tier"."""
        assert self.encoding.plan is not None
        return self.encoding.plan.winner

    @property
    def kl_nats(self) -> float | None:
        """Mean KL along continuations that the model said itself; None for a plan without a search."""
        assert self.encoding.plan is not None
        return self.encoding.plan.kl_nats

    @property
    def file_bytes(self) -> int:
        """Size of the file."""
        return len(to_bytes(self.encoding.encoded))

    @property
    def notes(self) -> tuple[str, ...]:
        """What the plan alone does not tell, a sentence each."""
        return self.encoding.notes

    def __repr__(self) -> str:
        counts = ", ".join(f"{count:,} {tier}" for tier, count in self.table.counts().items() if count)
        return f"SessionPlan({self.scorer}, {counts}, {self.file_bytes:,} bytes)"

    def encode(self, snapshot: KVSnapshot) -> Encoding:
        """Return the file of the plan.

        Raises:
            InputError: The snapshot is not the one that was planned.
        """
        if not _same(snapshot, self.snapshot):
            raise InputError("the plan is of another session", "Plan this one with kv.plan")
        return self.encoding


@on_cpu
def plan(
    snapshot: KVSnapshot,
    model: CausalLM,
    tokenizer: Tokenizer | None = None,
    *,
    codec: str | Path | None = None,
    quality: str | None = None,
    max_kl: float | None = None,
    size_ratio: float | None = None,
    options: PlanOptions | None = None,
    progress: Progress = lambda stage, done, total: None,
) -> SessionPlan:
    """Choose a tier for each token, as `kvcompress encode --plan` does; see docs/pruning.md.

    Of `quality`, `max_kl` and `size_ratio` at most one; without any the quality is "transparent".

    Args:
        snapshot: The session.
        model: The model that recorded it, in evaluation mode.
        tokenizer: Of the model: finds anchors other than the first tokens, and marks.
        codec: Name, directory or Hub id; None takes the one at hand that belongs to the model.
        quality: As good as the file of one tier of this quality word, on this session.
        max_kl: Bound on the mean KL in nats along continuations that the model says itself.
        size_ratio: Raw 16-bit bytes over bytes of the file.
        options: Scorers, marks, guarantees, how many tokens stay; None compares the default scorers.
        progress: Called with stage, done, total.

    Raises:
        InputError: The options cannot be met, or no codec at hand belongs to the model.
        MismatchError: Codec or model is not the snapshot's.
        CheckpointError: The codec is missing or damaged.
    """
    if not isinstance(snapshot, KVSnapshot):
        what = f"a plan is of a snapshot, not of {type(snapshot).__name__}"
        raise InputError(what, "Give what kv.capture returned first, then the model")
    chosen = PlanOptions() if options is None else options
    if not isinstance(chosen, PlanOptions):
        raise InputError(f"options of a plan are PlanOptions, not {type(chosen).__name__}", "Make kv.PlanOptions(...)")
    asked = EncodeOptions(quality=quality, max_kl=max_kl, size_ratio=size_ratio, plan=chosen)
    found = encode(snapshot, asked, codec=codec, model=lambda dtype: (model, tokenizer), progress=progress)
    return SessionPlan(snapshot, found)


def _same(one: KVSnapshot, other: KVSnapshot) -> bool:
    """Return whether two snapshots hold the same."""
    if one is other:
        return True
    if one.origin != other.origin or not torch.equal(one.token_ids, other.token_ids):
        return False
    pairs = zip(one.layers, other.layers, strict=True)
    return all(
        torch.equal(a.positions, b.positions) and torch.equal(a.keys, b.keys) and torch.equal(a.values, b.values)
        for a, b in pairs
    )
