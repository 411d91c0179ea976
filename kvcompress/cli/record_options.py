"""Options of `kvcompress record`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

EVIDENCE = "Evidence for plans"

OutputOption = Annotated[
    Path, typer.Option("-o", "--output", help="Raw snapshot to write (.safetensors); - for standard output.")
]
SessionOption = Annotated[Path | None, typer.Option(help="JSON lines of sessions.")]
SessionIdOption = Annotated[str | None, typer.Option("--id", help="Session to record.", show_default="the first one")]
TextOption = Annotated[Path | None, typer.Option(help="Instead of --session: a plain text file.")]
ChatOption = Annotated[
    bool,
    typer.Option("--chat", help="Instead of --session: talk to the model; an empty line ends the chat and records it."),
]
TokensOption = Annotated[int | None, typer.Option(help="Record only the first N tokens.", min=1, show_default="all")]
EvidenceFileOption = Annotated[
    Path | None,
    typer.Option(help="Also write the evidence that scorers need, for `encode --evidence`.", rich_help_panel=EVIDENCE),
]
ScorerOption = Annotated[
    list[str] | None,
    typer.Option(
        help="Scorer to collect evidence for; give several for more.", show_default="all", rich_help_panel=EVIDENCE
    ),
]
EvidenceCodecOption = Annotated[
    str | None,
    typer.Option(
        help="Codec that will encode the session.",
        show_default="the bundled one, with the bundled model",
        rich_help_panel=EVIDENCE,
    ),
]
