"""What a store writes beside its segments: `python -m eval writes`."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

VALUES_A_TOKEN = 440
"""Of the caches that are appended, 32 bits each: 1.6 kB a token without loss."""

SIZES = (2, 5, 17, 58, 460)
"""Tokens of an append: segments of 3.7, 8, 26, 86 and 680 kB."""


def writes_command(
    turns: Annotated[int, typer.Option(help="Appends of each size.", min=1)] = 200,
    tokens: Annotated[
        list[int] | None, typer.Option(help="Tokens of an append, 1.5 kB each; give several.", show_default="2 to 460")
    ] = None,
) -> None:
    """Count the bytes that appends write, the database's log and its copying back included, over those they add."""
    typer.echo(table(tokens or SIZES, turns))


def table(sizes: Sequence[int], turns: int) -> str:
    """Return what appends of some sizes in tokens write, as Markdown."""
    from kvcompress.report.tables import markdown_table

    rows = [_row(tokens, min(turns, max(20_000 // tokens, 4))) for tokens in sizes]
    return markdown_table(("appends", "bytes a segment", "written beside it", "written over added"), rows)


def _row(tokens: int, turns: int) -> list[str]:
    import torch

    from kvcompress.snapshot import KVSnapshot, LayerKV, ModelFingerprint, Origin
    from kvcompress.store.segment import part_of
    from kvcompress.store.store import Store

    count = tokens * turns
    noise = torch.randn(1, count, VALUES_A_TOKEN // 2, generator=torch.Generator().manual_seed(0))
    fingerprint = ModelFingerprint(config="a" * 64, weights="b" * 64, rope="c" * 64)
    origin = Origin(fingerprint, "llama", "noise", {}, "float32", ("full_attention",), (True,), count)
    whole = KVSnapshot((LayerKV(noise, -noise, torch.arange(count)),), torch.arange(count) % 90, origin)
    with tempfile.TemporaryDirectory() as folder, Store(Path(folder) / "store", create=True) as store:
        session = store.session("talk", create=True)
        for turn in range(1, turns + 1):
            session.append(part_of(whole, 0, turn * tokens), lossless=True)
        store.database.checkpoint()
        found = store.statistics()
    beside = (found.written_bytes - found.added_bytes) / turns
    amplification = f"{found.write_amplification:.2f}"
    return [str(turns), f"{found.added_bytes / turns:,.0f}", f"{beside:,.0f}", amplification]
