"""`kvcompress report`: measure the fidelity of one file after decoding and resuming."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from kvcompress.cli.console import (
    DEFAULT_MAX_MEMORY,
    CodecOption,
    JsonOption,
    KvzArgument,
    MaxMemoryOption,
    ModelOption,
    show,
)
from kvcompress.cli.extras import require_packages
from kvcompress.cli.waiting import waiting
from kvcompress.errors import InputError
from kvcompress.hub.bundled import DEFAULT_MODEL


def report(
    file: KvzArgument,
    session: Annotated[Path, typer.Option(help="JSON lines of sessions that contain the recorded one.")],
    output: Annotated[
        Path, typer.Option("-o", "--output", help="Directory for report.json, report.md and report.html.")
    ],
    session_id: Annotated[
        str | None,
        typer.Option("--id", help="Id of the recorded session.", show_default="the one with the same tokens"),
    ] = None,
    model: ModelOption = DEFAULT_MODEL,
    codec: CodecOption = None,
    max_memory: MaxMemoryOption = DEFAULT_MAX_MEMORY,
    as_json: JsonOption = False,
) -> None:
    """Measure what a file loses: decode it, resume from it, and compare with the exact cache.

    The report is written as JSON, Markdown and HTML. It needs the extra `report`.
    """
    require_packages("a report", ("jinja2", "matplotlib"), "report")
    from kvcompress.format.atomic_directory import require_directory
    from kvcompress.format.limits import memory_limit
    from kvcompress.hf import load_model
    from kvcompress.report import write_report
    from kvcompress.report.measure import measure_file

    if not output.is_dir():
        require_directory(output)
    with waiting("report", "loading the model"):
        language_model, tokenizer = load_model(model)
    if tokenizer is None:
        raise InputError("the model has no tokenizer", "Save one beside the model", path=model)
    with memory_limit(max_memory), waiting("report", "decoding and measuring") as stage:
        result = measure_file(language_model, tokenizer, session, session_id, file, codec)
        stage("writing")
        write_report(result, output)
    if as_json:
        show(result, as_json=True)
        return
    keys = ("size_ratio", "file_bytes", "raw_bytes", "kl_nats", "context_lost", "top1_agreement", "recall", "verdict")
    show({key: result[key] for key in keys} | {"report": str(output / "report.html")}, as_json=False)
