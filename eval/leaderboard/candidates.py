"""What is compared on one session: plans of every scorer at the bytes of one tier, and what each scorer keeps.

```
bytes:<quality>    files of the size of the one-tier file of a quality word: one tier, each scorer's plan, the
                   default search; the search at smaller sizes, and one tier at larger ones
quality:<quality>  the default search asked to be as good as one tier
half:<quality>     the same with half of the tokens dropped from memory
kept:<fraction>    exact numbers of the tokens that each scorer keeps, nothing coded; the plan's own choice beside
```
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from kvcompress.codec.exact_tokens import WithExact
from kvcompress.codec.tinyvae import TinyVAECodec
from kvcompress.errors import InputError
from kvcompress.format.container import Encoded, to_bytes
from kvcompress.metrics.sampled_kl import Judge
from kvcompress.prune.constraints import Constraints, choose_kept, drop
from kvcompress.prune.evidence.collect import collect
from kvcompress.prune.evidence.record import KINDS, Evidence
from kvcompress.prune.planner import Planner, clamped_qp
from kvcompress.prune.scorers.profiles import fitted_file
from kvcompress.prune.scorers.registry import SCORERS, Scorer, find_scorer, scored
from kvcompress.prune.session import Asked, SessionPlanner, anchored_constraints
from kvcompress.snapshot import KVSnapshot
from kvcompress_eval.suite.subject import Subject

QP_STEP = 12
"""Rate of a scorer's coarse tier above that of one tier; the search tries others too."""

SMALLER = (0.3, 0.5, 0.75)
"""Bytes of the search's latents and offsets, as shares of one tier's latents, to find where it loses as much."""

FINER = (8, 16, 24, 32, 48)
"""Rates of one tier above that of the quality word, to find where it loses as little as the search."""

KEPT_FRACTIONS = (1 / 2, 1 / 4)
HALF = 0.5
ONE_TIER, SEARCH, PLAN = "one tier", "search", "plan"


@dataclass(frozen=True, slots=True, eq=False)
class Entry:
    """One candidate's cache of one session.

    Attributes:
        board: What it is compared with.
        candidate: Its name.
        decoded: What the model resumes from.
        file_bytes: Size of its file, 0 where nothing was coded.
        seconds: What making it took.
    """

    board: str
    candidate: str
    decoded: KVSnapshot
    file_bytes: int
    seconds: float


@dataclass(slots=True, eq=False)
class Case:
    """A session made ready for all candidates.

    Args:
        model: The model.
        tokenizer: Its tokenizer.
        codec: The codec of all files.
        subject: The session with what the exact cache predicts.
    """

    model: Any
    tokenizer: Any
    codec: TinyVAECodec
    subject: Subject
    _evidence: Evidence | None = None
    _judge: Judge | None = None
    _planners: dict[str, Planner] = field(default_factory=dict)

    @property
    def snapshot(self) -> KVSnapshot:
        """The exact cache."""
        return self.subject.snapshot

    def evidence(self) -> Evidence:
        """Return all evidence, collected once."""
        if self._evidence is None:
            self._evidence = collect(self.model, self.snapshot, KINDS, tokenizer=self.tokenizer, codec=self.codec)
        return self._evidence

    def scorer(self, name: str) -> Scorer:
        """Return a scorer with what it learnt of the codec's model."""
        return find_scorer(name, fitted_file(self.codec))

    def planner(self, scorer: str) -> Planner:
        """Return the planner of a scorer, made once."""
        if scorer not in self._planners:
            score = scored(self.scorer(scorer), self.evidence())
            self._planners[scorer] = Planner(self.codec, self.snapshot, scorer, score, self.constraints())
        return self._planners[scorer]

    def constraints(self, keep_fraction: float | None = None) -> Constraints:
        """Return the default guarantees."""
        return anchored_constraints(self.tokenizer, self.snapshot, Asked(keep_fraction=keep_fraction))

    def search(self, **asked: Any) -> Encoded:
        """Return the file of the default search."""
        if self._judge is None:
            self._judge = Judge(self.model, self.snapshot)
        planner = SessionPlanner(
            self.codec,
            self.model,
            self.tokenizer,
            self.snapshot,
            Asked(**asked),
            evidence=self.evidence(),
            judge=self._judge,
        )
        return planner.run().encoded


def names(qualities: Sequence[str], compared: Sequence[str]) -> list[tuple[str, str]]:
    """Return board and name of every candidate, in the order in which they are measured.

    Args:
        qualities: Quality words whose one-tier files the default search is beside.
        compared: Those of them at which every scorer's plan competes and equal KL is looked for.
    """
    found = []
    for quality in qualities:
        candidates = [ONE_TIER, SEARCH]
        if quality in compared:
            candidates += [*SCORERS, *(f"{SEARCH} {part:g}" for part in SMALLER)]
            candidates += [f"{ONE_TIER} +{step}" for step in FINER]
        found += [(f"bytes:{quality}", name) for name in candidates]
        found += [(f"quality:{quality}", SEARCH), (f"half:{quality}", SEARCH)]
    for fraction in KEPT_FRACTIONS:
        found += [(f"kept:{fraction:g}", name) for name in (*SCORERS, PLAN)]
    return found


def enter(case: Case, board: str, candidate: str) -> Entry:
    """Make one candidate's cache.

    Raises:
        InputError: The guaranteed anchors alone are larger than the budget.
    """
    kind, _, what = board.partition(":")
    case.evidence()
    start = time.perf_counter()
    if kind == "kept":
        decoded, size = kept_only(case, candidate, float(what)), 0
    else:
        encoded = coded(case, kind, what, candidate)
        decoded, size = WithExact(case.codec).decode(encoded), len(to_bytes(encoded))
    return Entry(board, candidate, decoded, size, time.perf_counter() - start)


def kept_only(case: Case, candidate: str, fraction: float) -> KVSnapshot:
    """Return the exact cache of the tokens that a scorer keeps; no anchor is guaranteed, so that it shows itself."""
    constraints = Constraints(torch.zeros(case.snapshot.tokens, dtype=torch.int64), fraction)
    if candidate == PLAN:
        score = scored(case.scorer("learned"), case.evidence())
        return Planner(case.codec, case.snapshot, "learned", score, constraints).pruned
    kept = choose_kept(constraints, scored(case.scorer(candidate), case.evidence()).double())
    return drop(case.snapshot, kept)


def coded(case: Case, kind: str, quality: str, candidate: str) -> Encoded:
    """Return one candidate's file."""
    qp = case.codec.qp_of(quality)
    single = case.codec.encode(case.snapshot, qp)
    if kind == "quality":
        return case.search(quality=quality)
    if kind == "half":
        return case.search(quality=quality, keep_fraction=HALF)
    if candidate.startswith(ONE_TIER):
        step = int(candidate.partition("+")[2] or 0)
        return case.codec.encode(case.snapshot, clamped_qp(qp + step)) if step else single
    if candidate.startswith(SEARCH):
        latents = sum(len(data) for name, data in single.sections.items() if name.startswith("latents"))
        spared = (1 - float(candidate.partition(" ")[2] or 1)) * latents
        return case.search(size_ratio=case.snapshot.raw_bytes / (len(to_bytes(single)) - spared))
    found = case.planner(candidate).within(clamped_qp(qp + QP_STEP), len(to_bytes(single)))
    if found is None:
        raise InputError("the guaranteed anchors alone are larger than the file of one tier")
    return found.encoded
