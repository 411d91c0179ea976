"""`kvcompress eval real-model`: the report of a codec on a model that people run."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated

import typer

from kvcompress.cli.console import JsonOption
from kvcompress.cli.extras import require_packages


def real_model_command(
    model: Annotated[str, typer.Option(help="Model directory, or the name of a bundled model.")],
    codec: Annotated[str, typer.Option(help="Codec directory; all that it holds (recompute-<m>) are measured.")],
    sessions: Annotated[Path, typer.Option(help="JSON lines of sessions that fitted nothing.")],
    out: Annotated[
        Path, typer.Option("-o", "--output", "--out", help="Directory of rows and report; rows found there stay.")
    ],
    other: Annotated[Path | None, typer.Option(help="The same of another source than the codec's.")] = None,
    shards: Annotated[Path | None, typer.Option(help="Harvest that KVTC is fitted to; KVTC is left out else.")] = None,
    setting: Annotated[list[str], typer.Option(help="NAME=DIR of a further codec of the model; repeat it.")] = [],  # noqa: B006
    fit_facts: Annotated[list[Path], typer.Option(help="What `kvcompress fit --json` printed; repeat it.")] = [],  # noqa: B006
    count: Annotated[int, typer.Option(help="Sessions measured.", min=1)] = 24,
    other_count: Annotated[int, typer.Option(help="Sessions of the other source.", min=1)] = 12,
    tokens: Annotated[int, typer.Option(help="Tokens stored of each session.", min=32)] = 1024,
    continuation: Annotated[int, typer.Option(help="Tokens predicted after them.", min=128)] = 512,
    kvtc_sessions: Annotated[int, typer.Option(help="Sessions that KVTC is measured on.", min=1)] = 8,
    kvtc_fit_sessions: Annotated[int, typer.Option(help="Harvested sessions that it is fitted to.", min=2)] = 24,
    timed_sessions: Annotated[int, typer.Option(help="Sessions that are timed.", min=0)] = 3,
    threads: Annotated[int, typer.Option(help="Threads of torch.", min=1)] = 2,
    as_json: JsonOption = False,
) -> None:
    """Measure a codec on a real model: sizes, damage, bounds, KVTC at equal KL, seconds; goes on where it stopped."""
    require_packages("the report", ("jinja2", "matplotlib"), "eval")
    import torch

    from kvcompress.cli.console import progress_bar
    from kvcompress_eval.real_model.run import Job, RealModelRun, RealModelSettings
    from kvcompress_eval.suite.spoken import spoken_command

    torch.set_num_threads(threads)
    line = spoken_command(sys.argv)
    job = Job(model, codec, tuple(setting), sessions, other, shards, tuple(fit_facts), out, line)
    sizes = (tokens, continuation, count, other_count, kvtc_sessions, kvtc_fit_sessions, timed_sessions)
    with progress_bar("real model") as progress:
        result = RealModelRun(job, RealModelSettings(*sizes), progress).run()
    typer.echo(json.dumps(result) if as_json else (out / "report.md").read_text(encoding="utf-8"))
