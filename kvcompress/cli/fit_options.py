"""Options of `kvcompress fit`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

OutputOption = Annotated[Path | None, typer.Option("-o", "--output", help="Directory of the codec.")]
SessionsOption = Annotated[Path | None, typer.Option(help="JSON lines of recorded sessions.")]
ShardsOption = Annotated[Path | None, typer.Option(help="Shards of sessions, from `kvcompress harvest`.")]
ModelOption = Annotated[
    str | None,
    typer.Option(
        help="Model: a bundled name, a directory, a Hub id or a GGUF file. With --shards it is needed only to "
        "verify what the codec can promise.",
        show_default="the bundled one, with --sessions",
    ),
]
TokensOption = Annotated[
    int | None, typer.Option(help="Cut sessions at so many tokens.", min=2, show_default="the model's context")
]
CodecShareOption = Annotated[
    float, typer.Option(help="Largest size of the codec, as a share of the model's 16-bit weights.", min=0.001)
]
RankOption = Annotated[
    int | None, typer.Option(help="Latents per group of layers.", min=1, show_default="from the spectrum")
]
PriorRankOption = Annotated[
    int | None, typer.Option(help="Columns of the prior's token table.", min=1, show_default="from the budget")
]
PriorTapsOption = Annotated[int | None, typer.Option(help="Tokens the prior looks up.", min=1, show_default="4")]
PriorWidthOption = Annotated[
    int | None, typer.Option(help="Hidden units of the prior.", min=1, show_default="from the channels")
]
RecomputeLayersOption = Annotated[
    str,
    typer.Option(
        help="Layers that the model runs when a session is restored, as a number or as a share of its layers "
        "(10%); fewer are coded then."
    ),
]
ThreadsOption = Annotated[int | None, typer.Option(help="Threads of torch.", min=1, show_default="all cores")]
SeedOption = Annotated[int, typer.Option(help="Seed of the split and of sampling.")]
DryRunOption = Annotated[bool, typer.Option("--dry-run", help="Print memory, disk and time of each pass; fit nothing.")]
