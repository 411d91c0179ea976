"""Harvest the caches of recorded sessions: a stream of snapshots, and shards on disk."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from kvcompress.atomic import atomic_write
from kvcompress.errors import InputError
from kvcompress.hf import capture
from kvcompress.hf.families import context_tokens
from kvcompress.raw import load_raw, save_raw
from kvcompress.sessions import Session, read_sessions, session_token_ids

INDEX = "index.jsonl"


def tokenized_sessions(model: Any, tokenizer: Any, path: Path) -> list[tuple[Session, Tensor]]:
    """Return the sessions of a file with their token ids [N] int64, cut at the model's context."""
    if tokenizer is None:
        raise InputError("the model has no tokenizer", "Save one beside the model")
    limit = context_tokens(model)
    rows = []
    for session in read_sessions(path):
        ids = session_token_ids(session, tokenizer)
        rows.append((session, torch.tensor(ids[:limit], dtype=torch.int64)))
    return rows


def write_shards(
    model: Any,
    tokenizer: Any,
    sessions: Path,
    output: Path,
    progress: Callable[[str, int, int], None],
    *,
    force: bool = False,
) -> dict[str, Any]:
    """Write one raw snapshot file a session and an index; the index is written last, so it is never ahead.

    Returns:
        Counts of sessions, tokens and bytes.
    """
    if (output / INDEX).exists() and not force:
        raise InputError("already holds shards", "Pass --force to replace them", path=output)
    rows = tokenized_sessions(model, tokenizer, sessions)
    output.mkdir(parents=True, exist_ok=True)
    index, size_bytes = [], 0
    for number, (session, ids) in enumerate(rows):
        name = f"shard-{number:05d}.safetensors"
        save_raw(output / name, capture(model, ids, tokenizer=tokenizer), force=force)
        size_bytes += (output / name).stat().st_size
        index.append({"id": session.id, "file": name, "tokens": len(ids)})
        progress("sessions", number + 1, len(rows))
    atomic_write(output / INDEX, ((json.dumps(row) + "\n").encode() for row in index), force=force)
    tokens = sum(len(ids) for _, ids in rows)
    return {"output": str(output), "sessions": len(rows), "tokens": tokens, "file_bytes": size_bytes}


def read_shards(directory: Path) -> Iterator[dict[str, Any]]:
    """Yield `{"id", "token_ids", "keys.i", "values.i"}` of each shard as tensors."""
    with (directory / INDEX).open(encoding="utf-8") as handle:
        names = [json.loads(line) for line in handle]
    for row in names:
        snapshot = load_raw(directory / row["file"])
        data: dict[str, Any] = {"id": row["id"], "token_ids": snapshot.token_ids}
        for index, layer in enumerate(snapshot.layers):
            data |= {f"keys.{index}": layer.keys, f"values.{index}": layer.values}
        yield data


def shards_as_dataset(directory: Path) -> Any:
    """Return a `datasets.IterableDataset` over shards, one row a session.

    Raises:
        InputError: The package `datasets` is not installed.
    """
    try:
        from datasets import IterableDataset
    except ImportError as error:
        raise InputError("the package datasets is missing", "pip install 'kvcompress[train]'") from error

    def rows(directory: str) -> Iterator[dict[str, Any]]:
        # Imported here: datasets pickles this generator to fingerprint it.
        from pathlib import Path as LocalPath

        from kvcompress.harvest import read_shards as read

        for row in read(LocalPath(directory)):
            yield {key: value.float().numpy() if hasattr(value, "float") else value for key, value in row.items()}

    return IterableDataset.from_generator(rows, gen_kwargs={"directory": str(directory)})
