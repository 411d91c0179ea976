"""Harvest the caches of recorded sessions: the one time that a fit runs the model over all of them.

Each file is written whole or not at all and the index last, so a harvest that was killed goes on where it stopped.
"""

from __future__ import annotations

import json
import random
import shutil
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from kvcompress.data.sessions import Session, read_sessions, session_token_ids
from kvcompress.data.shards import CALIBRATION, FIT, INDEX, LEVELS, SETTINGS, TOKENS, HarvestSettings, ShardRow
from kvcompress.errors import InputError, MismatchError
from kvcompress.format.atomic import atomic_path, atomic_write
from kvcompress.format.raw_snapshot import save_raw
from kvcompress.hf import capture
from kvcompress.hf.channels import layer_channels, layer_shapes, rows_of
from kvcompress.hf.families import context_tokens
from kvcompress.hf.gradients import cache_gradients
from kvcompress.hf.rope import rope_of
from kvcompress.hf.single_tokens import embeddings_of, first_token_caches
from kvcompress.hf.types import CausalLM, Tokenizer
from kvcompress.snapshot import CACHE_DTYPES, KVSnapshot, LayerKV

Progress = Callable[[str, int, int], None]

FIRST_TOKENS = 512
"""Tokens whose cache is taken where they stand first: those that do, the most frequent, and others spread evenly."""

LARGEST_FLOAT16 = 65504.0
SPARE_BYTES = 1 << 28
"""Left free on the disk."""


def tokenized_sessions(model: CausalLM, tokenizer: Tokenizer | None, path: Path) -> list[tuple[Session, Tensor]]:
    """Return the sessions of a file with their token ids [N] int64, cut at the model's context."""
    if tokenizer is None:
        raise InputError("the model has no tokenizer", "Save one beside the model")
    limit = context_tokens(model)
    rows = []
    for session in read_sessions(path):
        ids = session_token_ids(session, tokenizer)
        rows.append((session, torch.tensor(ids[:limit], dtype=torch.int64)))
    return rows


def split_rows(sessions: Sequence[tuple[str, Tensor]], settings: HarvestSettings) -> list[ShardRow]:
    """Cut and split sessions, given as id and token ids [N]: what the index will say, in the order of the file."""
    order = list(range(len(sessions)))
    random.Random(settings.seed).shuffle(order)
    kept = max(1, round(settings.calibration_share * len(order))) if len(order) > 1 else 0
    calibration, others = set(order[:kept]), order[kept:]
    apart = max(1, round(settings.levels_share * len(others))) if len(others) > 1 else 0
    levels, fitting = set(others[:apart]), others[apart:]
    sensitive = set(fitting[: settings.gradient_sessions])
    rows = []
    for number, (name, ids) in enumerate(sessions):
        at = len(ids) - min(settings.continuation_tokens, len(ids) // 2)
        gradients = f"gradients-{number:05d}.safetensors" if number in sensitive and at else None
        part = CALIBRATION if number in calibration else LEVELS if number in levels else FIT
        rows.append(ShardRow(name, f"shard-{number:05d}.safetensors", at, tuple(ids[at:].tolist()), part, gradients))
    return rows


def shard_bytes(rows: Sequence[ShardRow], values_per_token: int, embedding_values: int) -> int:
    """Return about how many bytes the shards of these sessions take."""
    tokens = sum(row.tokens for row in rows) + sum(row.tokens for row in rows if row.gradients)
    return 2 * (values_per_token * (tokens + FIRST_TOKENS) + embedding_values)


def write_shards(
    model: CausalLM,
    tokenizer: Tokenizer | None,
    sessions: Path,
    output: Path,
    progress: Progress,
    *,
    settings: HarvestSettings | None = None,
    force: bool = False,
    announce: Callable[[str], None] = lambda line: None,
) -> dict[str, Any]:
    """Write the shards of a file of sessions, or those that an earlier run did not come to.

    Args:
        model: A causal language model in evaluation mode.
        tokenizer: Its tokenizer.
        sessions: JSON lines of recorded sessions.
        output: Directory of the shards.
        progress: Called after each session.
        settings: How sessions are cut and split.
        force: Replace shards of other sessions, settings or another model.
        announce: Called with one line that says how large the shards will be.

    Returns:
        Counts of sessions, tokens and bytes.

    Raises:
        InputError: There are finished or other shards, or not enough space.
    """
    rows = [(session.id, ids) for session, ids in tokenized_sessions(model, tokenizer, sessions)]
    return harvest(model, tokenizer, rows, output, progress, settings=settings, force=force, announce=announce)


def harvest(
    model: CausalLM,
    tokenizer: Tokenizer | None,
    sessions: Sequence[tuple[str, Tensor]],
    output: Path,
    progress: Progress,
    *,
    settings: HarvestSettings | None = None,
    force: bool = False,
    announce: Callable[[str], None] = lambda line: None,
) -> dict[str, Any]:
    """Write the shards of sessions given as id and token ids [N] int64; as `write_shards`."""
    settings = settings or HarvestSettings()
    cut = [(name, ids[: settings.tokens].clone()) for name, ids in sessions if len(ids)]
    rows = split_rows(cut, settings)
    if (output / INDEX).exists() and not force:
        raise InputError("already holds shards", "Pass --force to replace them", path=output)
    probe = capture(model, cut[0][1][:2], tokenizer=tokenizer)
    _prepare(output, model, probe, cut, settings, force)
    values, table = sum(shape.channels for shape in layer_shapes(probe)), embeddings_of(model)
    needed = shard_bytes(rows, values, table.numel())
    announce(f"{len(rows)} sessions, {sum(row.tokens for row in rows):,} tokens: shards of about {needed / 1e9:.2f} GB")
    _require_space(output, needed - _held_bytes(output))
    for done, (row, (_, ids)) in enumerate(zip(rows, cut, strict=True), 1):
        _write_session(model, tokenizer, row, ids, output, settings)
        progress("harvest", done, len(rows))
    if not (output / TOKENS).exists():
        _write_tokens(model, table, [ids for _, ids in cut], probe, output)
    atomic_write(output / INDEX, ((json.dumps(row.to_json()) + "\n").encode() for row in rows), force=force)
    tokens = sum(row.tokens for row in rows)
    return {"output": str(output), "sessions": len(rows), "tokens": tokens, "file_bytes": _held_bytes(output)}


def _prepare(
    output: Path,
    model: CausalLM,
    probe: KVSnapshot,
    sessions: Sequence[tuple[str, Tensor]],
    settings: HarvestSettings,
    force: bool,
) -> None:
    """Say in `shards.json` what will lie here, or see that the harvest that began here is this one."""
    stated: dict[str, Any] = {
        "model": asdict(probe.origin.fingerprint),
        "settings": asdict(settings),
        "sessions": [[name, len(ids), int(ids.sum())] for name, ids in sessions],
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "shapes": [[s.heads, s.key_size, s.value_size] for s in layer_shapes(probe)],
    }
    place = output / SETTINGS
    if place.is_file() and not force:
        found = json.loads(place.read_text(encoding="utf-8"))
        if found == json.loads(json.dumps(stated)):
            return
        if found.get("model") != stated["model"]:
            ours, theirs = (str(one.get("weights"))[:16] for one in (stated["model"], found.get("model", {})))
            raise MismatchError("the model of these shards", ours, theirs, "Pass --force to replace them", path=output)
        raise InputError("holds shards of other sessions or settings", "Pass --force to replace them", path=output)
    output.mkdir(parents=True, exist_ok=True)
    for old in (*output.glob("shard-*.safetensors"), *output.glob("gradients-*.safetensors"), output / TOKENS):
        old.unlink(missing_ok=True)
    (output / INDEX).unlink(missing_ok=True)
    atomic_write(place, [json.dumps(stated).encode()], force=True)


def _held_bytes(output: Path) -> int:
    return sum(path.stat().st_size for path in output.glob("*.safetensors"))


def _require_space(output: Path, needed_bytes: int) -> None:
    """Raise `InputError` where the disk has no room for shards of so many bytes."""
    free = shutil.disk_usage(output).free
    if needed_bytes + SPARE_BYTES > free:
        what = f"the shards need {needed_bytes / 1e9:.2f} GB and {free / 1e9:.2f} GB are free"
        raise InputError(what, "Free some space, give fewer sessions, or cut them with --tokens", path=output)


def _write_session(
    model: CausalLM, tokenizer: Tokenizer | None, row: ShardRow, ids: Tensor, output: Path, settings: HarvestSettings
) -> None:
    """Write what is missing of one session's files."""
    shard, gradients = output / row.file, output / row.gradients if row.gradients else None
    if shard.exists() and (gradients is None or gradients.exists()):
        return
    snapshot = capture(model, ids[: row.tokens], tokenizer=tokenizer)
    if gradients is not None and not gradients.exists():
        seed = settings.seed * 1_000_003 + int(row.file[6:11])
        _write_gradients(model, snapshot, ids[row.tokens :], gradients, seed)
    if not shard.exists():
        save_raw(shard, _narrowed(snapshot, settings.dtype, shard))


def _narrowed(snapshot: KVSnapshot, dtype: str, path: Path) -> KVSnapshot:
    """Return a snapshot in a 16-bit type."""
    layers = []
    for layer in snapshot.layers:
        largest = max((float(part.abs().max()) for part in (layer.keys, layer.values) if part.numel()), default=0.0)
        if dtype == "float16" and largest > LARGEST_FLOAT16:
            raise InputError(f"a value of {largest:.3g} is beyond float16", "Pass --dtype bfloat16", path=path)
        keys, values = (part.to(CACHE_DTYPES[dtype]) for part in (layer.keys, layer.values))
        layers.append(LayerKV(keys, values, layer.positions))
    return KVSnapshot(tuple(layers), snapshot.token_ids, replace(snapshot.origin, dtype=dtype))


def _write_gradients(model: CausalLM, snapshot: KVSnapshot, continuation: Tensor, path: Path, seed: int) -> None:
    """Write gradients with respect to pre-RoPE channels, `gradients.i` [T, C] float16 in units of `scale`."""
    generator = torch.Generator().manual_seed(seed)
    found = cache_gradients(model, snapshot, continuation, rope_of(snapshot.origin), generator)
    rows = [torch.cat([rows_of(part) for part in pair], 1) for pair in found]
    largest = max((float(part.abs().max()) for part in rows if part.numel()), default=0.0)
    scale = max(largest, 1e-30) / 2**15
    tensors = {f"gradients.{index}": (part / scale).half() for index, part in enumerate(rows)}
    with atomic_path(path) as temporary:
        save_file(tensors | {"scale": torch.tensor(scale)}, temporary)


def _write_tokens(model: CausalLM, table: Tensor, sessions: Sequence[Tensor], probe: KVSnapshot, output: Path) -> None:
    """Write what the model says of single tokens."""
    ids = _first_ids(sessions, len(table))
    caches, rope = first_token_caches(model, ids), rope_of(probe.origin)
    held = dict(enumerate(caches))
    tensors = {f"first.{index}": layer_channels(held, [index], rope).clamp(-6e4, 6e4).half() for index in held}
    with atomic_path(output / TOKENS) as temporary:
        save_file(tensors | {"first_ids": ids, "embeddings": table.half()}, temporary)


def _first_ids(sessions: Sequence[Tensor], vocab_size: int) -> Tensor:
    """Return the ids [n] int64, ascending, of tokens to look at where they stand first."""
    openings = [int(ids[0]) for ids in sessions]
    counts = Counter(token for ids in sessions for token in ids.tolist())
    frequent = [token for token, _ in counts.most_common(FIRST_TOKENS // 2)]
    spread = torch.linspace(0, vocab_size - 1, min(FIRST_TOKENS, vocab_size), dtype=torch.float32).long().tolist()
    chosen = list(dict.fromkeys([*openings, *frequent, *spread]))[:FIRST_TOKENS]
    return torch.tensor(sorted(chosen))
