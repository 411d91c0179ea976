"""The report as a page of 80 columns: targets first, then everything that was measured, then how."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from kvcompress.report.files import write_files
from kvcompress.report.spelling import count_of
from kvcompress_eval.real_model.beside import beside_kvtc, codecs_and_fits, seconds_back
from kvcompress_eval.real_model.measured import measured_on, targets_of
from kvcompress_eval.real_model.picture import draw
from kvcompress_eval.real_model.words import command, counted, paragraph
from kvcompress_eval.suite.damage import NEAR_TOKENS

Result = Mapping[str, Any]
PICTURE = "rate-fidelity.svg"
SOURCES = {"test": "the codec's own source", "other": "another source"}


def write_page(result: Result, out: Path) -> None:
    """Write report.json, report.md and the picture into a directory that exists."""
    texts = {
        "report.json": json.dumps(result, indent=1) + "\n",
        PICTURE: draw(result) + "\n",
        "report.md": page(result),
    }
    write_files(out, texts)


def page(result: Result) -> str:
    """Return the report as Markdown."""
    parts = [
        f"# {result['model']['name']}",
        _introduction(result),
        "## Targets",
        *targets_of(result),
        f"![Size ratio and KL]({PICTURE})",
        *(part for source in result["sessions"] for part in measured_on(result, source)),
        *beside_kvtc(result),
        *seconds_back(result),
        *codecs_and_fits(result),
        "## Made by",
        command(result["command"]),
        paragraph(
            f"Commit {str(result['commit'])[:12]}, {_versions(result)}, {count_of(result['threads'], 'thread')}."
        ),
    ]
    return "\n\n".join(parts) + "\n"


def _introduction(result: Result) -> str:
    model, settings = result["model"], result["settings"]
    told = f"""{model["parameters"]:,} parameters, {model["layers"]} layers, {model["values_per_token"]:,} cached values
    a token. The first {settings["tokens"]:,} tokens of each session are stored: encoded at a quality word, saved, sized
    by stat, loaded, decoded, restored; the model then predicts the {settings["continuation_tokens"]} tokens that
    followed, and is compared with what it predicts from the exact cache. Raw size is 2 bytes a value. KL, context lost
    and top-1 are over the first {NEAR_TOKENS} of them, as the bounds ask, unless it says otherwise. What the context is
    worth (the KL to the model that sees the last 32 tokens only) is measured at every eighth position. In brackets
    stand 95 % intervals, by resampling sessions; "?" says that the interval reaches over the target. m is how many
    layers the model recomputes."""
    sessions = "; ".join(
        f"{found['count']} sessions of {SOURCES[source]} ({counted(found['categories'])})"
        for source, found in result["sessions"].items()
    )
    return paragraph(f"{told} Measured on {sessions}.")


def _versions(result: Result) -> str:
    return ", ".join(
        f"{name} {result['versions'][name]}" for name in ("torch", "transformers") if name in result["versions"]
    )


def _threads(result: Result) -> str:
    return count_of(result["threads"], "thread")
