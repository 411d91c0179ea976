"""The tables of what a mean hides: the score that fails loudly, the tail, and what the whole continuation shows."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from kvcompress.report.spelling import NOTHING, with_error, with_interval
from kvcompress.report.tables import Table
from kvcompress_eval.suite.damage import NEAR_TOKENS
from kvcompress_eval.suite.report.facts import TIER_NAMES, Codec, Result, measured, promised_word
from kvcompress_eval.suite.report.tables import Cell, of_codecs


def score_table(result: Result) -> Table | None:
    """Return the harmonic score and what it is made of."""
    codecs = [codec for codec in measured(result) if codec.get("score")]
    if not codecs:
        return None
    cells: dict[str, Cell] = {"score": lambda codec: with_interval(codec["score"]["harmonic"], "score")}
    cells |= {name: _component(name) for name in codecs[0]["score"]["components"]}
    note = (
        "The harmonic mean of four shares, each in [0, 1]: what is kept of the context's worth by KL; the exact "
        "cache's greedy path before the first difference; planted facts still given, of those that the exact cache "
        "gives; what is kept of the context's worth over perturbed prompts, the least of typos, case and paraphrase. A "
        "share of 0 makes the score 0, and one that was not measured makes it absent. 95 % intervals by resampling "
        "sessions."
    )
    return of_codecs("Score", note, codecs, cells)


def _component(name: str) -> Cell:
    return lambda codec: with_interval(codec["score"]["components"][name], "score")


def tail_table(result: Result, *, whole: bool = False) -> Table | None:
    """Return the tail of each codec with intervals: over the first 128 tokens that followed, or over the whole."""
    found: dict[str, Mapping[str, Any]] = {}
    for codec in measured(result):
        tails = (codec.get("whole") or {}).get("tails") if whole else codec.get("tails")
        if tails:
            found[codec["name"]] = tails
    if not found:
        return None

    def cell(name: str, style: str, tier: str | None = None) -> Cell:
        def spelled(codec: Codec) -> str:
            figure = found[codec["name"]][name]
            return with_interval(figure if tier is None else figure[tier], style)

        return spelled

    def own(codec: Codec) -> str:
        word = promised_word(codec)
        return NOTHING if word is None else cell("sessions_beyond", "share", word)(codec)

    cells = {
        "99.9 % of tokens": cell("kl_p999_nats", "nats"),
        "worst step": lambda codec: with_error(found[codec["name"]]["worst_step_nats"], "nats"),
        "sessions with a step beyond .1": cell("sessions_with_bad_step", "share"),
        "sessions beyond its word's bound": own,
        **{f"sessions beyond {tier}": cell("sessions_beyond", "share", tier) for tier in TIER_NAMES},
    }
    tokens, positions = (
        result["sessions"]["continuation_tokens"],
        max(one.get("positions", 0) for one in found.values()),
    )
    over = f"all {tokens:,} tokens" if whole else f"the first {min(tokens, NEAR_TOKENS):,} tokens"
    counted = f" ({positions:,} positions)" if positions else ""
    note = (
        f"Over {over} that followed{counted}, in nats: the KL that 99.9 % of them stay under, the worst of all, the "
        "share of sessions with a step of more than .1 nats, and of sessions whose mean KL lies beyond the bound of "
        "the codec's own quality word and of each tier. 95 % intervals: of the percentile by resampling sessions, of "
        "shares of sessions Wilson's; a bound holds for the mean over sessions, so single ones may lie beyond it."
    )
    heading = "The tail over the whole continuation" if whole else "The tail"
    return of_codecs(heading, note, [codec for codec in measured(result) if codec["name"] in found], cells)


def whole_table(result: Result) -> Table | None:
    """Return the main measures over the whole continuation, where it is longer than the tiers' bounds ask."""
    codecs = [codec for codec in measured(result) if codec.get("whole")]
    if not codecs:
        return None
    cells: dict[str, Cell] = {
        "KL, nats": _over_whole("kl_nats", "nats"),
        "context lost": _over_whole("context_lost", "share"),
        "top-1": _over_whole("top1_agreement", "share"),
        "top-5": _over_whole("top5_agreement", "share"),
        "sensitive KL": _over_whole("sensitive_kl_nats", "nats"),
        "perplexity ratio": _over_whole("ppl_ratio", "number"),
    }
    tokens, sessions = result["sessions"]["continuation_tokens"], max(c["whole"].get("sessions") or 0 for c in codecs)
    note = f"Everywhere else figures are over the first {NEAR_TOKENS} tokens that followed; here over all {tokens:,}"
    note += f", on the first {sessions} session{'s' if sessions > 1 else ''}." if sessions else "."
    return of_codecs("Over the whole continuation", note, codecs, cells)


def _over_whole(name: str, style: str) -> Cell:
    return lambda codec: with_error(codec["whole"]["fidelity"].get(name), style)
