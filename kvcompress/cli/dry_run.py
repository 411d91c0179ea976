"""`kvcompress fit --dry-run`: memory, disk space and time of each pass of a fit."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from kvcompress.fit.dry_run import PassCost
    from kvcompress.fit.run import FitSource
    from kvcompress.fit.settings import FitSettings


def show_dry_run(source: FitSource, settings: FitSettings, *, as_json: bool) -> None:
    """Print memory, disk and time of each pass; the sessions are counted, no weights are loaded."""
    from kvcompress.fit.dry_run import machine_speed, pass_costs
    from kvcompress.hf.geometry import geometry_of
    from kvcompress.hf.loading import model_config

    sessions, tokens = _counted(source)
    geometry = geometry_of(model_config(source.model or ""))
    costs = pass_costs(geometry, sessions, tokens, settings, machine_speed())
    free = shutil.disk_usage(Path.cwd()).free
    if as_json:
        passes = [cost.to_json() for cost in costs]
        stated = {"sessions": sessions, "tokens": tokens, "passes": passes, "disk_free_bytes": free}
        sys.stdout.write(json.dumps(stated) + "\n")
        return
    _print(costs, sessions, tokens, free)


def _counted(source: FitSource) -> tuple[int, int]:
    """Return the number of sessions and how many tokens the longest has."""
    if source.shards is not None:
        from kvcompress.data.shards import Shards

        rows = Shards(source.shards).rows
        return len(rows), max(row.tokens + len(row.continuation) for row in rows)
    from kvcompress.data.sessions import read_sessions, session_token_ids
    from kvcompress.errors import InputError
    from kvcompress.hf.loading import model_config, model_tokenizer

    assert source.sessions is not None
    tokenizer = model_tokenizer(source.model or "")
    if tokenizer is None:
        raise InputError("the model has no tokenizer to count tokens with", "Save one beside its configuration")
    lengths = [len(session_token_ids(session, tokenizer)) for session in read_sessions(source.sessions)]
    limit = getattr(model_config(source.model or ""), "max_position_embeddings", None) or max(lengths)
    return len(lengths), min(max(lengths), limit, source.tokens or limit)


def _print(costs: list[PassCost], sessions: int, tokens: int, free_bytes: int) -> None:
    from kvcompress.report.spelling import spell
    from kvcompress.report.terminal import print_table

    def row(name: str, seconds: float, memory: float, disk: float) -> list[str]:
        return [name, spell(seconds, "duration"), spell(memory, "bytes"), spell(disk, "bytes")]

    rows = [row(cost.name, cost.seconds, cost.memory_bytes, cost.disk_bytes) for cost in costs]
    peak = max(cost.memory_bytes for cost in costs)
    rows.append(row("all of it", sum(cost.seconds for cost in costs), peak, sum(cost.disk_bytes for cost in costs)))
    print_table(
        ("pass", "time", "memory", "disk"),
        rows,
        numbers=(1, 2, 3),
        title=f"{sessions} sessions of up to {tokens:,} tokens",
    )
    sys.stdout.write(f"\n{spell(free_bytes, 'bytes')} are free on this disk.\n")
