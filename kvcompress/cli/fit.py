"""`kvcompress fit`: make a codec from recorded sessions."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from kvcompress.cli.console import ForceOption, JsonOption, ModelOption, progress_bar, show
from kvcompress.errors import InputError
from kvcompress.zoo import DEFAULT_MODEL


def fit(
    sessions: Annotated[Path, typer.Option(help="JSON lines of recorded sessions.")],
    output: Annotated[Path, typer.Option("-o", "--output", help="Directory of the codec.")],
    model: ModelOption = DEFAULT_MODEL,
    rank: Annotated[int | None, typer.Option(help="Latents per group of layers.", min=1)] = None,
    prior_rank: Annotated[int | None, typer.Option(help="Columns of the prior's token table.", min=1)] = None,
    prior_taps: Annotated[int | None, typer.Option(help="Tokens the prior looks up.", min=1)] = None,
    prior_width: Annotated[int | None, typer.Option(help="Hidden units of the prior.", min=1)] = None,
    recompute_layers: Annotated[
        int, typer.Option(help="Layers that the model runs when a session is restored; fewer are coded then.")
    ] = 0,
    threads: Annotated[int | None, typer.Option(help="Threads of torch. [default: all cores]", min=1)] = None,
    seed: Annotated[int, typer.Option(help="Seed of the split and of sampling.")] = 0,
    force: ForceOption = False,
    as_json: JsonOption = False,
) -> None:
    """Fit a codec in closed form and measure its quality tiers; a few minutes for a small model.

    Dials that are not given are those of the bundled codec.

    With --recompute-layers m it goes into the subdirectory recompute-m, beside the codec that codes all layers.
    """
    import torch

    from kvcompress.checkpoint import fit_checkpoint
    from kvcompress.fit import FitSettings
    from kvcompress.zoo import recompute_name

    if recompute_layers:
        output = output / recompute_name(recompute_layers)
    if (output / "config.json").exists() and not force:
        raise InputError("already holds a codec", "Pass --force to replace it", path=output)
    if threads:
        torch.set_num_threads(threads)
    asked = {"rank": rank, "prior_rank": prior_rank, "prior_taps": prior_taps, "prior_width": prior_width}
    dials = {name: value for name, value in asked.items() if value is not None}
    settings = FitSettings(**dials, recompute_layers=recompute_layers, seed=seed)
    with progress_bar("fit") as progress:
        summary = fit_checkpoint(model, sessions, output, settings, progress)
    show(summary, as_json=as_json)
