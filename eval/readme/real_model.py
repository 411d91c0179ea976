"""The report in a few rows, for the README: sizes and damage by quality, and KVTC at the same KL."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from kvcompress.report.spelling import TIMES, spell
from kvcompress_eval.real_model.words import table
from kvcompress_eval.suite.damage import NEAR_TOKENS

Result = Mapping[str, Any]
RAW_BYTES, MEGABYTE = 2, 1_000_000
HEAD = (
    "layers recomputed",
    "quality",
    "size ratio",
    "tokens in a megabyte",
    "KL (nats)",
    "context lost",
    "top-1",
    "KVTC at this KL",
    "restore",
)


def readme_table(result: Result) -> str:
    """Return the points of the codec's own source as a Markdown table, and a line on how they were measured."""
    points = [point for point in result["points"] if point["source"] == "test"]
    layers = {one["name"]: one["recompute_layers"] for one in result["codecs"]}
    rows = [_cells(point, layers, result) for point in points]
    settings, sessions = result["settings"], result["sessions"]["test"]["count"]
    baselines = f"on {result['kvtc'][0]['sessions']} of them, " if result["kvtc"] else ""
    last = (
        f"{result['model']['name']}, means over {sessions} sessions of {settings['tokens']:,} tokens that fitted and"
        f" verified nothing, {NEAR_TOKENS} tokens continued, whole files. KVTC is tuned to the model and"
        f" measured {baselines}its best form counts; restoring is beside prefilling. Made by `make report-smollm2`."
    )
    return table(HEAD, rows) + "\n\n" + last + "\n"


def _tokens_in_a_megabyte(point: Result, result: Result) -> str:
    """Return how many tokens of such sessions a million bytes hold, to three digits."""
    bytes_a_token = RAW_BYTES * result["model"]["values_per_token"] / point["size_ratio"]["value"]
    return f"{float(f'{MEGABYTE / bytes_a_token:.3g}'):,.0f}"


def _cells(point: Result, layers: Mapping[str, int], result: Result) -> tuple[str, ...]:
    named = (point["codec"], point["quality"])
    kvtc = [row for row in result["equal_kl"] if (row["codec"], row["quality"]) == named]
    timed = [row for row in result["timing"].get("table", ()) if (row["codec"], row["quality"]) == named]
    return (
        str(layers[point["codec"]]),
        point["quality"],
        spell(point["size_ratio"]["value"], "ratio"),
        _tokens_in_a_megabyte(point, result),
        spell(point["kl_near_nats"]["value"], "short nats"),
        spell(point["lost_near"]["value"], "share"),
        spell(point["top1_near"]["value"], "share"),
        f"{kvtc[0]['times']['value']:.1f}{TIMES} larger" if kvtc else "",
        f"{timed[0]['times_faster']:.1f}{TIMES} faster" if timed else "",
    )
