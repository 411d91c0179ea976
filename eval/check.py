"""A check of minutes: every quality word of a codec on a few sessions, against its three bounds and a least size.

Whole files, decoded and resumed, as in the report; only fewer. Means over the sessions are held to the bounds of the
word. Of the most likely token a few hundred positions are counted, and such a count strays by chance: a share counts as
broken where it is two standard errors of counting beyond its bound. Sizes are held to three quarters of what the
codec's calibration found, so that a change that makes files larger is noticed.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean
from typing import Any

from kvcompress.codec.facts import Part
from kvcompress.errors import InputError
from kvcompress.metrics.fidelity import TIERS, Tier
from kvcompress_eval.real_model.codecs import Measured
from kvcompress_eval.real_model.measure import measure, our_point
from kvcompress_eval.real_model.subject import choose, prepare
from kvcompress_eval.suite.damage import NEAR_TOKENS
from kvcompress_eval.suite.rows import Row

LEAST_SHARE = 0.75
"""Of the size ratio that calibration found: four sessions of another source reached .82 to .91 of it."""

STANDARD_ERRORS = 2.0

Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Verdict:
    """One quality word of one codec.

    Attributes:
        codec: Its name in tables.
        tier: The word and its bounds.
        size_ratio: Raw 16-bit bytes over file bytes, mean over sessions; this and the next are None where the codec
            does not promise the word.
        kl_nats: Mean KL(exact || decoded).
        context_lost: That over what the context is worth.
        top1: Share of positions with the same most likely token.
        least_ratio: Least size ratio; None where calibration found none.
        least_top1: The bound, less what a count of so many positions strays.
        broken: What does not hold, in words.
    """

    codec: str
    tier: Tier
    size_ratio: float | None = None
    kl_nats: float | None = None
    context_lost: float | None = None
    top1: float | None = None
    least_ratio: float | None = None
    least_top1: float = 0.0
    broken: tuple[str, ...] = field(default=("not promised",))


def check(
    model: Any,
    tokenizer: Any,
    codecs: Sequence[tuple[Measured, Part]],
    sessions: Path,
    tokens: int,
    count: int,
    say: Say = lambda line: None,
) -> list[Verdict]:
    """Measure every quality word of codecs on the first sessions of a file.

    Args:
        model: The model.
        tokenizer: Its tokenizer.
        codecs: Each with what its directory says of it.
        sessions: JSON lines; each is cut after `tokens` tokens and resumed over the next 128.
        tokens: Stored of each session.
        count: How many sessions.
        say: Called with a line as each session is done.

    Raises:
        InputError: Fewer sessions are long enough.
    """
    chosen = choose(model, tokenizer, "check", sessions, count, tokens, NEAR_TOKENS)
    if len(chosen) < count:
        what = f"{len(chosen)} sessions have {tokens + NEAR_TOKENS} tokens, the check takes {count}"
        raise InputError(what, "Give longer ones", path=sessions)
    rows: dict[tuple[str, str], list[Row]] = {}
    with tempfile.TemporaryDirectory(prefix="kvcompress-check-") as place:
        for one in chosen:
            subject = prepare(model, tokenizer, one)
            for measured, _ in codecs:
                for word in measured.qualities:
                    row = measure(model, our_point(measured.name, measured.codec, word), subject, Path(place) / "a.kvz")
                    rows.setdefault((measured.name, word), []).append(row)
            say(f"{one.session.id}: {subject.snapshot.tokens} tokens stored, {len(one.following)} resumed over")
    return [
        _verdict(measured.name, tier, part, rows.get((measured.name, tier.name), []))
        for measured, part in codecs
        for tier in TIERS
    ]


def _verdict(name: str, tier: Tier, part: Part, rows: Sequence[Row]) -> Verdict:
    if not rows:
        return Verdict(name, tier)
    ratio = fmean(row["raw_bytes"] / row["file_bytes"] for row in rows)
    kl, top1 = fmean(row["kl_near_nats"] for row in rows), fmean(row["top1_near"] for row in rows)
    lost = kl / fmean(row["worth_near_nats"] for row in rows)
    known = part.promises[tier.name].size_ratio or part.coded_ratios.get(tier.name)
    least = None if known is None else LEAST_SHARE * known
    share = tier.min_top1_agreement
    least_top1 = share - STANDARD_ERRORS * math.sqrt(share * (1 - share) / (len(rows) * NEAR_TOKENS))
    holds = {
        "size ratio": least is None or ratio >= least,
        "KL": kl <= tier.max_kl_nats,
        "context lost": lost <= tier.max_context_lost,
        "top-1": top1 >= least_top1,
    }
    broken = tuple(name for name, held in holds.items() if not held)
    return Verdict(name, tier, ratio, kl, lost, top1, least, least_top1, broken)


HEAD = ("codec", "quality", "size ratio", "KL (nats)", "context lost", "top-1", "broken")


def table(verdicts: Sequence[Verdict]) -> Iterator[list[str]]:
    """Yield a row for each quality word: what was measured and, in brackets, what it must reach."""
    for one in verdicts:
        measured = ["", "", "", ""]
        if one.size_ratio is not None and one.kl_nats is not None and one.context_lost is not None and one.top1:
            least = "-" if one.least_ratio is None else f"{one.least_ratio:.1f}"
            measured = [
                f"{one.size_ratio:.1f} ({least})",
                f"{one.kl_nats:.4f} ({one.tier.max_kl_nats:g})",
                f"{one.context_lost:.2%} ({one.tier.max_context_lost:.0%})",
                f"{one.top1:.2%} ({one.least_top1:.2%})",
            ]
        yield [one.codec, one.tier.name, *measured, ", ".join(one.broken)]
