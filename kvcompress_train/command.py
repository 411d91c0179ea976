"""`kvcompress train`: train a codec from recorded sessions or from shards of them, by a recipe."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from kvcompress.cli.console import JsonOption, progress_bar, show
from kvcompress.cli.extras import require_packages
from kvcompress.errors import InputError
from kvcompress.hub.bundled import DEFAULT_MODEL

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)

SOURCES, HOW = "What to train on", "How it runs"
DEFAULT_RECIPE = "small"


@app.command()
def train(
    output: Annotated[
        Path | None,
        typer.Option("-o", "--output", "--out", help="Directory of the codec; <output>.run keeps what is done so far."),
    ] = None,
    model: Annotated[
        str, typer.Option(help="Bundled model, model directory, GGUF file, or Hub id such as user/repo.")
    ] = DEFAULT_MODEL,
    config: Annotated[
        str, typer.Option(help="Recipe: small, smollm2 (many layers, a large vocabulary), or a YAML file.")
    ] = DEFAULT_RECIPE,
    show_recipe: Annotated[
        bool, typer.Option("--show-recipe", help="Print the recipe as YAML, to be changed and named; train nothing.")
    ] = False,
    as_json: JsonOption = False,
    sessions: Annotated[
        Path | None, typer.Option(help="JSON lines of recorded sessions.", rich_help_panel=SOURCES)
    ] = None,
    shards: Annotated[
        Path | None,
        typer.Option(help="What `kvcompress harvest` left, instead of sessions.", rich_help_panel=SOURCES),
    ] = None,
    devices: Annotated[
        int | None,
        typer.Option(
            help="Processes of data-parallel training.", min=1, show_default="as the recipe says", rich_help_panel=HOW
        ),
    ] = None,
    threads: Annotated[int, typer.Option(help="Threads of torch in each process.", min=1, rich_help_panel=HOW)] = 2,
    logger: Annotated[
        str | None,
        typer.Option(
            help="wandb (offline unless WANDB_MODE says else) or csv.",
            show_default="as the recipe says",
            rich_help_panel=HOW,
        ),
    ] = None,
) -> None:
    """Train a codec, which makes smaller files than `kvcompress fit` alone: closed form, its prior, then for the model.

    Takes from minutes to hours and the extra `train`. Cut off, it goes on where it was when called again.
    """
    from kvcompress_train.recipes import recipe_text

    if show_recipe:
        sys.stdout.write(recipe_text(config))
        return
    if output is None:
        raise InputError("no directory is named for the codec", "Name one with --output")
    if (sessions is None) == (shards is None):
        raise InputError("training needs either --sessions or --shards", "Give one of them")
    require_packages("training", ("lightning", "yaml"), "train")
    from dataclasses import replace

    import torch

    from kvcompress_train.recipe import read_recipe

    recipe = read_recipe(config)
    recipe = replace(recipe, devices=devices or recipe.devices, logger=logger or recipe.logger)
    torch.set_num_threads(threads)
    from kvcompress_train.run import CodecRun

    with progress_bar("train") as progress:
        summary = CodecRun(recipe, model, sessions, shards, output, progress).run()
    if summary:  # of several processes the first one alone tells it
        show(summary, as_json=as_json)
