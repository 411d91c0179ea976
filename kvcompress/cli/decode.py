"""`kvcompress decode`: a `.kvz` file back to a raw snapshot."""

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
    show,
)
from kvcompress.cli.models import recompute_by


def decode(
    file: KvzArgument,
    output: Annotated[Path, typer.Option("-o", "--output", help="Raw snapshot to write (.safetensors).")],
    codec: CodecOption = None,
    model: RecomputeModelOption = None,
    max_memory: MaxMemoryOption = DEFAULT_MAX_MEMORY,
    force: ForceOption = False,
    as_json: JsonOption = False,
) -> None:
    """Restore the raw snapshot of a file; no model is needed, unless it recomputes the first layers."""
    from kvcompress.codec.registry import load_snapshot
    from kvcompress.format.atomic import require_writable
    from kvcompress.format.raw_snapshot import save_raw

    require_writable(output, force)
    snapshot = load_snapshot(file, codec, recompute_by(model), max_memory)
    save_raw(output, snapshot, force=force)
    data = {"output": str(output), "tokens": snapshot.tokens, "file_bytes": output.stat().st_size}
    show(data, as_json=as_json)
