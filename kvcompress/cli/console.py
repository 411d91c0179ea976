"""What all sub-commands share: options, output for people, machines and pipes, progress."""

from __future__ import annotations

import functools
import inspect
import io
import json
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, TextIO

import typer

from kvcompress.errors import InputError
from kvcompress.hub.trust import OPTION, trusting_remote_code

ForceOption = Annotated[bool, typer.Option("--force", help="Replace an existing output file.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON object on standard output instead of text.")]
ModelOption = Annotated[
    str, typer.Option("--model", help="Model: a bundled name, a directory, a GGUF file, or a Hub id such as user/repo.")
]
RecomputeModelOption = Annotated[
    str | None,
    typer.Option(
        "--model",
        help="Model that recomputes the first layers: a bundled name, a directory, a GGUF file or a Hub id. "
        "Needed only for files that leave these layers out.",
    ),
]
RecomputeLayersOption = Annotated[
    str | None,
    typer.Option(
        help="Number of first layers, or share of all layers (10%), that the file leaves out and the model computes "
        "again when the session is restored.",
        show_default="0",
        rich_help_panel="Recomputed layers",
    ),
]
CodecOption = Annotated[
    str | None,
    typer.Option(
        "--codec",
        help="Codec: a name from `kvcompress codecs list`, a directory, or a Hub id.",
        show_default="the installed one that fits the session",
    ),
]
DtypeOption = Annotated[
    str, typer.Option("--dtype", help="Data type that the model computes in: float32, bfloat16 or float16.")
]
SpecialTokensOption = Annotated[
    bool,
    typer.Option(
        "--special-tokens-in-text",
        help="Let text that spells a special token, such as <|end|>, be that token; otherwise it stays text.",
    ),
]
KvzArgument = Annotated[Path, typer.Argument(help="Stored session.", metavar="FILE.kvz", show_default=False)]
MaxMemoryOption = Annotated[
    str,
    typer.Option(
        "--max-memory",
        metavar="SIZE",
        help="Refuse a file that would take more memory to decode: 4GB, 512MB or a number of bytes.",
    ),
]
DEFAULT_MAX_MEMORY = "4GB"
TrustOption = Annotated[
    bool, typer.Option(OPTION, help="Run the Python code that comes with the model, if it needs any. Read it first.")
]
LINES = "\n\t"
"""What a text of several lines keeps when it is printed."""

STANDARD_OUTPUT = ("-", "/dev/stdout")
"""Names of standard output, where a command writes one file."""

ProgressCallback = Callable[[str, int, int], None]


def tolerant_streams() -> None:
    """Let standard output and error spell out what their encoding lacks, instead of failing on it.

    Raises:
        InputError: Standard output is closed, so that what a command prints would be lost.
    """
    nowhere: Any = functools.partial(open, os.devnull, encoding="utf-8")
    if sys.stdin is None:  # Python's way of saying that it was closed
        sys.stdin = nowhere()
    if sys.stderr is None:
        sys.stderr = nowhere(mode="w")
    if sys.stdout is None:
        sys.stdout = nowhere(mode="w")
        raise InputError("standard output is closed", "Send it to a file, or to /dev/null")
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def show(data: Mapping[str, Any], *, as_json: bool, file: TextIO | None = None) -> None:
    """Print a result, on standard output if not said otherwise: one JSON object, or a name and a value a line."""
    file = file or sys.stdout
    if as_json:
        file.write(json.dumps(data) + "\n")
        return
    from kvcompress.report.terminal import print_table

    print_table((), [(name.replace("_", " "), _spoken(name, value)) for name, value in data.items()], file=file)


def is_standard_output(output: Path) -> bool:
    """Return whether an output is standard output."""
    return str(output) in STANDARD_OUTPUT


def require_output(output: Path, force: bool, as_json: bool, *others: Path | None) -> None:
    """Refuse a file that could not be written later, or that standard output cannot take, before any work is done.

    Raises:
        InputError: As `kvcompress.format.atomic.require_writable` and, for `others`, `require_other`; standard output
            is a terminal, or `--json` wants it.
    """
    from kvcompress.format.atomic import require_writable

    if not is_standard_output(output):
        require_writable(output, force)
        require_other(output, *others)
    elif as_json:
        raise InputError("standard output takes the file or --json, not both", "Name a file with --output")
    elif sys.stdout.isatty():
        raise InputError("a terminal takes no such file", "Send standard output elsewhere, or name a file")


def require_other(output: Path, *others: Path | None) -> None:
    """Refuse an output that the command reads or writes as something else: `--force` is not meant for that."""
    if any(other is not None and os.path.realpath(other) == os.path.realpath(output) for other in others):
        raise InputError("this file has another part in the command already", "Choose another name", path=output)


@contextmanager
def written(output: Path) -> Iterator[Path]:
    """Give the path to write a file to; for standard output a temporary one, which goes there when the block ends."""
    if not is_standard_output(output):
        yield output
        return
    with tempfile.TemporaryDirectory(prefix="kvcompress-") as place:
        temporary = Path(place) / "output"
        yield temporary
        sys.stdout.flush()
        with temporary.open("rb") as file:
            shutil.copyfileobj(file, sys.stdout.buffer)
        sys.stdout.buffer.flush()


def beside(output: Path) -> TextIO:
    """Return where a command tells what it wrote: standard error where the file itself goes to standard output."""
    return sys.stderr if is_standard_output(output) else sys.stdout


def loads_models(command: Callable[..., None]) -> Callable[..., None]:
    """Return a command with the option to run a model's own code, where it takes a model; else the command itself."""
    signature = inspect.signature(command, eval_str=True)
    if "model" not in signature.parameters:
        return command

    @functools.wraps(command)
    def trusting(*args: Any, trust_remote_code: bool = False, **options: Any) -> None:
        with trusting_remote_code(trust_remote_code):
            command(*args, **options)

    option = inspect.Parameter(
        "trust_remote_code", inspect.Parameter.KEYWORD_ONLY, default=False, annotation=TrustOption
    )
    parameters = [*signature.parameters.values(), option]
    told: Any = trusting
    told.__signature__ = signature.replace(parameters=parameters)
    told.__annotations__ = {one.name: one.annotation for one in parameters}
    return trusting


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
