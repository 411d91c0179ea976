"""`kvcompress eval tasks`: tasks whose answers lie in the middle of the context."""

from __future__ import annotations

import json
import sys

import typer

from kvcompress.cli.console import JsonOption
from kvcompress.cli.extras import require_packages
from kvcompress_eval.suite.options import RowsOption, ThreadsOption
from kvcompress_eval.tasks.options import (
    AnswersOption,
    CodecOption,
    ContextsOption,
    KeepFractionOption,
    KvtcFitSessionsOption,
    ModelOption,
    RecomputeLayersOption,
    ScorerOption,
    ShardsOption,
    SizesOption,
    TaskOption,
)


def tasks_command(
    model: ModelOption,
    codec: CodecOption,
    out: RowsOption,
    task: TaskOption = [],  # noqa: B006
    recompute_layers: RecomputeLayersOption = 0,
    threads: ThreadsOption = 2,
    as_json: JsonOption = False,
    sizes: SizesOption = [],  # noqa: B006
    answers: AnswersOption = 60,
    contexts: ContextsOption = 10,
    shards: ShardsOption = None,
    kvtc_fit_sessions: KvtcFitSessionsOption = 24,
    keep_fraction: KeepFractionOption = [0.5],  # noqa: B006
    scorer: ScorerOption = "context_reconstruction",
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
