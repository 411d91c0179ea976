"""`kvcompress fit`: make a codec from recorded sessions or from shards of them."""

from __future__ import annotations

import sys
from pathlib import Path

from kvcompress.cli.console import ForceOption, JsonOption, progress_bar, show
from kvcompress.cli.fit_options import (
    CodecShareOption,
    DryRunOption,
    ModelOption,
    OutputOption,
    PriorRankOption,
    PriorTapsOption,
    PriorWidthOption,
    RankOption,
    RecomputeLayersOption,
    SeedOption,
    SessionsOption,
    ShardsOption,
    ThreadsOption,
    TokensOption,
)
from kvcompress.errors import InputError
from kvcompress.hub.bundled import DEFAULT_MODEL


def fit(
    output: OutputOption = None,
    sessions: SessionsOption = None,
    shards: ShardsOption = None,
    model: ModelOption = None,
    tokens: TokensOption = None,
    codec_share: CodecShareOption = 0.08,
    rank: RankOption = None,
    prior_rank: PriorRankOption = None,
    prior_taps: PriorTapsOption = None,
    prior_width: PriorWidthOption = None,
    recompute_layers: RecomputeLayersOption = "0",
    threads: ThreadsOption = None,
    seed: SeedOption = 0,
    dry_run: DryRunOption = False,
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
    given = {name: value for name, value in asked.items() if value is not None}
    layers = _layers(recompute_layers, source)
    settings = FitSettings(**given, codec_share=codec_share, recompute_layers=layers, seed=seed)
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
