"""Options of `kvcompress fit`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

SIZE, RUN = "Size of the codec", "Run"

OutputOption = Annotated[Path | None, typer.Option("-o", "--output", help="Directory to write the codec to.")]
SessionsOption = Annotated[Path | None, typer.Option(help="JSON lines of sessions.")]
ShardsOption = Annotated[
    Path | None, typer.Option(help="Instead of --sessions: directory of shards that `kvcompress harvest` wrote.")
]
ModelOption = Annotated[
    str | None,
    typer.Option(
        help="Model: a bundled name, a directory, a GGUF file or a Hub id. With --shards it is needed only to "
        "verify quality.",
        show_default="the bundled one, with --sessions",
    ),
]
TokensOption = Annotated[
    int | None,
    typer.Option(help="Use at most this many tokens of each session.", min=2, show_default="the model's context"),
]
CodecShareOption = Annotated[
    float,
    typer.Option(
        help="Largest size of the codec, as a share of the model's 16-bit weights.", min=0.001, rich_help_panel=SIZE
    ),
]
RankOption = Annotated[
    int | None,
    typer.Option(help="Latents per group of layers.", min=1, show_default="from the spectrum", rich_help_panel=SIZE),
]
PriorRankOption = Annotated[
    int | None,
    typer.Option(
        help="Columns of the prior's token table.", min=1, show_default="from --codec-share", rich_help_panel=SIZE
    ),
]
PriorTapsOption = Annotated[
    int | None,
    typer.Option(
        help="Number of newest tokens that the prior looks up.", min=1, show_default="4", rich_help_panel=SIZE
    ),
]
PriorWidthOption = Annotated[
    int | None,
    typer.Option(
        help="Hidden units of the prior.", min=1, show_default="from the number of channels", rich_help_panel=SIZE
    ),
]
RecomputeLayersOption = Annotated[
    str,
    typer.Option(
        help="Number of first layers, or share of all layers (10%), that the model computes again when a session is "
        "restored; the codec codes the others. Above 0 the codec goes into the subdirectory recompute-<m>."
    ),
]
ThreadsOption = Annotated[
    int | None, typer.Option(help="Number of threads.", min=1, show_default="all cores", rich_help_panel=RUN)
]
SeedOption = Annotated[
    int, typer.Option(help="Random seed for the split of sessions and for sampling.", rich_help_panel=RUN)
]
DryRunOption = Annotated[
    bool,
    typer.Option(
        "--dry-run", help="Print memory, disk space and time of each pass, and fit nothing.", rich_help_panel=RUN
    ),
]
