"""`kvcompress fit`: make a codec from recorded sessions or from shards of them."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

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
from kvcompress.errors import InputError, shown
from kvcompress.hub.bundled import DEFAULT_MODEL

if TYPE_CHECKING:
    from kvcompress.fit.from_sessions import FittedCodec


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
    """Make a codec for a model from recorded sessions, and verify which qualities it keeps.

    The fit is in closed form and takes minutes for a small model. An interrupted fit continues where it stopped: its
    intermediate results are in <output>.fit.
    """
    import torch

    from kvcompress.fit.from_sessions import fit_source, place_of
    from kvcompress.fit.run import FitSource
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
    place = place_of(output, layers, force=force)
    with progress_bar("fit") as progress:
        found = fit_source(source, place, settings, progress, _say)
    show(_summary(found), as_json=as_json)


def _summary(found: FittedCodec) -> dict[str, object]:
    return {
        "output": str(found.path),
        "tokens": found.tokens,
        "fit_seconds": found.seconds,
        "peak_bytes": found.peak_bytes,
        "threads": found.threads,
        "file_bytes": found.file_bytes,
        "promises": dict(found.promises),
        "floor_kl_nats": found.floor_kl_nats,
        "fingerprint": found.fingerprint,
    }


def _layers(asked: str, source: object) -> int:
    """Return a number of layers given as such or as a share of the model's."""
    from kvcompress.codec.recompute import parse_layers
    from kvcompress.fit.run import FitSource

    assert isinstance(source, FitSource)
    return parse_layers(asked, source.layer_count)


def _say(line: str) -> None:
    sys.stderr.write(f"{shown(line)}.\n")
