"""`python -m eval real-model`: the report of a codec on a model that people run."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer


def real_model_command(
    model: Annotated[str, typer.Option(help="Model: a bundled name or a directory.")],
    codec: Annotated[str, typer.Option(help="Codec directory; its subdirectories recompute-<m> are measured too.")],
    sessions: Annotated[Path, typer.Option(help="JSON lines of sessions held out of the fit.")],
    out: Annotated[Path, typer.Option(help="Directory for rows and report; rows of an earlier run are kept.")],
    other: Annotated[Path | None, typer.Option(help="JSON lines of sessions from another source.")] = None,
    shards: Annotated[Path | None, typer.Option(help="Shards to fit KVTC to; without them KVTC is left out.")] = None,
    setting: Annotated[list[str], typer.Option(help="NAME=DIR: also measure this codec; give several for more.")] = [],  # noqa: B006
    fit_facts: Annotated[
        list[Path], typer.Option(help="Output of `kvcompress fit --json`; give several for more.")
    ] = [],  # noqa: B006
    count: Annotated[int, typer.Option(help="Number of sessions to measure.", min=1)] = 24,
    other_count: Annotated[int, typer.Option(help="Number of sessions of the other source.", min=1)] = 12,
    tokens: Annotated[int, typer.Option(help="Number of tokens of each session to store.", min=32)] = 1024,
    continuation: Annotated[int, typer.Option(help="Number of tokens to predict after them.", min=128)] = 512,
    kvtc_sessions: Annotated[int, typer.Option(help="Number of sessions to measure KVTC on.", min=1)] = 8,
    kvtc_fit_sessions: Annotated[int, typer.Option(help="Number of harvested sessions to fit KVTC to.", min=2)] = 24,
    timed_sessions: Annotated[int, typer.Option(help="Number of sessions to time.", min=0)] = 3,
    threads: Annotated[int, typer.Option(help="Number of threads.", min=1)] = 2,
    readme: Annotated[bool, typer.Option("--readme", help="Write the table into README.md.")] = False,
) -> None:
    """Measure a codec on a real model: size, damage, bounds, KVTC at equal KL, time. Continues after an interruption."""
    import torch

    from eval.readme import write_between
    from eval.real_model.readme import readme_table
    from eval.real_model.run import Job, RealModelRun, RealModelSettings
    from eval.suite.spoken import spoken_command
    from kvcompress.cli.console import progress_bar

    torch.set_num_threads(threads)
    line = spoken_command(sys.argv[1:])
    job = Job(model, codec, tuple(setting), sessions, other, shards, tuple(fit_facts), out, line)
    sizes = (tokens, continuation, count, other_count, kvtc_sessions, kvtc_fit_sessions, timed_sessions)
    with progress_bar("real model") as progress:
        result = RealModelRun(job, RealModelSettings(*sizes), progress).run()
    if readme:
        write_between(Path("README.md"), "real-model", readme_table(result))
    typer.echo((out / "report.md").read_text(encoding="utf-8"))
