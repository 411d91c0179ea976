"""What the report holds beside the codecs' entries: controls, bound, drift, economics, where bits and damage fall."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import torch

from kvcompress.codec.promise import LATENTS
from kvcompress.hf import capture
from kvcompress.metrics.fidelity import TIERS
from kvcompress.snapshot import KVSnapshot
from kvcompress_eval.baselines.persistence import original_sizes
from kvcompress_eval.baselines.protocol import Baseline
from kvcompress_eval.baselines.registry import OWN
from kvcompress_eval.baselines.tinyvae import TinyVAEPoint
from kvcompress_eval.suite.bound import BoundOf
from kvcompress_eval.suite.controls import over_sessions
from kvcompress_eval.suite.costs import economics, kept_lengths
from kvcompress_eval.suite.drift import drifts
from kvcompress_eval.suite.equal_kl import equal_kl
from kvcompress_eval.suite.layers import bits_by_layer
from kvcompress_eval.suite.measure import Row
from kvcompress_eval.suite.published import FIXED_RATE, published
from kvcompress_eval.suite.report.facts import RECOMPUTED, is_ours
from kvcompress_eval.suite.rows import Rows
from kvcompress_eval.suite.settings import SuiteSettings

if TYPE_CHECKING:
    from kvcompress_eval.suite.run import Suite

Advance = Callable[[str, int, int], None]


def extras(suite: Suite, settings: SuiteSettings, rows: Rows, advance: Advance, *, show_text: bool) -> dict[str, Any]:
    """Return every further part of the result; what fails is left out with the codec's own failure noted.

    Args:
        suite: The run, its rows measured.
        settings: Its size.
        rows: What is measured goes there.
        advance: Told of each part.
        show_text: Whether the result may hold what a session says.
    """
    chosen = featured(suite, settings.featured_baselines)
    latent = [point for point in _own(chosen) if is_latent(point)]
    parts: dict[str, Callable[[], Any]] = {
        "controls": lambda: [control.to_json() for control in over_sessions(suite.controls)],
        "original_formats": lambda: _original_formats(suite.sample),
        "bound": lambda: _bounds(suite, latent, settings.bound_sessions),
        "equal_kl": lambda: _equal_kl(suite),
        "published": lambda: published() if any(r.family in FIXED_RATE for r in suite.baselines) else [],
        "hops": lambda: drifts(suite, settings, _drifting(chosen, settings), rows, advance),
        "bits_by_layer": lambda: {p.name: bits_by_layer(p.codec, suite.sample, p.qp or 0) for p in latent},
        "strip": lambda: _strip(suite, latent, show_text=show_text),
        "economics": lambda: economics(suite, settings, chosen, rows),
    }
    found: dict[str, Any] = {}
    for done, (name, part) in enumerate(parts.items(), 1):
        value = part()
        if value:
            found[name] = value
        advance("further measures", done, len(parts))
    found.setdefault("controls", [])
    found["noise_floor_nats"] = max((control["kl_nats"] for control in found["controls"]), default=None)
    return found


def slow_extras(suite: Suite, settings: SuiteSettings, rows: Rows, advance: Advance) -> None:
    """Take the further measures that take long and whose codecs the first session decides: a run cut short has them."""
    chosen = featured(suite, settings.featured_baselines)
    drifts(suite, settings, _drifting(chosen, settings), rows, advance)
    kept_lengths(suite, settings, chosen, rows)


def _own(chosen: Sequence[Baseline]) -> list[TinyVAEPoint]:
    return [baseline for baseline in chosen if isinstance(baseline, TinyVAEPoint) and baseline.family == OWN]


def _drifting(chosen: Sequence[Baseline], settings: SuiteSettings) -> list[Baseline]:
    baselines = [baseline for baseline in chosen if not isinstance(baseline, TinyVAEPoint)]
    return [*_own(chosen), *baselines[: settings.hop_baselines]]


def featured(suite: Suite, most_baselines: int) -> list[Baseline]:
    """Return the points of the slow measures: this project's quality words, each baseline's smallest usable file.

    The first session decides, so that the choice is known before the others are measured. A family without a usable
    point is left out; of the others the smallest files come first, at most so many. The one that stores no cache is not
    among them: it is the prefill that all are held against.
    """
    found = [
        baseline
        for baseline in suite.baselines
        if isinstance(baseline, TinyVAEPoint) and baseline.name in suite.rows and baseline.quality
    ]
    best: dict[str, tuple[float, Baseline]] = {}
    for baseline in suite.baselines:
        rows = suite.rows.get(baseline.name)
        if (
            isinstance(baseline, TinyVAEPoint)
            or baseline.family == RECOMPUTED
            or not rows
            or baseline.name in suite.failures
        ):
            continue
        size = rows[0]["file_bytes"]
        if (
            mean_kl_nats(rows[:1]) <= TIERS[-1].max_kl_nats
            and size < best.get(baseline.family, (float("inf"), baseline))[0]
        ):
            best[baseline.family] = (size, baseline)
    ordered = sorted(best.values(), key=lambda pair: pair[0])
    return [*found, *(baseline for _, baseline in ordered[:most_baselines])]


def _equal_kl(suite: Suite) -> list[dict[str, Any]]:
    """Return how much larger baselines' files are at the KL of each of our points; those with all sessions count."""
    whole = [baseline for baseline in suite.baselines if len(suite.rows.get(baseline.name, [])) == len(suite.chosen)]
    ours = {baseline.name: suite.rows[baseline.name] for baseline in whole if is_ours(baseline.family)}
    families: dict[str, list[list[Row]]] = {}
    for baseline in whole:
        if not is_ours(baseline.family) and baseline.family != RECOMPUTED:
            families.setdefault(baseline.family, []).append(suite.rows[baseline.name])
    return equal_kl(ours, families)


def is_latent(point: TinyVAEPoint) -> bool:
    """Tell whether a point stores ordinary sessions as latents at a QP, and as nothing else."""
    if point.qp is None:
        return False
    return point.quality is None or point.codec.promises[point.quality].setting.kind == LATENTS


def mean_kl_nats(rows: Sequence[Row]) -> float:
    """Return the mean KL over the first following tokens, and over sessions."""
    return sum(sum(row["per_token_kl_nats"]) / len(row["per_token_kl_nats"]) for row in rows) / len(rows)


def _original_formats(snapshot: KVSnapshot) -> dict[str, float]:
    return {name: snapshot.raw_bytes / size for name, size in original_sizes(snapshot).items()}


def _bounds(suite: Suite, points: Sequence[TinyVAEPoint], sessions: int) -> list[dict[str, Any]]:
    """Return the bound of each point over the first sessions, and what was measured on these; none without a point."""
    bounds = {point.name: BoundOf(point.codec, point.qp or 0) for point in points}
    raw_bytes = count = 0
    for snapshot in _snapshots(suite, sessions if bounds else 0):
        for bound in bounds.values():
            bound.add(snapshot)
        raw_bytes, count = raw_bytes + snapshot.raw_bytes, count + 1
    return [
        {
            "name": name,
            "kl_nats": mean_kl_nats(suite.rows[name][:count]),
            "size_ratio": raw_bytes / count / found.bound_file_bytes,
            "measured_size_ratio": raw_bytes / count / found.file_bytes,
            "rate_over_bound": found.rate_over_bound,
            "sessions": count,
        }
        for name, found in ((name, bound.found()) for name, bound in bounds.items())
    ]


def _snapshots(suite: Suite, count: int) -> Iterator[KVSnapshot]:
    """Yield the caches of the first sessions again, one at a time."""
    for number, one in enumerate(suite.chosen[:count]):
        yield capture(suite.model, one.stored, tokenizer=suite.tokenizer) if number else suite.sample


def _strip(suite: Suite, points: Sequence[TinyVAEPoint], *, show_text: bool) -> dict[str, Any] | None:
    """Return the bits spent on each token of the first session, and the damage done to what followed.

    Its texts are there only where they may be shown.
    """
    # A session unlike the codec's own was stored at another QP than its quality's.
    ordinary = [point for point in points if not suite.rows[point.name][0]["unlike"]]
    if not ordinary:
        return None
    point = next((one for one in ordinary if one.quality == "high"), ordinary[0])
    first, row = suite.chosen[0], suite.rows[point.name][0]
    found: dict[str, Any] = {
        "codec": point.name,
        "session": first.session.id,
        "bits": point.codec.token_bits(suite.sample, point.qp or 0),
        "damage_nats": row.get("whole", row)["per_token_kl_nats"],
    }
    if show_text and suite.tokenizer is not None:
        found |= {"tokens": _texts(suite, first.stored), "continuation": _texts(suite, first.following)}
    return found


def _texts(suite: Suite, ids: torch.Tensor) -> list[str]:
    return [suite.tokenizer.decode([int(token)]) for token in ids]
