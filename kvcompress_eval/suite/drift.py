"""Drift over sessions: each hop's figures with intervals, judged against the tiers' bounds."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from kvcompress.format.container import from_bytes, to_bytes
from kvcompress.metrics.fidelity import tier_of
from kvcompress.snapshot import KVSnapshot
from kvcompress_eval.baselines.protocol import Baseline
from kvcompress_eval.suite.bootstrap import estimate_mean, estimate_ratio
from kvcompress_eval.suite.hops import Hop, Journey, drift, hop_worths
from kvcompress_eval.suite.rows import Rows, digest, identity_of
from kvcompress_eval.suite.settings import SuiteSettings
from kvcompress_eval.suite.spoken import reason_of

if TYPE_CHECKING:
    from kvcompress_eval.suite.run import Suite

Advance = Callable[[str, int, int], None]
HOP_START_TOKENS, HOP_TOKENS = 256, 128


def drifts(
    suite: Suite, settings: SuiteSettings, chosen: Sequence[Baseline], rows: Rows, advance: Advance
) -> dict[str, Any]:
    """Return the drift of some codecs, hop by hop; one that fails on the way is left out and says why."""
    sessions = suite.chosen[: settings.hop_sessions if settings.hops else 0]
    worths: list[list[float]] = []
    found: dict[str, list[list[Hop]]] = {baseline.name: [] for baseline in chosen}
    for number, one in enumerate(sessions):
        journey = Journey.over(one.ids, settings.hops, HOP_START_TOKENS, HOP_TOKENS)
        worths.append(_worths(suite, settings, journey, rows))
        for done, baseline in enumerate(chosen, 1):
            if baseline.name in found:
                try:
                    found[baseline.name].append(_hops(suite, settings, baseline, journey, rows))
                except Exception as error:  # a codec that fits whole sessions only has no drift to show
                    suite.failures.setdefault(f"{baseline.name} (drift)", reason_of(error))
                    del found[baseline.name]
            advance("hops", number * len(chosen) + done, len(sessions) * len(chosen))
    return {name: hop_figures(hops, worths) for name, hops in found.items() if hops}


def _worths(suite: Suite, settings: SuiteSettings, journey: Journey, rows: Rows) -> list[float]:
    key = ("hop worth", f"{settings.hops} hops, every {settings.worth_stride}", digest(journey.token_ids))
    row = rows.get(key)
    if row is None:
        worths = hop_worths(suite.model, suite.tokenizer, journey, settings.worth_stride)
        row = rows.add(key, {"hop_worth_nats": worths})
    return [float(worth) for worth in row["hop_worth_nats"]]


def _hops(suite: Suite, settings: SuiteSettings, baseline: Baseline, journey: Journey, rows: Rows) -> list[Hop]:
    key = ("hops", baseline.name, identity_of(baseline), f"{settings.hops} hops", digest(journey.token_ids))
    row = rows.get(key)
    if row is None:
        hops = drift(suite.model, suite.tokenizer, _coder(baseline), journey)
        row = rows.add(key, {"hops": [[hop.kl_nats, hop.top1_agreement] for hop in hops]})
    return [Hop(number, kl, same) for number, (kl, same) in enumerate(row["hops"], 1)]


def hop_figures(sessions: Sequence[Sequence[Hop]], worths: Sequence[Sequence[float]]) -> list[dict[str, Any]]:
    """Return each hop over sessions: KL with its interval, context lost, agreement, and the tier that holds there.

    Args:
        sessions: The hops of each session.
        worths: For each session and hop what the context is worth, in nats.
    """
    figures: list[dict[str, Any]] = []
    for number in range(min(map(len, sessions))):
        kl = [hops[number].kl_nats for hops in sessions]
        same = [hops[number].top1_agreement for hops in sessions]
        mean = estimate_mean(kl)
        lost = estimate_ratio(kl, [worth[number] for worth in worths]).mean
        top1 = estimate_mean(same).mean
        figures.append(
            {
                "hop": number + 1,
                "kl_nats": mean.mean,
                "kl_low_nats": mean.low,
                "kl_high_nats": mean.high,
                "context_lost": lost,
                "top1_agreement": top1,
                "tier": tier_of(mean.mean, lost, top1),
                "sessions": len(sessions),
            }
        )
    return figures


def _coder(baseline: Baseline) -> Callable[[KVSnapshot], KVSnapshot]:
    return lambda snapshot: baseline.decode(from_bytes(to_bytes(baseline.encode(snapshot))))
