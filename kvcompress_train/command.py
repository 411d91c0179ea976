"""`kvcompress train`: train a codec from recorded sessions or from shards of them, by a recipe."""

from __future__ import annotations

import sys
from contextlib import redirect_stdout

import typer

from kvcompress.cli.console import JsonOption, ModelOption, progress_bar, show
from kvcompress.cli.extras import require_packages
from kvcompress.errors import InputError
from kvcompress.hub.bundled import DEFAULT_MODEL
from kvcompress_train.options import (
    DevicesOption,
    LoggerOption,
    OutputOption,
    RecipeOption,
    SessionsOption,
    ShardsOption,
    ShowRecipeOption,
    ThreadsOption,
)

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)

DEFAULT_RECIPE = "small"


@app.command()
def train(
    output: OutputOption = None,
    model: ModelOption = DEFAULT_MODEL,
    recipe_name: RecipeOption = DEFAULT_RECIPE,
    show_recipe: ShowRecipeOption = False,
    as_json: JsonOption = False,
    sessions: SessionsOption = None,
    shards: ShardsOption = None,
    devices: DevicesOption = None,
    threads: ThreadsOption = 2,
    logger: LoggerOption = None,
) -> None:
    """Train a codec, which makes smaller files than `kvcompress fit` alone: closed form, its prior, then for the model.

    Takes from minutes to hours and the extra `train`. Cut off, it goes on where it was when called again.
    """
    from kvcompress_train.recipes import recipe_text

    text = recipe_text(recipe_name)
    if show_recipe:
        sys.stdout.write(text)
        return
    if output is None:
        raise InputError("no directory is named for the codec", "Name one with --output")
    if (sessions is None) == (shards is None):
        raise InputError("training needs either --sessions or --shards", "Give one of them")
    require_packages("training", ("lightning", "yaml"), "train")
    from dataclasses import replace

    import torch

    from kvcompress_train.recipe import read_recipe

    recipe = read_recipe(recipe_name)
    recipe = replace(recipe, devices=devices or recipe.devices, logger=logger or recipe.logger)
    torch.set_num_threads(threads)
    from kvcompress_train.run import CodecRun

    with redirect_stdout(sys.stderr), progress_bar("train") as progress:  # Lightning's bars are no result
        summary = CodecRun(recipe, model, sessions, shards, output, progress).run()
    if summary:  # of several processes the first one alone tells it
        show(summary, as_json=as_json)
