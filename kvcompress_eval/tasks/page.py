"""The report of a run: report.json, report.md, report.html and two pictures."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from kvcompress.report.files import write_files
from kvcompress.report.spelling import count_of, spell
from kvcompress_eval.real_model.words import command, counted, paragraph, table, verdict
from kvcompress_eval.tasks.html import render_html
from kvcompress_eval.tasks.ladder import LEAST_ACCURACY
from kvcompress_eval.tasks.picture import draw_accuracy, draw_places, placed
from kvcompress_eval.tasks.spelling import difference, ladder_in_words, percent, size_ratio, told_of

Result = Mapping[str, Any]
ACCURACY, PLACES = "accuracy.svg", "places.svg"


def write_page(result: Result, out: Path) -> None:
    """Write the report into a directory that exists; each file appears whole or not at all."""
    files = {"report.json": json.dumps(result, indent=1) + "\n", "report.md": page(result)}
    if any(task["candidates"] for task in result["tasks"]):
        files[ACCURACY] = draw_accuracy(result, alone=True) + "\n"
    if placed(result) is not None:
        files[PLACES] = draw_places(result, alone=True) + "\n"
    files["report.html"] = render_html(result)
    write_files(out, files)


def page(result: Result) -> str:
    """Return the report as Markdown of 80 columns."""
    measured = [task for task in result["tasks"] if task["candidates"]]
    parts = [
        f"# Tasks: {result['model']['name']}",
        paragraph(introduction(result)),
        "## Accuracy",
        *([f"![Accuracy of each candidate on each task]({ACCURACY})"] if measured else []),
        *overview(result),
        *targets(result),
        *(part for task in result["tasks"] for part in _task(task)),
        *_places(result),
        *_kvtc(result),
        "## Made by",
        command(result["command"]),
        paragraph(made_by(result)),
    ]
    return "\n\n".join(parts) + "\n"


def introduction(result: Result) -> str:
    """Return what was done to each context, in sentences."""
    fractions = ", ".join(f"{fraction:.0%}" for fraction in result["settings"]["keep_fractions"])
    told = [
        f"""Each context is read once. Its cache is encoded, saved, sized by stat, loaded, decoded and restored, and
        asked what the exact cache is asked: greedily, unless a task says otherwise. Sizes are the largest at which the
        exact cache answers at least {LEAST_ACCURACY:.0%}, found on contexts that are not measured. In brackets stand
        95 % intervals, by resampling contexts; those of differences resample both caches together."""
    ]
    if result["kvtc"]:
        told.append(
            """KVTC, in its strongest form, has for each quality the size ratio at which it loses the same KL on
            harvested sessions that fitted neither."""
        )
    if fractions:
        told.append(
            f"""A plan keeps {fractions} of the tokens in memory, chosen by {result["settings"]["scorer"]} before any
            question is known, coded at the finest quality; "newest" keeps as many, the first four and the newest, at
            16 bits."""
        )
    return " ".join(" ".join(told).split())


def overview(result: Result) -> list[str]:
    """Return accuracy of every candidate on every task, and what each loses on average."""
    measured = [task for task in result["tasks"] if task["candidates"]]
    if not measured:
        return ["Nothing was measured: the exact cache answers too little of every task."]
    names = [one["name"] for one in result["candidates"]]
    rows = [[name, *(_accuracy_of(task, name) for task in measured)] for name in names]
    means = [[one["name"], spell(one["accuracy"], "points"), difference(one["difference"])] for one in result["means"]]
    return [
        table(("% right", *(task["short"] for task in measured)), rows),
        paragraph("Mean over tasks, and how far it lies from the exact cache, in points:"),
        table(("", "% right", "to exact"), means),
        *_below(result),
    ]


def _accuracy_of(task: Mapping[str, Any], name: str) -> str:
    found = next((one for one in task["candidates"] if one["name"] == name), None)
    return "-" if found is None else spell(found["accuracy"]["value"], "points")


def _below(result: Result) -> list[str]:
    """Return what must be said of tasks that the exact cache is not up to."""
    found = []
    for task in result["tasks"]:
        if not task["candidates"]:
            best = max(one["accuracy"] for one in task["tried"])
            told = f"no size of {task['title']} is one that the exact cache is up to; at best it answers {best:.0%}"
            found.append(paragraph(f"Not measured: {told}. {ladder_in_words(task)}"))
        elif not task["enough"]:
            told = f"the exact cache answers less than {LEAST_ACCURACY:.0%} of {task['title']} where it was measured"
            found.append(paragraph(f"Read with care: {told}, so it is in no target."))
    return found


def targets(result: Result) -> list[str]:
    """Return how much less each quality may answer than the exact cache, beside what was measured."""
    titles = {task["name"]: task["title"] for task in result["tasks"]}
    rows = [
        [titles[one["task"]], one["quality"], f"{100 * one['wanted']:+.0f}", difference(one), verdict(one)]
        for one in result["checks"]
    ]
    if not rows:
        return []
    legend = 'Points to the exact cache, against the least allowed; "?" where the interval reaches over it:'
    return ["## Targets", paragraph(legend), table(("task", "quality", "least", "measured", ""), rows)]


def _task(task: Mapping[str, Any]) -> list[str]:
    if not task["candidates"]:
        return []
    rows = [
        [
            one["name"],
            percent(one["accuracy"]),
            "" if one["kind"] == "exact" else difference(one["difference"]),
            size_ratio(one),
        ]
        for one in task["candidates"]
    ]
    stored = [
        [one["name"], counted(one["stored"]), str(one["unlike"]), *_seconds(one)]
        for one in task["candidates"]
        if "stored" in one
    ]
    return [
        f"## {task['title'][0].upper()}{task['title'][1:]}",
        paragraph(told_of(task)),
        table(("", "% right", "to exact", "size ratio"), rows),
        table(("", "stored as", "unlike", "encode", "decode"), stored),
        *(paragraph(f"{name} could not be measured: {why}") for name, why in task["failed"].items()),
    ]


def _seconds(one: Mapping[str, Any]) -> list[str]:
    return [spell(one[f"{name}_seconds"], "seconds") for name in ("encode", "decode")]


def _places(result: Result) -> list[str]:
    task = placed(result)
    if task is None:
        return []
    stretches = [stretch["place"] for stretch in task["candidates"][0]["by_place"]]
    rows = [
        [one["name"], *(spell(part["accuracy"], "points") for part in one["by_place"])] for one in task["candidates"]
    ]
    head = ("% right", *(f"{100 * low:.0f}-{100 * high:.0f} %" for low, high in stretches))
    return [
        "## By place in the context",
        paragraph(f"{task['title'][0].upper()}{task['title'][1:]}, by where the answer stands:"),
        f"![Accuracy by place]({PLACES})",
        table(head, rows),
    ]


def _kvtc(result: Result) -> list[str]:
    if not result["kvtc"]:
        return []
    rows = [
        [quality, f"{found['kl_nats']:.4f}", _aimed(found["aimed_ratio"])] for quality, found in result["kvtc"].items()
    ]
    told = """What a quality loses on harvested sessions over the 128 tokens that follow, and the size ratio at which
    KVTC loses as much there:"""
    return ["## KVTC at the same KL", paragraph(told), table(("quality", "KL (nats)", "KVTC's ratio"), rows)]


def _aimed(ratio: float | None) -> str:
    return "off its curve" if ratio is None else f"{ratio:.1f}"


def made_by(result: Result) -> str:
    """Return commit, versions and threads."""
    versions = ", ".join(
        f"{name} {result['versions'][name]}"
        for name in ("torch", "transformers", "lm_eval")
        if name in result["versions"]
    )
    return f"Commit {str(result['commit'])[:12]}, {versions}, {count_of(result['threads'], 'thread')}."
