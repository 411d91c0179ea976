"""`kvcompress decode`: decompress a `.kvz` file into a raw snapshot."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from kvcompress.cli.console import CodecOption, ForceOption, JsonOption, KvzArgument, RecomputeModelOption, show
from kvcompress.cli.models import recompute_by
from kvcompress.cli.waiting import waiting


def decode(
    file: KvzArgument,
    output: Annotated[Path, typer.Option("-o", "--output", help="Raw snapshot to write (.safetensors).")],
    codec: CodecOption = None,
    model: RecomputeModelOption = None,
    force: ForceOption = False,
    as_json: JsonOption = False,
) -> None:
    """Decompress a .kvz file into a raw snapshot.

    No model is needed, unless the file leaves out layers that the model recomputes.
    """
    from kvcompress.codec.registry import load_snapshot
    from kvcompress.format.atomic import require_writable
    from kvcompress.format.raw_snapshot import save_raw

    require_writable(output, force)
    with waiting("decode", "decoding"):
        snapshot = load_snapshot(file, codec, recompute_by(model))
    save_raw(output, snapshot, force=force)
    data = {"output": str(output), "tokens": snapshot.tokens, "file_bytes": output.stat().st_size}
    show(data, as_json=as_json)
