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
SpecialTokensOption = Annotated[
    bool,
    typer.Option(
        "--special-tokens-in-text",
        help="Let text that spells a special token, such as <|end|>, be that token; otherwise it stays text.",
    ),
]
KvzArgument = Annotated[Path, typer.Argument(help="A .kvz file.", metavar="FILE.kvz", show_default=False)]
ProgressCallback = Callable[[str, int, int], None]


def show(data: Mapping[str, Any], *, as_json: bool) -> None:
    """Print a result: one JSON object, or a name and a value a line."""
    if as_json:
        sys.stdout.write(json.dumps(data) + "\n")
        return
    width = max(map(len, data), default=0)
    for name, value in data.items():
        sys.stdout.write(f"{name.replace('_', ' '):<{width}}  {_spoken(name, value)}\n")


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
