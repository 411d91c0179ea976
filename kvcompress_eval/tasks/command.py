"""`kvcompress eval tasks`: tasks whose answers lie in the middle of the context."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated

import typer

from kvcompress.cli.console import JsonOption
from kvcompress.cli.extras import require_packages


def tasks_command(
    model: Annotated[str, typer.Option(help="Model directory, or the name of a bundled model.")],
    codec: Annotated[str, typer.Option(help="Codec directory, or the name of a bundled codec.")],
    out: Annotated[
        Path, typer.Option("-o", "--output", "--out", help="Directory of rows and report; rows found there stay.")
    ],
    task: Annotated[list[str], typer.Option(help="Task to measure; repeat it. [default: all]")] = [],  # noqa: B006
    sizes: Annotated[list[str], typer.Option(help="TASK=N, with commas or repeated; those not named are found.")] = [],  # noqa: B006
    shards: Annotated[Path | None, typer.Option(help="Harvest that KVTC is fitted to; KVTC is left out else.")] = None,
    answers: Annotated[int, typer.Option(help="Answers judged of each task and candidate, at least.", min=1)] = 60,
    contexts: Annotated[int, typer.Option(help="Contexts of each task, at least.", min=1)] = 10,
    keep_fraction: Annotated[
        list[float], typer.Option(help="Share of the tokens that stay where tokens are dropped; repeat it.")
    ] = [0.5],  # noqa: B006
    scorer: Annotated[
        str, typer.Option(help="Says which tokens stay; see docs/pruning.md.")
    ] = "context_reconstruction",
    recompute_layers: Annotated[int, typer.Option(help="Which codec of the directory.", min=0)] = 0,
    kvtc_fit_sessions: Annotated[int, typer.Option(help="Harvested sessions that KVTC is fitted to.", min=2)] = 24,
    threads: Annotated[int, typer.Option(help="Threads of torch.", min=1)] = 2,
    as_json: JsonOption = False,
) -> None:
    """Ask a model for what lies in the middle of its context, from stored caches; goes on where it stopped."""
    require_packages("the report of the tasks", ("jinja2", "matplotlib"), "eval")
    import torch

    from kvcompress.cli.console import progress_bar
    from kvcompress_eval.suite.spoken import spoken_command
    from kvcompress_eval.tasks.ladder import named_sizes
    from kvcompress_eval.tasks.registry import find_tasks
    from kvcompress_eval.tasks.run import Job, TasksRun, TasksSettings

    torch.set_num_threads(threads)
    settings = TasksSettings(
        answers=answers,
        least_examples=contexts,
        keep_fractions=tuple(keep_fraction),
        scorer=scorer,
        recompute_layers=recompute_layers,
        kvtc_fit_sessions=kvtc_fit_sessions,
    )
    given = named_sizes(sizes, find_tasks(task))
    job = Job(model, codec, tuple(task), given, shards, out, spoken_command(sys.argv))
    with progress_bar("tasks") as progress:
        result = TasksRun(job, settings, progress).run()
    typer.echo(json.dumps(result) if as_json else (out / "report.md").read_text(encoding="utf-8"))
