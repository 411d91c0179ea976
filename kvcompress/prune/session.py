"""Plan one session, as `kvcompress encode --plan auto` does: anchors, evidence, scorers, candidate search, file."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from kvcompress.codec.analysis import HIGHEST_QP
from kvcompress.codec.exact_tokens import WithExact, with_exact
from kvcompress.codec.settings import Certificate, CommonSettings, TinyVAESettings, restated
from kvcompress.codec.size_ratio import encode_at_size_ratio
from kvcompress.codec.tinyvae import TinyVAECodec
from kvcompress.errors import InputError, require_positive
from kvcompress.format.container import Encoded
from kvcompress.hf.positions import require_droppable
from kvcompress.hf.types import CausalLM, Tokenizer
from kvcompress.metrics.fidelity import TIERS
from kvcompress.metrics.sampled_kl import Judge
from kvcompress.prune.anchors import SINK, SINK_TOKENS, Anchor, find_anchors, marked, text_of
from kvcompress.prune.constraints import GUARANTEES, Constraints, choose_kept, drop, floor_of
from kvcompress.prune.evidence.collect import collect
from kvcompress.prune.evidence.record import Evidence
from kvcompress.prune.history import History
from kvcompress.prune.planner import Planner, cannot_be_met, clamped_qp
from kvcompress.prune.scorers.profiles import fitted_file
from kvcompress.prune.scorers.registry import Scorer, find_scorer, parts_of, scored
from kvcompress.prune.search import ONE_TIER, CandidateSearch, Progress, Result, one_tier_kl
from kvcompress.prune.table import Table, kinds_of, table_of
from kvcompress.prune.tiers import Tier, tier_named
from kvcompress.snapshot import KVSnapshot

DEFAULT_SCORERS = ("learned", "context_reconstruction")
"""Measured by `python -m eval prune`; see docs/log.md."""

QUICK_STEP = 12
"""Rate of a quick plan's coarse tier above that of one tier."""

MARGIN = 0.7
"""Share of a quality word's bound on KL that a plan may use up along the evaluator's continuations, which are few. A
plan is measured on its own session; the codec's promise is of sessions of one tier, and no file of a plan claims it."""


@dataclass(frozen=True, slots=True)
class Asked:
    """What the user asks of a plan; one of `quality`, `size_ratio` and `max_kl_nats`.

    Attributes:
        scorers: Names of those that search.
        quality: As good as the file of one tier of this quality word, on this session.
        size_ratio: Raw 16-bit bytes of the whole cache over bytes of the file.
        max_kl_nats: Bound on the mean KL along sampled continuations.
        keep_fraction: Share of the tokens that stays in memory; None drops nothing.
        patterns: Regular expressions of what to mark.
        messages: Indices of messages to mark.
        guarantees: Tier below which each kind of anchor never falls.
    """

    scorers: tuple[str, ...] = DEFAULT_SCORERS
    quality: str | None = None
    size_ratio: float | None = None
    max_kl_nats: float | None = None
    keep_fraction: float | None = None
    patterns: tuple[str, ...] = ()
    messages: tuple[int, ...] = ()
    guarantees: Mapping[str, Tier] = field(default_factory=lambda: GUARANTEES)

    def __post_init__(self) -> None:
        """Refuse a target that is none; without any, the quality is transparent."""
        if self.quality is None and self.size_ratio is None and self.max_kl_nats is None:
            object.__setattr__(self, "quality", "transparent")
        for name, value in (("a size ratio", self.size_ratio), ("a bound on the KL (nats)", self.max_kl_nats)):
            if value is not None:
                require_positive(name, value)


@dataclass(frozen=True, slots=True, eq=False)
class PlannedSession:
    """A planned file and how it came about.

    Attributes:
        encoded: The file.
        table: What it keeps of each token, with anchors and score parts.
        results: Every candidate of the search at equal bytes.
        winner: Name of the candidate that was committed.
        kl_nats: What it loses along the evaluator's continuations; None without a search, as the next two.
        one_tier_bytes: Size of the file of one tier that it is compared with.
        one_tier_kl_nats: What that loses.
        notes: What a user who looks at the file alone would miss.
    """

    encoded: Encoded
    table: Table
    results: tuple[Result, ...]
    winner: str
    kl_nats: float | None = None
    one_tier_bytes: int | None = None
    one_tier_kl_nats: float | None = None
    notes: tuple[str, ...] = ()

    def search(self) -> dict[str, Any]:
        """Return what the search found, JSON-able."""
        return {
            "winner": self.winner,
            "kl_nats": self.kl_nats,
            "one_tier": {"file_bytes": self.one_tier_bytes, "kl_nats": self.one_tier_kl_nats},
            "candidates": {f.name: {"file_bytes": f.planned.file_bytes, "kl_nats": f.kl_nats} for f in self.results},
        }


class SessionPlanner:
    """Plans one session.

    Args:
        codec: The codec.
        model: The model that recorded the session, in evaluation mode.
        tokenizer: Its tokenizer, or None; anchors other than sinks need it.
        snapshot: The whole cache.
        asked: What the user asks.
        history: What earlier searches found; this one is noted in it.
        progress: Called after each file of the search.
        evidence: What was collected before; only what the scorers need beside it is collected now.
        judge: Of this session, where there is one already.

    Raises:
        InputError: Marks match nothing, or the anchors are more than may stay.
        MismatchError: Model or codec is not the snapshot's.
        CheckpointError: What scorers learnt of the codec's model is damaged.
    """

    def __init__(
        self,
        codec: TinyVAECodec,
        model: CausalLM,
        tokenizer: Tokenizer | None,
        snapshot: KVSnapshot,
        asked: Asked,
        history: History | None = None,
        progress: Progress = lambda stage, done, total: None,
        evidence: Evidence | None = None,
        judge: Judge | None = None,
    ) -> None:
        self.codec, self.model, self.tokenizer, self.snapshot, self.asked = codec, model, tokenizer, snapshot, asked
        self.history, self.progress, self._judge = history, progress, judge
        self.scorers = [find_scorer(name, fitted_file(codec)) for name in dict.fromkeys(asked.scorers)]
        codec.require_compatible(snapshot)
        if asked.keep_fraction is not None:
            require_droppable(model)
        anchored_constraints(tokenizer, snapshot, asked).kept_tokens()  # every refusal comes before the model runs
        self.text = text_of(tokenizer, snapshot.token_ids) if tokenizer is not None else None
        needs = {need for scorer in self.scorers for need in scorer.needs}
        self.evidence = collect(model, snapshot, needs, tokenizer=tokenizer, codec=codec, known=evidence)
        self.anchors = self._anchors()
        self.constraints = Constraints(floor_of(self.anchors, snapshot.tokens, asked.guarantees), asked.keep_fraction)

    def _anchors(self) -> list[Anchor]:
        if self.text is None:
            return [Anchor(SINK, 0, min(SINK_TOKENS, self.snapshot.tokens))]
        marks = marked(self.text, self.asked.patterns, self.asked.messages)
        return find_anchors(self.text, surprise=self.evidence.surprise, marks=marks)

    def run(self) -> PlannedSession:
        """Return the committed plan.

        Raises:
            InputError: The budget cannot be met with the guaranteed anchors.
        """
        judge = self._judge or Judge(self.model, self.snapshot)
        qp = self._qp(judge)
        single, single_bytes, single_kl = one_tier_kl(self.codec, self.snapshot, qp, judge)
        search = CandidateSearch(self.codec, self._planners(), judge, qp, self.history, self.progress)
        notes = list[str]()
        if self.asked.size_ratio is not None:
            best = search.at_bytes(int(self.snapshot.raw_bytes / self.asked.size_ratio))
        else:
            allowed = self._allowed(single_kl)
            found = search.at_damage(allowed, single_bytes)
            best = found or search.closest()
            if found is None:
                told = f"no plan loses at most {allowed:.2g} nats along sampled continuations"
                notes.append(f"{told}: the one stored loses {best.kl_nats:.2g}")
        encoded, winner, kl = best.planned.encoded, best.name, best.kl_nats
        if self._one_tier_wins(best, single_bytes, single_kl):
            stated = replace(self._settings(), plan=ONE_TIER)
            encoded, winner, kl = restated(single, stated), ONE_TIER, single_kl
        if self.asked.max_kl_nats is not None:
            bound = self.asked.max_kl_nats
            measured = Certificate(kl_nats=float(f"{kl:.4g}"), max_kl_nats=bound, future_tokens=judge.tokens)
            encoded = restated(encoded, CommonSettings(certificate=measured))
        results = tuple(search.results)
        return PlannedSession(
            encoded, self._table(encoded, winner), results, winner, kl, single_bytes, single_kl, tuple(notes)
        )

    def run_quickly(self) -> PlannedSession:
        """Return the plan of the first scorer without a search: nothing is decoded, no continuation measures it.

        What one tier of the asked quality is foreseen to lose, the plan is foreseen to lose too.

        Raises:
            InputError: The budget cannot be met with the guaranteed anchors, or is a bound that must be measured.
        """
        if self.asked.max_kl_nats is not None:
            raise InputError("a bound on the KL is kept by measuring, which a quick plan does not", "Use --plan auto")
        qp, planner = self._qp(None), self._planners()[0]
        coarse = clamped_qp(qp + QUICK_STEP)
        if self.asked.size_ratio is not None:
            most = int(self.snapshot.raw_bytes / self.asked.size_ratio)
            found = planner.within(coarse, most)
            if found is None:
                raise cannot_be_met(most, planner.smallest(coarse))
        else:
            found = planner.losing(coarse, planner.one_tier_damage(qp))
        return PlannedSession(found.encoded, self._table(found.encoded, planner.scorer), (), planner.scorer)

    def _settings(self) -> CommonSettings:
        return CommonSettings(quality=self.asked.quality, size_ratio=self.asked.size_ratio)

    def _planners(self) -> list[Planner]:
        return [
            Planner(
                self.codec,
                self.snapshot,
                scorer.name,
                scored(scorer, self.evidence),
                self.constraints,
                self._settings(),
            )
            for scorer in self.scorers
        ]

    def _qp(self, judge: Judge | None) -> int:
        """Return the QP of the file of one tier that answers what was asked, as nearly as one tier can."""
        if self.asked.size_ratio is not None:
            try:
                one_tier = encode_at_size_ratio(self.codec, self.snapshot, self.asked.size_ratio)
                return TinyVAESettings.from_json(one_tier.settings).qp
            except InputError:  # one tier cannot be so small; a plan may
                return 0
        if self.asked.max_kl_nats is not None and judge is not None:
            low, high = 0, HIGHEST_QP // 2
            while low < high:
                middle = (low + high) // 2
                kept = one_tier_kl(self.codec, self.snapshot, middle, judge)[2] <= self.asked.max_kl_nats
                low, high = (low, middle) if kept else (middle + 1, high)
            return low
        return self.codec.qp_of(str(self.asked.quality))

    def _allowed(self, one_tier_kl_nats: float) -> float:
        if self.asked.max_kl_nats is not None:
            return self.asked.max_kl_nats
        bounds = {tier.name: MARGIN * tier.max_kl_nats for tier in TIERS}
        # As good as one tier is on this session; where the codec does not know its kind, as good as the word promises.
        return min(one_tier_kl_nats, bounds.get(str(self.asked.quality), one_tier_kl_nats))

    def _one_tier_wins(self, best: Result, file_bytes: int, kl: float) -> bool:
        """Tell whether not planning is at least as good and lawful."""
        lawful = self.asked.keep_fraction is None and bool((self.constraints.floor <= int(Tier.COARSE)).all())
        if self.asked.size_ratio is not None:
            fits = file_bytes <= self.snapshot.raw_bytes / self.asked.size_ratio
            return lawful and fits and kl < best.kl_nats
        return lawful and kl <= self._allowed(kl) and file_bytes < best.planned.file_bytes

    def _table(self, encoded: Encoded, winner: str) -> Table:
        texts = self.text.pieces if self.text is not None else ()
        table = table_of(encoded, self.codec, WithExact(self.codec).decode(encoded), texts)
        name = winner.partition("+")[0]
        scorer = next((scorer for scorer in self.scorers if scorer.name == name), self.scorers[0])
        parts = {part: values.tolist() for part, values in parts_of(scorer, self.evidence).items()}
        return replace(table, anchors=kinds_of(self.anchors, self.snapshot.tokens), parts=parts)


def anchored_constraints(tokenizer: Tokenizer | None, snapshot: KVSnapshot, asked: Asked) -> Constraints:
    """Return what a plan must keep to, from tokens and text alone.

    Raises:
        InputError: Marks match nothing, or there is no tokenizer to find them with.
    """
    if tokenizer is None:
        if asked.patterns or asked.messages:
            raise InputError("nothing can be marked without the model's tokenizer", "Save one beside the model")
        anchors = [Anchor(SINK, 0, min(SINK_TOKENS, snapshot.tokens))]
    else:
        text = text_of(tokenizer, snapshot.token_ids)
        anchors = find_anchors(text, marks=marked(text, asked.patterns, asked.messages))
    return Constraints(floor_of(anchors, snapshot.tokens, asked.guarantees), asked.keep_fraction)


def encode_pruned(
    encode: Callable[[KVSnapshot], Encoded], evidence: Evidence, scorer: Scorer, constraints: Constraints
) -> Encoded:
    """Drop tokens by a scorer's order alone and let any codec encode the rest; exact tokens are laid over it.

    Args:
        encode: Any codec's `encode`.
        evidence: What the scorer needs.
        scorer: Whose order it is.
        constraints: How many stay, and which must.
    """
    kept = choose_kept(constraints, scored(scorer, evidence))
    pruned = drop(evidence.snapshot, kept)
    return with_exact(encode(pruned), pruned, constraints.floor == int(Tier.EXACT))


def named_guarantees(words: Sequence[str]) -> dict[str, Tier]:
    """Return guarantees from words such as "number=coarse", the others as they are by default.

    Raises:
        InputError: A word is not KIND=TIER of a known kind and tier.
    """
    found = dict(GUARANTEES)
    for word in words:
        kind, sign, tier = word.partition("=")
        if not sign or kind not in GUARANTEES:
            raise InputError(f"{word!r} is not KIND=TIER", f"Kinds are {', '.join(GUARANTEES)}")
        found[kind] = tier_named(tier)
    return found
