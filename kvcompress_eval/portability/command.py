"""`kvcompress eval devices`: encode in one condition, decode in another."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from kvcompress.hub.bundled import DEFAULT_CODEC, DEFAULT_MODEL


def devices_command(
    codec: Annotated[
        str, typer.Option(help="Codec: what `kvcompress codecs list` names, or a directory.")
    ] = DEFAULT_CODEC,
    model: Annotated[str, typer.Option(help="Model directory, or the name of a bundled model.")] = DEFAULT_MODEL,
    sessions: Annotated[
        Path | None, typer.Option(help="JSON lines of recorded sessions.", show_default="the examples")
    ] = None,
    out: Annotated[Path, typer.Option("-o", "--output", "--out", help="Directory of the result.")] = Path(
        "reports/devices"
    ),
    tokens: Annotated[int, typer.Option(help="Tokens stored of each session.", min=1)] = 512,
    count: Annotated[int, typer.Option(help="Sessions.", min=1)] = 1,
    quality: Annotated[str, typer.Option(help="Quality word of the files.")] = "transparent",
) -> None:
    """Encode in one condition, decode in another, for every pair at hand; exit status 1 where a symbol changed."""
    from kvcompress_eval.portability.run import devices

    devices(out, model, codec, sessions, tokens, count, quality)
