"""`kvcompress encode`: a raw snapshot to a `.kvz` file."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from kvcompress.cli.console import CodecOption, ForceOption, JsonOption, show
from kvcompress.errors import InputError, about
from kvcompress.zoo import DEFAULT_CODEC

if TYPE_CHECKING:
    from kvcompress.container import Encoded
    from kvcompress.snapshot import KVSnapshot


def encode(
    raw: Annotated[Path, typer.Argument(help="Raw snapshot (.safetensors).", metavar="RAW.safetensors")],
    output: Annotated[Path, typer.Option("-o", "--output", help="File to write (.kvz).")],
    codec: CodecOption = DEFAULT_CODEC,
    quality: Annotated[
        str | None, typer.Option(help="transparent, high or usable: tiers of measured fidelity. [default: transparent]")
    ] = None,
    size_ratio: Annotated[
        float | None, typer.Option(help="Raw 16-bit size over file size: the finest file at least this much smaller.")
    ] = None,
    lossless: Annotated[bool, typer.Option("--lossless", help="Give the identical bits back; needs no codec.")] = False,
    force: ForceOption = False,
    as_json: JsonOption = False,
) -> None:
    """Compress a raw snapshot."""
    if sum((quality is not None, size_ratio is not None, lossless)) > 1:
        raise InputError("name only one of --quality, --size-ratio and --lossless")
    from kvcompress.atomic import require_writable
    from kvcompress.container import save
    from kvcompress.raw import load_raw

    require_writable(output, force)
    snapshot = load_raw(raw)
    start = time.perf_counter()
    with about(raw):
        encoded = _encoded(snapshot, codec, quality or "transparent", size_ratio, lossless)
    seconds = time.perf_counter() - start
    save(output, encoded, force=force)
    file_bytes = output.stat().st_size
    data = {"output": str(output), "tokens": snapshot.tokens, "raw_bytes": snapshot.raw_bytes, "file_bytes": file_bytes}
    show(data | {"size_ratio": snapshot.raw_bytes / file_bytes, "encode_seconds": seconds}, as_json=as_json)


def _encoded(snapshot: KVSnapshot, codec: str, quality: str, size_ratio: float | None, lossless: bool) -> Encoded:
    if lossless:
        from kvcompress.lossless import LosslessCodec

        return LosslessCodec().encode(snapshot)
    from kvcompress.plan import encode_at_quality, encode_at_size_ratio
    from kvcompress.zoo import load_codec

    loaded = load_codec(codec)
    if size_ratio is not None:
        return encode_at_size_ratio(loaded, snapshot, size_ratio)
    return encode_at_quality(loaded, snapshot, quality)
