"""What was measured of sessions in segments, as tables."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict
from statistics import fmean

from eval.segments.run import Row
from kvcompress.codec.promise import QUALITIES
from kvcompress.metrics.conformal import beyond_allowed
from kvcompress.metrics.fidelity import TIERS
from kvcompress.report.tables import markdown_table

BYTES = ("quality", "tokens a segment", "bytes a session", "of once", "KL, nats", "of once", "unlike", "by section")
CAUSES = ("quality", "tokens a segment", "fixed", "tokens", "context", "ages", "unlike", "coder")
BOUNDS = ("quality", "tokens a segment", "resumed", "KL, nats", "beyond", "context lost", "beyond", "top-1", "beyond")

Cells = Sequence[str]


def tables(rows: Sequence[Row]) -> str:
    """Return three tables as Markdown: bytes beside KL, causes, and the losses beside what words promise."""
    groups = list(_grouped(rows))
    parts = [
        markdown_table(BYTES, [_bytes(group, _once(groups, group)) for group in groups]),
        "Bytes beyond one file of the session, by cause:",
        markdown_table(CAUSES, [cells for group in groups if (cells := _causes(group))]),
        "Every append that was resumed after stands for itself; *beyond* counts losses of more than twice the bound, "
        "beside how many a promise over so many sessions would allow:",
        markdown_table(BOUNDS, [_bounds(group) for group in groups]),
    ]
    return "\n\n".join(parts) + "\n"


def _grouped(rows: Iterable[Row]) -> Iterable[list[Row]]:
    found: dict[tuple[int, int], list[Row]] = {}
    for row in rows:
        found.setdefault((QUALITIES.index(row.quality), -row.segment_tokens), []).append(row)
    return (found[key] for key in sorted(found))


def _once(groups: Sequence[Sequence[Row]], group: Sequence[Row]) -> Sequence[Row]:
    return next(one for one in groups if one[0].quality == group[0].quality)


def kl(rows: Sequence[Row]) -> float:
    """Return the mean KL in nats over all resumed appends of some rows."""
    return fmean(loss.kl_nats for row in rows for loss in row.losses)


def _bytes(group: Sequence[Row], once: Sequence[Row]) -> Cells:
    size, whole = (fmean(row.size_bytes for row in rows) for rows in (group, once))
    names = sorted({name for row in group for name in row.sections})
    split = ", ".join(f"{name} {fmean(row.sections.get(name, 0) for row in group):,.0f}" for name in names)
    unlike, count = sum(row.unlike for row in group), sum(row.segments for row in group)
    told = _named(group)
    return [*told, f"{size:,.0f}", f"{size / whole:.2f}", f"{kl(group):.4f}", f"{kl(group) / kl(once):.2f}",
            f"{unlike} of {count}", split]  # fmt: skip


def _causes(group: Sequence[Row]) -> Cells:
    causes = [asdict(row.causes) for row in group if row.causes is not None]
    if not causes:
        return []
    return [*_named(group), *(f"{fmean(one[name] for one in causes):,.0f}" for name in CAUSES[2:])]


def _bounds(group: Sequence[Row]) -> Cells:
    tier = next(tier for tier in TIERS if tier.name == group[0].quality)
    losses = [loss for row in group for loss in row.losses]
    allowed = max(beyond_allowed(len(losses)), 0)
    cells = [*_named(group), str(len(losses))]
    worth = fmean(loss.context_worth_nats for loss in losses)
    found = (
        ([loss.kl_nats for loss in losses], tier.max_kl_nats),
        ([loss.kl_nats / worth for loss in losses], tier.max_context_lost),
        ([loss.top1_lost for loss in losses], 1 - tier.min_top1_agreement),
    )
    for values, bound in found:
        beyond = sum(value > 2 * bound for value in values)
        mark = "" if fmean(values) <= bound else " **missed**"
        cells += [f"{fmean(values):.4f} of {bound:.3g}{mark}", f"{beyond} of {allowed}"]
    return cells


def _named(group: Sequence[Row]) -> list[str]:
    once = group[0].segments == 1
    return [group[0].quality, f"{group[0].segment_tokens:,} (at once)" if once else f"{group[0].segment_tokens:,}"]
