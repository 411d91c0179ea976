"""What all sub-commands share: options, output for people and machines, progress."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer

from kvcompress.errors import shown

ForceOption = Annotated[bool, typer.Option("--force", help="Replace an existing output file.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON object instead of text.")]
ModelOption = Annotated[
    str, typer.Option("--model", help="Bundled model, model directory, GGUF file, or Hub id such as user/repo.")
]
RecomputeModelOption = Annotated[
    str | None,
    typer.Option("--model", help="Model, for a file whose first layers it recomputes; named as elsewhere."),
]
RecomputeLayersOption = Annotated[
    str | None,
    typer.Option(
        help="Layers that the model runs when the session is restored, a number or a share of them (10%); "
        "the file leaves them out.",
        rich_help_panel="Recomputed layers",
    ),
]
CodecOption = Annotated[
    str | None,
    typer.Option(
        "--codec",
        help="Codec: what `codecs list` names, a directory, or a Hub id.",
        show_default="the one at hand that belongs to the session",
    ),
]
DtypeOption = Annotated[str, typer.Option("--dtype", help="float32, bfloat16 or float16.")]
KvzArgument = Annotated[Path, typer.Argument(help="A .kvz file.", metavar="FILE.kvz", show_default=False)]
MaxMemoryOption = Annotated[
    str,
    typer.Option(
        "--max-memory",
        metavar="SIZE",
        help="Refuse a file that would take more memory to decode: 4GB, 512MB or a number of bytes.",
    ),
]
DEFAULT_MAX_MEMORY = "4GB"
ProgressCallback = Callable[[str, int, int], None]


def show(data: Mapping[str, Any], *, as_json: bool) -> None:
    """Print a result: one JSON object, or a name and a value a line."""
    if as_json:
        sys.stdout.write(json.dumps(data) + "\n")
        return
    width = max(map(len, data), default=0)
    for name, value in data.items():
        write_line(f"{name.replace('_', ' '):<{width}}  {_spoken(name, value)}")


def write_line(text: str, *, error: bool = False) -> None:
    """Write a line on standard output, or standard error, that a file may have had a hand in.

    What does not print is escaped, and so are letters that the terminal's encoding does not have.
    """
    stream = sys.stderr if error else sys.stdout
    encoding = getattr(stream, "encoding", None) or "utf-8"
    stream.write(shown(text).encode(encoding, "backslashreplace").decode(encoding) + "\n")


def _spoken(name: str, value: Any) -> str:
    if name.endswith("_bytes") and isinstance(value, int):
        return f"{value:,} bytes"
    if name.endswith("_seconds") and isinstance(value, float):
        return f"{value:.3f} s"
    if isinstance(value, float):
        return f"{value:.4g}"
    return str(value)


LINE_SECONDS = 15.0
"""Without a terminal a line of progress comes so often, and one at the end of each stage."""


@contextmanager
def progress_bar(title: str) -> Iterator[ProgressCallback]:
    """Show progress on standard error, one bar or a few lines a stage, and give the callback that moves it."""
    if not sys.stderr.isatty():
        yield _Lines(title)
        return
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, TimeRemainingColumn(), console=Console(stderr=True)) as bars:
        tasks: dict[str, Any] = {}

        def advance(stage: str, done: int, total: int) -> None:
            if stage not in tasks:
                tasks[stage] = bars.add_task(f"{title}: {stage}", total=total)
            bars.update(tasks[stage], completed=done, total=total)

        yield advance


class _Lines:
    """Progress for logs: stage, how much is done, seconds so far and left."""

    def __init__(self, title: str) -> None:
        self.title, self.stage = title, ""
        self.begun = self.last = time.monotonic()

    def __call__(self, stage: str, done: int, total: int) -> None:
        now = time.monotonic()
        if stage != self.stage:
            self.stage, self.begun = stage, self.last
        elif now - self.last < LINE_SECONDS and done != total:
            return
        spent = now - self.begun
        left = spent * (total - done) / done if done else 0.0
        self.last = now
        sys.stderr.write(f"{self.title}: {stage} {done}/{total}, {spent:.0f} s, {left:.0f} s left\n")
        sys.stderr.flush()
