"""Decide whether a quality holds: a tier's conditions on the losses of all sessions, and the resulting promise."""

from __future__ import annotations

import math
from collections.abc import Sequence

from kvcompress.codec.other_weights import Nearest
from kvcompress.codec.promise import Loss, Promise, Setting
from kvcompress.fit.ledger import Facts, Ledger, Losses
from kvcompress.metrics.conformal import CLIP, FAR, beyond, beyond_allowed, beyond_stress, mean_stress, worth_stress
from kvcompress.metrics.fidelity import Tier

MEANS = ("kl_nats", "context_lost", "top1_lost")


def stresses(losses: Sequence[Losses], facts: Sequence[Facts], tier: Tier) -> dict[str, float]:
    """Return how near a setting is to breaking each condition of a tier; it holds where none is above 1.

    What the context is worth is noisy in one session, so of context lost a session is beyond where its KL is more than
    twice the bound's share of the *mean* worth.
    """
    kl, top1, worths = kls(losses), tops(losses), [fact.worth_nats for fact in facts]
    mean_importance = sum(worths) / max(len(worths), 1)
    return {
        "kl_nats": mean_stress(kl, tier.max_kl_nats),
        "context_lost": worth_stress(kl, worths, tier.max_context_lost, tier.max_kl_nats),
        "top1_lost": mean_stress(top1, max_top1_lost(tier)),
        "kl_beyond": beyond_stress(kl, tier.max_kl_nats),
        "context_beyond": beyond_stress(kl, tier.max_context_lost * mean_importance),
        "top1_beyond": beyond_stress(top1, max_top1_lost(tier)),
    }


def foreseen(losses: Sequence[Losses], facts: Sequence[Facts], tier: Tier, sessions: int) -> float:
    """Return the largest stress that so many sessions would have if all were like these few.

    Each condition on sessions beyond is one on the worst of these few: one of 8 stands for one of 20.
    """
    worst = max(max(kls(losses)) / tier.max_kl_nats, max(tops(losses)) / max_top1_lost(tier)) / FAR
    return max(worst, means_foreseen(losses, facts, tier, sessions))


def means_foreseen(losses: Sequence[Losses], facts: Sequence[Facts], tier: Tier, sessions: int) -> float:
    """Return the same of the conditions on means alone."""
    times = math.ceil(sessions / len(losses))
    means = stresses([*losses] * times, [*facts] * times, tier)
    return max(means[name] for name in MEANS)


def may_hold(losses: Sequence[Losses], tier: Tier, sessions: int) -> bool:
    """Tell whether a setting could still hold over so many sessions if those not seen yet lost nothing."""
    for numbers, bound in ((kls(losses), tier.max_kl_nats), (tops(losses), max_top1_lost(tier))):
        clipped = sum(min(number, CLIP * bound) for number in numbers) + CLIP * bound
        if clipped > bound * (sessions + 1) or beyond(numbers, bound) > beyond_allowed(sessions):
            return False
    return True


def promise_of(quality: str, tier: Tier, setting: Setting, losses: Sequence[Losses], facts: Sequence[Facts]) -> Promise:
    """Return the promise of a setting that holds, with its evidence."""
    sessions, kl, top1 = len(facts), kls(losses), tops(losses)
    worth, share = sum(fact.worth_nats for fact in facts), tier.max_context_lost
    ratios = [loss.size_ratio for loss in losses]
    return Promise(
        quality,
        setting,
        sessions,
        round(sum(fact.prefix_tokens for fact in facts) / sessions),
        round(sum(fact.continuation_tokens for fact in facts) / sessions),
        Loss(tier.max_kl_nats, _digits(sum(kl) / sessions), beyond(kl, tier.max_kl_nats)),
        Loss(share, _digits(sum(kl) / worth if worth else 0.0), beyond(kl, share * worth / sessions)),
        Loss(max_top1_lost(tier), _digits(sum(top1) / sessions), beyond(top1, max_top1_lost(tier))),
        _digits(sum(ratios) / sessions) if all(ratios) else None,
    )


def nearest_of(ledger: Ledger) -> Nearest:
    """Return the means of the setting with QPs that lost least, over the sessions that it was measured on."""
    runs = dict[Setting, list[int]]()
    for session, setting in ledger.losses:
        if setting.qp is not None:
            runs.setdefault(setting, []).append(session)

    def means(setting: Setting) -> Nearest:
        losses = [ledger.losses[session, setting] for session in runs[setting]]
        worth, count = sum(ledger.facts[session].worth_nats for session in runs[setting]), len(losses)
        kl = sum(kls(losses))
        return Nearest(count, kl / count, kl / worth if worth else math.inf, sum(tops(losses)) / count)

    return min(map(means, runs), key=lambda one: one.kl_nats)


def max_top1_lost(tier: Tier) -> float:
    """Return the largest share of most likely tokens that may change; 1 - .97 is .03, not .030000000000000027."""
    return _digits(1 - tier.min_top1_agreement)


def kls(losses: Sequence[Losses]) -> list[float]:
    """Return the KL of each session in nats."""
    return [loss.kl_nats for loss in losses]


def tops(losses: Sequence[Losses]) -> list[float]:
    """Return the top-1 loss of each session."""
    return [loss.top1_lost for loss in losses]


def _digits(number: float) -> float:
    return float(f"{number:.6g}")
