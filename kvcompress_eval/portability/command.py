"""`kvcompress eval devices`: encode in one condition, decode in another."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from kvcompress.cli.console import JsonOption
from kvcompress.hub.bundled import DEFAULT_CODEC, DEFAULT_MODEL


def devices_command(
    codec: Annotated[
        str, typer.Option(help="Codec: a name from `kvcompress codecs list`, or a directory.")
    ] = DEFAULT_CODEC,
    model: Annotated[str, typer.Option(help="Model: a bundled name or a directory.")] = DEFAULT_MODEL,
    sessions: Annotated[Path | None, typer.Option(help="JSON lines of sessions.", show_default="the examples")] = None,
    out: Annotated[Path, typer.Option("-o", "--output", "--out", help="Directory to write the result to.")] = Path(
        "reports/devices"
    ),
    tokens: Annotated[int, typer.Option(help="Number of tokens of each session to store.", min=1)] = 512,
    count: Annotated[int, typer.Option(help="Number of sessions.", min=1)] = 1,
    quality: Annotated[str, typer.Option(help="Quality of the files.")] = "transparent",
    as_json: JsonOption = False,
) -> None:
    """Encode under one condition and decode under another, for every pair. Exit status 1 if a symbol changed."""
    from kvcompress_eval.portability.run import devices

    devices(out, model, codec, sessions, tokens, count, quality, as_json=as_json)
