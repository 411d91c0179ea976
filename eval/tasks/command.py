"""`python -m eval tasks`: tasks whose answers lie in the middle of the context."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer


def tasks_command(
    model: Annotated[str, typer.Option(help="Model: a bundled name or a directory.")],
    codec: Annotated[str, typer.Option(help="Codec: a bundled name or a directory.")],
    out: Annotated[Path, typer.Option(help="Directory for rows and report; rows of an earlier run are kept.")],
    task: Annotated[list[str], typer.Option(help="Task to measure; give several for more.", show_default="all")] = [],  # noqa: B006
    sizes: Annotated[list[str], typer.Option(help="TASK=N: size of a task; sizes not given are searched for.")] = [],  # noqa: B006
    shards: Annotated[Path | None, typer.Option(help="Shards to fit KVTC to; without them KVTC is left out.")] = None,
    answers: Annotated[int, typer.Option(help="Least number of answers for each task and candidate.", min=1)] = 60,
    contexts: Annotated[int, typer.Option(help="Least number of contexts for each task.", min=1)] = 10,
    keep_fraction: Annotated[
        list[float], typer.Option(help="Share of tokens that plans keep; give several for more.")
    ] = [0.5],  # noqa: B006
    scorer: Annotated[
        str, typer.Option(help="Scorer that chooses the kept tokens; see docs/pruning.md.")
    ] = "context_reconstruction",
    recompute_layers: Annotated[
        int, typer.Option(help="Number of recomputed layers: selects a codec of the directory.", min=0)
    ] = 0,
    kvtc_fit_sessions: Annotated[int, typer.Option(help="Number of harvested sessions to fit KVTC to.", min=2)] = 24,
    threads: Annotated[int, typer.Option(help="Number of threads.", min=1)] = 2,
    readme: Annotated[bool, typer.Option("--readme", help="Write the table into README.md.")] = False,
) -> None:
    """Measure tasks that need the middle of the context, from stored caches. Continues after an interruption."""
    import torch

    from eval.readme import write_between
    from eval.tasks.ladder import named_sizes
    from eval.tasks.readme import readme_table
    from eval.tasks.registry import find_tasks
    from eval.tasks.run import Job, TasksRun, TasksSettings
    from kvcompress.cli.console import progress_bar

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
    job = Job(model, codec, tuple(task), given, shards, out, " ".join(["python -m eval", *sys.argv[1:]]))
    with progress_bar("tasks") as progress:
        result = TasksRun(job, settings, progress).run()
    if readme:
        write_between(Path("README.md"), "tasks", readme_table(result))
    typer.echo((out / "report.md").read_text(encoding="utf-8"))
