"""Choose the setting of each quality word: the coarsest that keeps it on held-out sessions.

Settings go from coarse to fine along two paths, latents by QP and then latents with a residual by QP, and end with
the lossless codec, which holds by construction. `kvcompress.fit.search` measures the candidates of a path on all
sessions; what "holds" means is in `kvcompress.metrics.conformal`. Of the QPs of a path that were measured on all
sessions the promised one holds and so does every finer one (fixed-sequence testing): losses fall with the QP only on
the whole, and a QP that holds between others that do not is luck. Nothing is assumed of the finest QP: where none
of a path holds, the next path is taken.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path as FilePath
from typing import Any

from kvcompress.codec.other_weights import Nearest
from kvcompress.codec.out_of_distribution import Figures, calibration_statistics
from kvcompress.codec.promise import FALLBACK, INT8, LATENTS, LOSSLESS, RESIDUAL, Promise, Setting
from kvcompress.codec.tinyvae import TinyVAECodec
from kvcompress.errors import InputError
from kvcompress.fit.search import Path, Progress, Sessions
from kvcompress.fit.trials import Bench, TrialSource, is_usable, trials_from_sessions
from kvcompress.fit.verdict import nearest_of, promise_of
from kvcompress.hf.types import CausalLM
from kvcompress.metrics.conformal import sessions_needed
from kvcompress.metrics.fidelity import MIN_CONTINUATION_TOKENS, TIERS, Tier


class TooFewSessionsError(InputError):
    """Sessions are too few, or too short, for any promise."""


@dataclass(frozen=True, slots=True)
class Calibration:
    """What was measured.

    Attributes:
        promises: Each quality word, and a "fallback" where int8 is as good as transparent.
        known: What sessions look like at each promised QP, see `kvcompress.codec.out_of_distribution`.
        nearest: What lost least of the settings with QPs, whatever it promises.
    """

    promises: dict[str, Promise]
    known: dict[str, Any]
    nearest: Nearest


def calibrate(
    model: CausalLM,
    codec: TinyVAECodec,
    trials: Sequence[TrialSource],
    *,
    progress: Progress = lambda stage, done, total: None,
    resume_file: FilePath | None = None,
) -> dict[str, Promise]:
    """Return what a codec can promise: each quality word, and a "fallback" where int8 is as good as transparent."""
    return calibrated(model, codec, trials, progress=progress, resume_file=resume_file).promises


def calibrated(
    model: CausalLM,
    codec: TinyVAECodec,
    trials: Sequence[TrialSource],
    *,
    progress: Progress = lambda stage, done, total: None,
    resume_file: FilePath | None = None,
    kinds: Sequence[str] = (LATENTS, RESIDUAL),
) -> Calibration:
    """Measure what a codec can promise, and what sessions look like there.

    With 40 sessions about 250 measurements, each of which decodes a session and runs the model over its continuation.

    Args:
        model: The codec's model, in evaluation mode.
        codec: The codec; it is not changed.
        trials: Sessions that it was not fitted to, of the kind that it is for. Those of fewer than 64 further tokens
            are left out. They are read one at a time, several times.
        progress: Called with stage, done, total.
        resume_file: Keeps each measurement, so that a run that was killed goes on. The caller removes it.
        kinds: Paths that are tried, in this order; what holds on none of them is stored without loss.

    Raises:
        TooFewSessionsError: Fewer than 19 sessions can be used; the message says how many more are needed.
        MismatchError: Codec, model and caches do not belong together.
    """
    usable = [trial for trial in trials if is_usable(trial)]
    require_enough(len(usable))
    sessions, transparent, eight = Sessions(Bench(model, codec, usable, resume_file), progress), TIERS[0], Setting(INT8)
    chosen: dict[str, Setting] = {}
    for kind in kinds:
        left = [tier for tier in TIERS if tier.name not in chosen]
        chosen |= Path(kind, sessions).coarsest(left) if left else {}
    if len(chosen) < len(TIERS):
        sessions.measure(Setting(LOSSLESS))
    found = {tier.name: _promise(sessions, tier.name, tier, chosen.get(tier.name, Setting(LOSSLESS))) for tier in TIERS}
    sessions.verify({eight: [transparent]})
    if eight in sessions.complete and sessions.stress(eight, transparent) <= 1:
        found[FALLBACK] = _promise(sessions, FALLBACK, transparent, eight)
    openings = [facts.opening_token for facts in sessions.facts(range(sessions.count))]
    return Calibration(
        found, calibration_statistics(_figures(sessions, chosen), openings), nearest_of(sessions.bench.ledger)
    )


def _figures(sessions: Sessions, chosen: Mapping[str, Setting]) -> dict[str, list[Figures]]:
    """Return what all sessions look like at each promised QP."""
    rated = {name: setting for name, setting in chosen.items() if setting.qp is not None}
    return {
        name: [Figures(one.bits_per_token, one.error) for one in sessions.losses(setting, range(sessions.count))]
        for name, setting in rated.items()
    }


def require_enough(sessions: int) -> None:
    """Raise `TooFewSessionsError` unless so many usable sessions suffice for a promise."""
    more, least = sessions_needed(sessions), 2 * MIN_CONTINUATION_TOKENS
    if more:
        what = f"{sessions} sessions of at least {least} tokens are too few to verify a quality on"
        raise TooFewSessionsError(what, f"Give {more} more of at least {least} tokens")


def _promise(sessions: Sessions, quality: str, tier: Tier, setting: Setting) -> Promise:
    everyone = range(sessions.count)
    return promise_of(quality, tier, setting, sessions.losses(setting, everyone), sessions.facts(everyone))


__all__ = ["TooFewSessionsError", "calibrate", "calibrated", "require_enough", "trials_from_sessions"]
