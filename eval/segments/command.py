"""`python -m eval segments`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from kvcompress.hub.bundled import DEFAULT_CODEC, DEFAULT_MODEL


def segments_command(
    model: Annotated[str, typer.Option(help="Model: a bundled name or a directory.")] = DEFAULT_MODEL,
    codec: Annotated[
        str, typer.Option(help="Codec: a name from `kvcompress codecs list`, or a directory.")
    ] = DEFAULT_CODEC,
    sessions: Annotated[Path, typer.Option(help="JSON lines of sessions.")] = Path("examples/sessions.jsonl"),
    count: Annotated[int, typer.Option(help="Number of sessions to measure.", min=1)] = 8,
    skip: Annotated[int, typer.Option(help="Sessions to leave out before them.", min=0)] = 0,
    tokens: Annotated[int, typer.Option(help="Number of tokens of each session to store.", min=64)] = 1024,
    segment: Annotated[
        list[int] | None, typer.Option(help="Tokens of a segment; give several.", show_default="32, 128, 256")
    ] = None,
    quality: Annotated[
        list[str] | None, typer.Option(help="Quality; give several for more.", show_default="all three")
    ] = None,
    ends: Annotated[int, typer.Option(help="Appends of a session to resume after.", min=1)] = 4,
    over_decoded: Annotated[
        bool, typer.Option("--over-decoded", help="Go on over the decoded past at every segment.")
    ] = False,
    threads: Annotated[int, typer.Option(help="Number of threads.", min=1)] = 1,
    out: Annotated[Path, typer.Option(help="Directory of rows and report.")] = Path("reports/segments"),
) -> None:
    """Code sessions at once and in segments: bytes by section and cause beside KL right after appends."""
    import torch

    from eval.segments.run import AFTER_TOKENS, Bench, Row, Settings, write_rows
    from eval.segments.table import tables
    from kvcompress.cli.console import progress_bar
    from kvcompress.data.sessions import read_sessions, session_token_ids
    from kvcompress.errors import InputError
    from kvcompress.hf import load_model

    torch.set_num_threads(threads)
    lengths = tuple(segment or Settings().lengths)
    if any(tokens % length or (tokens // ends) % length for length in lengths):
        raise InputError("segments do not end where the session is to be resumed", "Choose lengths that divide both")
    loaded, tokenizer = load_model(model)
    if tokenizer is None:
        raise InputError("the model has no tokenizer", "Name one that has")
    wanted = Settings(tokens, lengths, tuple(quality or Settings().qualities), ends, over_decoded)
    bench, rows = Bench(loaded, codec, wanted), list[Row]()
    found = [(s.id, session_token_ids(s, tokenizer)) for s in read_sessions(sessions)]
    long = [(name, ids) for name, ids in found if len(ids) >= tokens + AFTER_TOKENS][skip : skip + count]
    with progress_bar("segments") as progress:
        for number, (name, ids) in enumerate(long, 1):
            rows += bench.rows(name, torch.tensor(ids[: tokens + AFTER_TOKENS]))
            write_rows(rows, out / "rows.jsonl")
            progress("session", number, len(long))
    text = tables(rows)
    (out / "report.md").write_text(text, encoding="utf-8")
    typer.echo(text)
