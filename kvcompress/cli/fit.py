"""`kvcompress fit`: make a codec from recorded sessions or from shards of them."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from kvcompress.cli.console import ForceOption, JsonOption, progress_bar, show
from kvcompress.errors import InputError
from kvcompress.hub.bundled import DEFAULT_MODEL


def fit(
    output: Annotated[Path | None, typer.Option("-o", "--output", help="Directory of the codec.")] = None,
    sessions: Annotated[Path | None, typer.Option(help="JSON lines of recorded sessions.")] = None,
    shards: Annotated[Path | None, typer.Option(help="Shards of sessions, from `kvcompress harvest`.")] = None,
    model: Annotated[
        str | None,
        typer.Option(
            help="Model: a bundled name, a directory, a Hub id or a GGUF file. With --shards it is needed only to "
            "verify what the codec can promise.",
            show_default="the bundled one, with --sessions",
        ),
    ] = None,
    tokens: Annotated[
        int | None, typer.Option(help="Cut sessions at so many tokens.", min=2, show_default="the model's context")
    ] = None,
    codec_share: Annotated[
        float, typer.Option(help="Largest size of the codec, as a share of the model's 16-bit weights.", min=0.001)
    ] = 0.08,
    rank: Annotated[
        int | None, typer.Option(help="Latents per group of layers.", min=1, show_default="from the spectrum")
    ] = None,
    prior_rank: Annotated[
        int | None, typer.Option(help="Columns of the prior's token table.", min=1, show_default="from the budget")
    ] = None,
    prior_taps: Annotated[int | None, typer.Option(help="Tokens the prior looks up.", min=1, show_default="4")] = None,
    prior_width: Annotated[
        int | None, typer.Option(help="Hidden units of the prior.", min=1, show_default="from the channels")
    ] = None,
    recompute_layers: Annotated[
        str,
        typer.Option(
            help="Layers that the model runs when a session is restored, as a number or as a share of its layers "
            "(10%); fewer are coded then."
        ),
    ] = "0",
    threads: Annotated[int | None, typer.Option(help="Threads of torch.", min=1, show_default="all cores")] = None,
    seed: Annotated[int, typer.Option(help="Seed of the split and of sampling.")] = 0,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print memory, disk and time of each pass; fit nothing.")
    ] = False,
    force: ForceOption = False,
    as_json: JsonOption = False,
) -> None:
    """Fit a codec in closed form and verify which qualities it keeps; minutes for a small model.

    With --recompute-layers above 0 it goes into the subdirectory recompute-<m>, beside the codec that codes all layers.
    Killed, it goes on where it stopped: what it has found so far lies in <output>.fit.
    """
    import torch

    from kvcompress.fit.run import FitSource, fit_checkpoint
    from kvcompress.fit.settings import FitSettings

    if threads:
        torch.set_num_threads(threads)
    source = FitSource(model or (None if shards is not None else DEFAULT_MODEL), sessions, shards, tokens)
    source.check()
    asked = {"rank": rank, "prior_rank": prior_rank, "prior_taps": prior_taps, "prior_width": prior_width}
    dials = {name: value for name, value in asked.items() if value is not None}
    layers = _layers(recompute_layers, source)
    settings = FitSettings(**dials, codec_share=codec_share, recompute_layers=layers, seed=seed)
    if dry_run:
        from kvcompress.cli.dry_run import show_dry_run

        show_dry_run(source, settings, as_json=as_json)
        return
    if output is None:
        raise InputError("no directory is named for the codec", "Name one with --output")
    output = _place(output, layers, force)
    with progress_bar("fit") as progress:
        summary = fit_checkpoint(source, output, settings, progress, _say)
    show(summary, as_json=as_json)


def _place(output: Path, layers: int, force: bool) -> Path:
    """Return where the codec goes; refuse to replace one without `--force`."""
    from kvcompress.hub.bundled import recompute_name

    place = output / recompute_name(layers) if layers else output
    if (place / "config.json").exists() and not force:
        raise InputError("already holds a codec", "Pass --force to replace it", path=place)
    return place


def _layers(asked: str, source: object) -> int:
    """Return a number of layers given as such or as a share of the model's."""
    from kvcompress.codec.recompute import parse_layers
    from kvcompress.fit.run import FitSource

    assert isinstance(source, FitSource)
    return parse_layers(asked, source.layer_count)


def _say(line: str) -> None:
    sys.stderr.write(f"{line}.\n")
