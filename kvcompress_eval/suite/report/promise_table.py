"""What became of each quality word's promise: its bounds beside what was measured, kept or missed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from kvcompress.metrics.fidelity import TIERS, Tier
from kvcompress.report.spelling import NOTHING, spell, with_interval
from kvcompress.report.tables import Table
from kvcompress_eval.suite.report.facts import Codec, Result, measured, promised_word, size_ratio
from kvcompress_eval.suite.report.series import promise_over_hops
from kvcompress_eval.suite.report.tables import Cell, of_codecs

_BOUNDS = {tier.name: tier for tier in TIERS}


def promise_table(result: Result) -> Table | None:
    """Return for each quality word of ours whether its three bounds hold, over the first tokens and over all."""
    codecs = [codec for codec in measured(result) if promised_word(codec)]
    if not codecs:
        return None
    hops = result.get("hops") or {}

    def over_hops(codec: Codec) -> str:
        rows, word = hops.get(codec["name"]), promised_word(codec)
        return promise_over_hops(rows, word) if rows and word else NOTHING

    cells: dict[str, Cell] = {
        "size ratio": lambda codec: spell(size_ratio(codec), "ratio"),
        "KL, nats": lambda codec: _beside(codec, "kl_nats", "nats", _tier(codec).max_kl_nats),
        "context lost": lambda codec: _beside(codec, "context_lost", "share", _tier(codec).max_context_lost),
        "top-1": lambda codec: _beside(codec, "top1_agreement", "share", _tier(codec).min_top1_agreement),
        "all three": lambda codec: kept(codec["fidelity"], _tier(codec)),
        "over the whole": lambda codec: kept(codec["whole"]["fidelity"], _tier(codec)) if _whole(codec) else NOTHING,
        "worst step": lambda codec: _tail(codec, "worst_step_nats", "nats"),
        "sessions with a step beyond .1": lambda codec: _tail(codec, "sessions_with_bad_step", "share"),
        "at every hop": over_hops,
    }
    words = ("all three", "over the whole", "at every hop")
    note = (
        "Means over sessions with their 95 % intervals, and behind the bar what the word allows; KL and context lost "
        "at most, top-1 at least. Missed is missed, whatever the interval: one that reaches over the bound says that "
        "more sessions might have turned it. The last columns are no promises."
    )
    return of_codecs("Promises", note, codecs, cells, words)


def kept(fidelity: Mapping[str, Any], tier: Tier) -> str:
    """Return whether a tier's three bounds hold, or the names of those that do not."""
    held = {
        "KL": fidelity["kl_nats"]["mean"] <= tier.max_kl_nats,
        "context lost": fidelity["context_lost"]["mean"] <= tier.max_context_lost,
        "top-1": fidelity["top1_agreement"]["mean"] >= tier.min_top1_agreement,
    }
    missed = [name for name, holds in held.items() if not holds]
    return f"missed: {', '.join(missed)}" if missed else "kept"


def _tier(codec: Codec) -> Tier:
    return _BOUNDS[str(promised_word(codec))]


def _beside(codec: Codec, name: str, style: str, bound: float) -> str:
    return f"{with_interval(codec['fidelity'][name], style)} / {spell(bound, style)}"


def _whole(codec: Codec) -> bool:
    return bool(codec.get("whole"))


def _tail(codec: Codec, name: str, style: str) -> str:
    found = codec.get("tails")
    return with_interval(found[name], style) if found else NOTHING
