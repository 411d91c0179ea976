"""Options of `kvcompress eval tasks`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

SIZE, CANDIDATES = "Size of the run", "What is measured beside the quality words"

ModelOption = Annotated[str, typer.Option(help="Model: a bundled name or a directory.")]
CodecOption = Annotated[str, typer.Option(help="Codec: a bundled name or a directory.")]
TaskOption = Annotated[list[str], typer.Option(help="Task to measure; give several for more.", show_default="all")]
RecomputeLayersOption = Annotated[
    int, typer.Option(help="Number of recomputed layers: selects a codec of the directory.", min=0)
]
SizesOption = Annotated[
    list[str],
    typer.Option(
        help="TASK=N: size of a task; give several for more.",
        show_default="the largest that the exact cache handles",
        rich_help_panel=SIZE,
    ),
]
AnswersOption = Annotated[
    int, typer.Option(help="Least number of answers for each task and candidate.", min=1, rich_help_panel=SIZE)
]
ContextsOption = Annotated[
    int, typer.Option(help="Least number of contexts for each task.", min=1, rich_help_panel=SIZE)
]
ShardsOption = Annotated[
    Path | None,
    typer.Option(help="Shards to fit KVTC to; without them KVTC is left out.", rich_help_panel=CANDIDATES),
]
KvtcFitSessionsOption = Annotated[
    int, typer.Option(help="Number of harvested sessions to fit KVTC to.", min=2, rich_help_panel=CANDIDATES)
]
KeepFractionOption = Annotated[
    list[float],
    typer.Option(help="Share of tokens that plans keep; give several for more.", rich_help_panel=CANDIDATES),
]
ScorerOption = Annotated[
    str, typer.Option(help="Scorer that chooses the kept tokens; see docs/pruning.md.", rich_help_panel=CANDIDATES)
]
