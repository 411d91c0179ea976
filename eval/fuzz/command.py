"""`python -m eval fuzz`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def fuzz_command(
    cases: Annotated[int, typer.Option(help="Cases in all, with those of an earlier run.", min=1)] = 1_000_000,
    seed: Annotated[int, typer.Option(help="Decides all cases.")] = 0,
    out: Annotated[Path, typer.Option(help="Directory of counts and failures; a run there goes on.")] = Path(
        "reports/fuzz"
    ),
    processes: Annotated[int, typer.Option(help="Worker processes.", min=1)] = 2,
    replay_file: Annotated[
        Path | None, typer.Option("--replay", help="Read this file of failures/ again instead.")
    ] = None,
) -> None:
    """Read damaged and lying files of every kind; exit status 1 where one was not refused in one line or read right."""
    from eval.fuzz.run import FAILED, fuzz, replay, report_lines

    if replay_file is not None:
        told = replay(replay_file)
        typer.echo(told)
        raise typer.Exit(int(f": {FAILED}" in told))
    counts = fuzz(cases, seed, out, processes)
    lines = "\n".join(report_lines(counts))
    (out / "fuzz.txt").write_text(f"seed {seed}\n{lines}\n", encoding="utf-8")
    typer.echo(lines)
    raise typer.Exit(int(any(ended == FAILED for _, ended in counts)))
