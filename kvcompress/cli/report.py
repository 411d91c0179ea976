"""`kvcompress report`: fidelity of one file after a true decode and resume."""

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
from kvcompress.errors import InputError
from kvcompress.hub.bundled import DEFAULT_MODEL


def report(
    file: KvzArgument,
    session: Annotated[Path, typer.Option(help="Sessions among which the file's own is.")],
    output: Annotated[Path, typer.Option("-o", "--output", help="Directory for report.json, .md and .html.")],
    session_id: Annotated[str | None, typer.Option("--id", help="Its id; found by its tokens if not given.")] = None,
    model: ModelOption = DEFAULT_MODEL,
    codec: CodecOption = None,
    max_memory: MaxMemoryOption = DEFAULT_MAX_MEMORY,
    as_json: JsonOption = False,
) -> None:
    """Decode a file, resume from it, and compare with the exact cache: JSON, Markdown and HTML."""
    require_packages("a report", ("jinja2", "matplotlib"), "report")
    from kvcompress.format.atomic_directory import require_directory
    from kvcompress.format.limits import memory_limit
    from kvcompress.hf import load_model
    from kvcompress.report import write_report
    from kvcompress.report.measure import measure_file

    if not output.is_dir():
        require_directory(output)
    language_model, tokenizer = load_model(model)
    if tokenizer is None:
        raise InputError("the model has no tokenizer", "Save one beside the model", path=model)
    with memory_limit(max_memory):
        result = measure_file(language_model, tokenizer, session, session_id, file, codec)
    write_report(result, output)
    if as_json:
        show(result, as_json=True)
        return
    keys = ("size_ratio", "file_bytes", "raw_bytes", "kl_nats", "context_lost", "top1_agreement", "recall", "verdict")
    show({key: result[key] for key in keys} | {"report": str(output / "report.html")}, as_json=False)
