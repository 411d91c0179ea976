"""`kvcompress harvest`: caches of recorded sessions as shards to train on."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from kvcompress.cli.console import DtypeOption, ForceOption, JsonOption, ModelOption, progress_bar, show
from kvcompress.zoo import DEFAULT_MODEL


def harvest(
    sessions: Annotated[Path, typer.Option(help="JSON lines of recorded sessions.")],
    output: Annotated[Path, typer.Option("-o", "--output", help="Directory of the shards.")],
    model: ModelOption = DEFAULT_MODEL,
    dtype: DtypeOption = "bfloat16",
    force: ForceOption = False,
    as_json: JsonOption = False,
) -> None:
    """Write one shard a session (a raw snapshot file) and index.jsonl, which `datasets` reads."""
    from kvcompress.harvest import write_shards
    from kvcompress.hf import load_model
    from kvcompress.zoo import find_checkpoint

    language_model, tokenizer = load_model(find_checkpoint(model), dtype)
    with progress_bar("harvest") as progress:
        summary = write_shards(language_model, tokenizer, sessions, output, progress, force=force)
    show(summary, as_json=as_json)
