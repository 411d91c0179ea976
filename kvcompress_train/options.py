"""Options of `kvcompress train`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

SOURCES, HOW = "What to train on", "How it runs"
BY_RECIPE = "as the recipe says"

OutputOption = Annotated[
    Path | None,
    typer.Option(
        "-o", "--output", "--out", help="Directory to write the codec to; <output>.run holds intermediate results."
    ),
]
RecipeOption = Annotated[
    str, typer.Option("--config", help="Recipe: small, smollm2 (many layers, a large vocabulary), or a YAML file.")
]
ShowRecipeOption = Annotated[
    bool,
    typer.Option(
        "--show-recipe", help="Print the recipe as YAML and train nothing; change it and pass it with --config."
    ),
]
SessionsOption = Annotated[Path | None, typer.Option(help="JSON lines of sessions.", rich_help_panel=SOURCES)]
ShardsOption = Annotated[
    Path | None,
    typer.Option(help="Instead of sessions: shards that `kvcompress harvest` wrote.", rich_help_panel=SOURCES),
]
DevicesOption = Annotated[
    int | None,
    typer.Option(
        help="Number of processes of data-parallel training.", min=1, show_default=BY_RECIPE, rich_help_panel=HOW
    ),
]
ThreadsOption = Annotated[int, typer.Option(help="Number of threads in each process.", min=1, rich_help_panel=HOW)]
LoggerOption = Annotated[
    str | None,
    typer.Option(
        help="wandb (offline unless WANDB_MODE says otherwise) or csv.", show_default=BY_RECIPE, rich_help_panel=HOW
    ),
]
