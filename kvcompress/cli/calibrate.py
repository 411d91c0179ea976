"""`kvcompress calibrate`: measure a codec's tiers and its out-of-distribution check again."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from kvcompress.cli.console import JsonOption, ModelOption, progress_bar, show
from kvcompress.hub.bundled import DEFAULT_MODEL


def calibrate(
    codec: Annotated[Path, typer.Argument(help="Directory of the codec.", metavar="CODEC")],
    sessions: Annotated[Path, typer.Option(help="JSON lines of sessions.")],
    model: ModelOption = DEFAULT_MODEL,
    threads: Annotated[int | None, typer.Option(help="Number of threads.", min=1, show_default="all cores")] = None,
    as_json: JsonOption = False,
) -> None:
    """Measure a codec's quality tiers and its out-of-distribution check again.

    This replaces the codec's configuration and card; its weights stay as they are. If the sessions are those that the
    codec was fitted to, only the ones held out by the fit are used.
    """
    import torch

    from kvcompress.fit.checkpoint import calibrate_checkpoint

    if threads:
        torch.set_num_threads(threads)
    with progress_bar("calibrate") as progress:
        summary = calibrate_checkpoint(model, sessions, codec, progress)
    show(summary, as_json=as_json)
