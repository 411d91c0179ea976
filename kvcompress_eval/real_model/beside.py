"""The page's tables beside the codec: KVTC and quoted figures, seconds, sizes of codecs, facts of fits."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from kvcompress.report.spelling import TIMES, count_of, spell
from kvcompress_eval.real_model.words import named, nats, paragraph, ratio, share, table

Result = Mapping[str, Any]


def beside_kvtc(result: Result) -> list[str]:
    """Return KVTC at equal KL, its curve, and what others say of theirs."""
    beside = ["### Quoted", *(_quoted(one) for one in result["quoted"])]
    if not result["kvtc"]:
        return ["## Beside others", *beside]
    rows = [
        [
            named(c),
            spell(c["kl_nats"], "short nats"),
            f"{c['size_ratio']:.1f}",
            f"{c['kvtc_size_ratio']:.1f}",
            ratio(c["times"]),
        ]
        for c in result["equal_kl"]
    ]
    curve = [[_form(p), ratio(p["size_ratio"]), nats(p["kl_near_nats"]), share(p, "top1_near")] for p in result["kvtc"]]
    count = result["kvtc"][0]["sessions"]
    told = f"""KVTC tuned again for this model: its axes, keys and values apart, fitted to harvested caches of other
    sessions, in three forms. kvtc-ideal has one step for all components, ideal static entropy coding and nothing raw;
    kvtc-ideal-sink1 the same with the first token raw; kvtc is as published, sinks and recent tokens raw. Sizes are of
    true files, on {count} of the sessions; at our KL they are read off between rates in logarithms, and the best form
    counts."""
    return [
        f"## KVTC at equal KL, {count} sessions",
        paragraph(told),
        table(("codec, quality", "KL (nats)", "ours", "KVTC", f"KVTC {TIMES} larger"), rows),
        table(("KVTC", "size ratio", "KL (nats)", "top-1 %"), curve),
        *beside,
    ]


def _form(point: Mapping[str, Any]) -> str:
    """Return a point's name, short: "ideal-sink1-16x", or "published-16x"."""
    rest = point["name"].removeprefix("kvtc-")
    return f"published-{rest}" if point["form"] == "kvtc" else rest


def _quoted(one: Mapping[str, Any]) -> str:
    points = ", ".join(f"{size:g}{TIMES} at {kl:g}" for size, kl in one["points"])
    return paragraph(f"{one['name']}: {points} nats ({one['source']}).")


def seconds_back(result: Result) -> list[str]:
    """Return seconds of restoring against prefilling; nothing where none were measured."""
    timing = result["timing"]
    if not timing:
        return []
    rows = [
        [named(row), spell(row["restore_seconds"], "seconds"), f"{row['times_faster']:.1f}"] for row in timing["table"]
    ]
    prefill, threads = spell(timing["prefill_seconds"], "seconds"), count_of(timing["threads"], "thread")
    told = f"""Prefilling {timing["tokens"]:,} tokens takes {prefill} with {threads}. Restoring is open, verify, decode,
    recompute, build the cache. Calls take turns, {timing["rounds"]} rounds after a warm-up; medians, and medians over
    {timing["sessions"]} sessions."""
    return [
        "## Restoring against prefilling",
        paragraph(told),
        table(("codec, quality", "restore", f"{TIMES} faster than prefilling"), rows),
    ]


def codecs_and_fits(result: Result) -> list[str]:
    """Return what each codec weighs and what its fit printed."""
    weights = result["model"]["bytes_16_bit"]
    rows = [
        [one["name"], f"{one['share']:.0%}", spell(one["codec_bytes"], "bytes"), f"{one['codec_bytes'] / weights:.1%}"]
        for one in result["codecs"]
    ]
    head = ("codec", "layers recomputed", "on disk", "of the model's 16-bit weights")
    found = ["## Codecs and fits", table(head, rows)]
    for name, facts in result["fit_facts"].items():
        told = [[key.replace("_", " "), _fact(key, value)] for key, value in facts.items()]
        found += [f"Fit `{name}`:", table(("fact", "value"), told)]
    return found


def _fact(name: str, value: Any) -> str:
    """Return a fact of a fit, short enough for the page."""
    if isinstance(value, int | float) and not isinstance(value, bool):
        for style in ("bytes", "seconds"):
            if name.endswith(f"_{style}"):
                return spell(value, style)
        return f"{value:,}" if isinstance(value, int) else f"{value:.4g}"
    text = value if isinstance(value, str) else json.dumps(value)
    return text if len(text) <= 50 else f"{text[:49]}…"
