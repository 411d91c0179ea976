"""A result as Markdown: the whole report, and the short table for the README."""

from __future__ import annotations

from collections.abc import Sequence

from kvcompress.report.facts import plain, visible
from kvcompress.report.spelling import NOTHING, spell, with_error
from kvcompress.report.tables import Column, Row, Table, fenced, inline
from kvcompress_eval.suite.report.facts import (
    CHIEF_BASELINE,
    OURS,
    TIER_NAMES,
    Best,
    Codec,
    Result,
    baseline_at_same_kl,
    best_points,
    circumstances,
    families,
    interval_at_same_kl,
    kl_nats,
    measured,
    recalled,
    recalled_uncompressed,
    size_ratio,
    smallest_file,
)
from kvcompress_eval.suite.report.order import all_tables
from kvcompress_eval.suite.report.particulars import particulars
from kvcompress_eval.suite.report.schema import validate
from kvcompress_eval.suite.report.series import strip_tables

MOST_README_ROWS = 16


def render_markdown(result: Result) -> str:
    """Return the whole report; `result` has been validated."""
    result = visible(plain(result))
    lines = [*_warning(result), f"# {inline(result['title'])}", "", f"{inline(circumstances(result))}.", ""]
    lines += [fenced(result["command"]), ""]
    lines += [best_table(result).markdown(), ""]
    for table in (*all_tables(result), *strip_tables(result)):
        lines += [f"## {inline(table.heading)}", "", *([inline(table.note), ""] if table.note else [])]
        lines += [table.markdown(), ""]
    run = tuple(Row(pair) for pair in particulars(result))
    lines += ["## This run", "", Table("", "", (Column("", False), Column("", False)), run).markdown()]
    return "\n".join(lines).rstrip() + "\n"


def readme_table(result: Result) -> str:
    """Return a short Markdown table: each family at each tier, with its largest size ratio there.

    Where there are more than 16 such rows, our family and the chief baseline keep theirs, the others keep the largest
    of each tier, and a line says how many are left out.

    Args:
        result: A result of the suite.

    Raises:
        InputError: The result does not follow the schema.
    """
    validate(result)
    result = visible(plain(result))
    listed = _readme_rows(result)
    kept = _thinned(listed)
    names = ("codec", "tier", "size ratio", "KL (nats)", "context lost", "top-1", "sensitive KL", "facts recalled")
    rows = [Row(_readme_cells(codec, tier), codec["family"]) for tier, codec in kept]
    columns = tuple(Column(name, name not in ("codec", "tier")) for name in names)
    exact = recalled_uncompressed(result)
    told = f"; the exact cache recalls {exact} facts" if exact else ""
    left_out = f" {len(listed) - len(kept)} rows of smaller ratio are left out." if len(kept) < len(listed) else ""
    last = f"{inline(circumstances(result) + told)}.{left_out} Made by {_code(result['command'])}."
    return "\n".join([*_warning(result), Table("", "", columns, tuple(rows)).markdown(), "", last]) + "\n"


def _readme_rows(result: Result) -> list[tuple[str, Codec]]:
    """Return tier and codec of every row; a codec that already stands at a stricter tier is not repeated."""
    rows: list[tuple[str, Codec]] = []
    for tier in TIER_NAMES:
        found = []
        for family in families(result):
            best = smallest_file([codec for codec in measured(result) if codec["family"] == family], tier)
            if best is not None and all(best["name"] != codec["name"] for _, codec in rows):
                found.append((tier, best))
        rows += sorted(found, key=lambda row: -size_ratio(row[1]))
    return rows


def _thinned(rows: list[tuple[str, Codec]]) -> list[tuple[str, Codec]]:
    """Return at most the rows that fit, in their order; the smallest ratios of each tier go first, in turn."""
    kept = list(rows)
    while len(kept) > MOST_README_ROWS:
        counts = {tier: sum(row[0] == tier for row in kept) for tier in TIER_NAMES}
        others = [row for row in kept if row[1]["family"] not in (OURS, CHIEF_BASELINE)]
        crowded = max({row[0] for row in others}, key=lambda tier: (counts[tier], tier))
        kept.remove(min((row for row in others if row[0] == crowded), key=lambda row: size_ratio(row[1])))
    return kept


def _readme_cells(codec: Codec, tier: str) -> tuple[str, ...]:
    found = codec["fidelity"]
    name = codec["name"]
    return (
        name,
        tier,
        with_error(codec["size"]["size_ratio"], "ratio"),
        spell(kl_nats(codec), "nats"),
        spell(found["context_lost"]["mean"], "share"),
        spell(found["top1_agreement"]["mean"], "share"),
        spell(found["sensitive_kl_nats"]["mean"], "nats") if found["sensitive_kl_nats"] else NOTHING,
        recalled(codec),
    )


def best_table(result: Result) -> Table:
    """Return the best points: for each tier ours, the best baseline in the tier, and the best one at the same KL."""
    columns = (Column("tier", False), Column(OURS, False), Column("size ratio"), Column("best baseline", False))
    compared = (Column("size ratio"), Column("ours over theirs"), Column("best baseline at our KL", False))
    rows = [Row((best.tier, *_best_cells(best), *_same_kl_cells(result, best))) for best in best_points(result)]
    return Table("", "", (*columns, *compared, Column("size ratio"), Column("ours over theirs")), tuple(rows))


def _same_kl_cells(result: Result, best: Best) -> tuple[str, str, str]:
    baseline = baseline_at_same_kl(result, best.ours) if best.ours else None
    if baseline is None or best.ours is None:
        return NOTHING, NOTHING, NOTHING
    found = interval_at_same_kl(result, best.ours, baseline[0])
    return baseline[0], spell(baseline[1], "ratio"), found or f"{size_ratio(best.ours) / baseline[1]:.2f}"


def _best_cells(best: Best) -> tuple[str, ...]:
    cells: list[str] = []
    for codec in (best.ours, best.baseline):
        cells += [codec["name"], with_error(codec["size"]["size_ratio"], "ratio")] if codec else [NOTHING] * 2
    both = best.ours and best.baseline
    return (*cells, f"{size_ratio(best.ours) / size_ratio(best.baseline):.2f}" if both else NOTHING)  # type: ignore[arg-type]


def _code(text: str) -> str:
    """Return text as code in a line, as it is if it has no backtick."""
    joined = " ".join(text.split())
    return f"`{joined}`" if joined and "`" not in joined else inline(joined)


def _warning(result: Result) -> Sequence[str]:
    return (f"> **Warning: {inline(result['warning'])}**", "") if result["warning"] else ()
