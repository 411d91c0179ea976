"""`kvcompress decode`: decompress a `.kvz` file into a raw snapshot."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from kvcompress.cli.console import (
    DEFAULT_MAX_MEMORY,
    CodecOption,
    ForceOption,
    JsonOption,
    KvzArgument,
    MaxMemoryOption,
    RecomputeModelOption,
    beside,
    require_output,
    show,
    written,
)
from kvcompress.cli.models import recompute_by
from kvcompress.cli.waiting import waiting


def decode(
    file: KvzArgument,
    output: Annotated[
        Path, typer.Option("-o", "--output", help="Raw snapshot to write (.safetensors); - for standard output.")
    ],
    codec: CodecOption = None,
    model: RecomputeModelOption = None,
    max_memory: MaxMemoryOption = DEFAULT_MAX_MEMORY,
    force: ForceOption = False,
    as_json: JsonOption = False,
) -> None:
    """Decompress a .kvz file into a raw snapshot.

    No model is needed, unless the file leaves out layers that the model recomputes.
    """
    from kvcompress.codec.registry import load_snapshot
    from kvcompress.format.raw_snapshot import save_raw

    require_output(output, force, as_json, file)
    with waiting("decode", "decoding"):
        snapshot = load_snapshot(file, codec, recompute_by(model), max_memory)
    with written(output) as place:
        save_raw(place, snapshot, force=force)
        data = {"output": str(output), "tokens": snapshot.tokens, "file_bytes": place.stat().st_size}
    show(data, as_json=as_json, file=beside(output))
