"""Options of `kvcompress eval tasks`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

SIZE, CANDIDATES = "Size of the run", "What is measured beside the quality words"

ModelOption = Annotated[str, typer.Option(help="Model directory, or the name of a bundled model.")]
CodecOption = Annotated[str, typer.Option(help="Codec directory, or the name of a bundled codec.")]
TaskOption = Annotated[list[str], typer.Option(help="Task to measure; repeat it.", show_default="all")]
RecomputeLayersOption = Annotated[int, typer.Option(help="Which codec of the directory.", min=0)]
SizesOption = Annotated[
    list[str],
    typer.Option(
        help="TASK=N, with commas or repeated.",
        show_default="those that the exact cache is up to",
        rich_help_panel=SIZE,
    ),
]
AnswersOption = Annotated[
    int, typer.Option(help="Answers judged of each task and candidate, at least.", min=1, rich_help_panel=SIZE)
]
ContextsOption = Annotated[int, typer.Option(help="Contexts of each task, at least.", min=1, rich_help_panel=SIZE)]
ShardsOption = Annotated[
    Path | None,
    typer.Option(help="Harvest that KVTC is fitted to; KVTC is left out else.", rich_help_panel=CANDIDATES),
]
KvtcFitSessionsOption = Annotated[
    int, typer.Option(help="Harvested sessions that KVTC is fitted to.", min=2, rich_help_panel=CANDIDATES)
]
KeepFractionOption = Annotated[
    list[float],
    typer.Option(help="Share of the tokens that stay where tokens are dropped; repeat it.", rich_help_panel=CANDIDATES),
]
ScorerOption = Annotated[
    str, typer.Option(help="Says which tokens stay; see docs/pruning.md.", rich_help_panel=CANDIDATES)
]
