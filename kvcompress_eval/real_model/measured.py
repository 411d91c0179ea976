"""The page's tables of targets and of what was measured, source by source."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from kvcompress.report.spelling import spell
from kvcompress_eval.real_model.words import counted, named, nats, paragraph, ranged, ratio, share, table, verdict

Result = Mapping[str, Any]


def targets_of(result: Result) -> list[str]:
    """Return the targets beside what was measured, and the bounds."""
    checks, found = result["checks"], []
    if checks["size"]:
        rows = [[c["codec"], c["quality"], f">= {c['wanted']:g}", ratio(c), verdict(c)] for c in checks["size"]]
        found += ["Size ratio:", table(("codec", "quality", "target", "measured", ""), rows)]
    if checks["kvtc"]:
        rows = [[c["codec"], c["quality"], f">= {c['wanted']:g}", ratio(c), verdict(c)] for c in checks["kvtc"]]
        head = ("codec", "quality", "target", "measured", "")
        found += [paragraph("KVTC's files over ours at equal KL, KVTC in its best form:"), table(head, rows)]
    bounds = [[*key, *cells] for key, cells in _bounds(checks["bounds"]).items()]
    far = result["settings"]["continuation_tokens"]
    columns = ("codec", "quality", "source", "KL", "lost", "top-1", f"KL of {far}")
    legend = "Bounds (KL .005 / .02 / .08 nats, context lost 1 / 4 / 15 %, top-1 97 / 94 / 88 %):"
    return [*found, paragraph(legend), table(columns, bounds), *_failed(result)]


def _bounds(checks: Sequence[Mapping[str, Any]]) -> dict[tuple[str, str, str], list[str]]:
    rows: dict[tuple[str, str, str], list[str]] = {}
    for check in checks:
        rows.setdefault((check["codec"], check["quality"], check["source"]), []).append(verdict(check, "missed"))
    return rows


def _failed(result: Result) -> list[str]:
    told = [f"{one['name']}: {', '.join(one['not_promised'])}" for one in result["codecs"] if one["not_promised"]]
    return [paragraph(f"Not promised, so not measured: {'; '.join(told)}.")] if told else []


def measured_on(result: Result, source: str) -> list[str]:
    """Return sizes and damage on the sessions of one source."""
    points = [point for point in result["points"] if point["source"] == source]
    near = [[named(p), ratio(p["size_ratio"]), nats(p["kl_near_nats"]), share(p, "lost_near")] for p in points]
    head = ("codec, quality", "size ratio", "KL (nats)", "lost %")
    top = [
        [
            named(p),
            ranged(p["top1_near"], "per cent"),
            *(spell(p[f"worst_{x}_nats"], "short nats") for x in ("near", "far")),
        ]
        for p in points
    ]
    far = [[named(p), nats(p["kl_far_nats"]), share(p, "lost_far"), share(p, "top1_far")] for p in points]
    settings = result["settings"]
    return [
        f"## {'Own source' if source == 'test' else 'Another source'}, {points[0]['sessions']} sessions",
        table(head, near),
        table(("codec, quality", "top-1 %", "worst step", f"worst of {settings['continuation_tokens']}"), top),
        f"Over {settings['continuation_tokens']} further tokens:",
        table(("codec, quality", "KL (nats)", "lost %", "top-1 %"), far),
        *_categories(points),
        paragraph("How they are stored (unlike: stored finer, as sessions of another kind), median seconds:"),
        table(("codec, quality", "encode", "load, decode", "unlike", "stored as"), list(map(_stored, points))),
    ]


def _stored(point: Mapping[str, Any]) -> list[str]:
    seconds = [spell(point[f"{name}_seconds"], "seconds") for name in ("encode", "decode")]
    return [named(point), *seconds, str(point["unlike"]), counted(point["stored"])]


def _categories(points: Sequence[Mapping[str, Any]]) -> list[str]:
    rows = [
        [named(p), kind, ratio(f["size_ratio"]), spell(f["kl_near_nats"]["value"], "short nats"), share(f, "lost_near")]
        for p in points
        for kind, f in p["by_category"].items()
        if len(p["by_category"]) > 1
    ]
    head = ("codec, quality", "category", "size ratio", "KL (nats)", "lost %")
    return ["By category:", table(head, rows)] if rows else []
