"""Harvest the caches of recorded sessions: the only pass of a fit that runs the model over all of them.

Each file is written whole or not at all and the index last, so a harvest that was killed goes on where it stopped. One
that replaces another (`force`) is made in a hidden folder beside it and takes its place when it is whole.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import shutil
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from kvcompress.data.sessions import Session, read_sessions, session_token_ids
from kvcompress.data.shards import CALIBRATION, FIT, INDEX, LEVELS, SETTINGS, TOKENS, HarvestSettings, ShardRow
from kvcompress.errors import InputError, MismatchError
from kvcompress.format.atomic import atomic_path, atomic_write
from kvcompress.format.atomic_directory import atomic_directory, carry_over, locked_directory, require_directory, sweep
from kvcompress.format.raw_snapshot import save_raw
from kvcompress.format.safetensors_file import write_tensors
from kvcompress.format.working_folder import PREFIX, remove
from kvcompress.hf import capture
from kvcompress.hf.channels import layer_channels, layer_shapes, rows_of
from kvcompress.hf.families import context_tokens
from kvcompress.hf.gradients import cache_gradients
from kvcompress.hf.rope import rope_of
from kvcompress.hf.single_tokens import embeddings_of, first_token_caches
from kvcompress.hf.types import CausalLM, Tokenizer
from kvcompress.snapshot import CACHE_DTYPES, KVSnapshot, LayerKV

Progress = Callable[[str, int, int], None]
Announce = Callable[[str], None]

OWN_FILES = (INDEX, SETTINGS, TOKENS, "shard-*.safetensors", "gradients-*.safetensors")

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
    own: bool = False,
    announce: Announce = lambda line: None,
) -> dict[str, Any]:
    """Write the shards of a file of sessions, or those that an earlier run did not come to.

    Args:
        model: A causal language model in evaluation mode.
        tokenizer: Its tokenizer.
        sessions: JSON lines of recorded sessions.
        output: Directory of the shards.
        progress: Called after each session.
        settings: How sessions are cut and split.
        force: Replace finished shards, and others of other sessions, settings or another model.
        own: The directory is nobody else's: finished shards are taken where they are these, others made anew in place.
        announce: Called with one line that says how large the shards will be.

    Returns:
        Counts of sessions, tokens and bytes.

    Raises:
        InputError: There are finished or other shards, not enough space, or another process is writing them.
    """
    rows = [(session.id, ids) for session, ids in tokenized_sessions(model, tokenizer, sessions)]
    options: dict[str, Any] = {"settings": settings, "force": force, "own": own, "announce": announce}
    return harvest(model, tokenizer, rows, output, progress, **options)


def harvest(
    model: CausalLM,
    tokenizer: Tokenizer | None,
    sessions: Sequence[tuple[str, Tensor]],
    output: Path,
    progress: Progress,
    *,
    settings: HarvestSettings | None = None,
    force: bool = False,
    own: bool = False,
    announce: Announce = lambda line: None,
) -> dict[str, Any]:
    """Write the shards of sessions given as id and token ids [N] int64; as `write_shards`."""
    if not own:
        require_place_of_shards(output, force)
    work = _Harvest(model, tokenizer, sessions, settings or HarvestSettings())
    with _locked(output):
        finished = (output / INDEX).exists()
        if finished and own and work.is_of(output):
            pass
        elif finished and force:
            announce("the old shards stay until the new ones are whole: both take room on the disk")
            with atomic_directory(output, force=True, go_on=True) as fresh:
                work.write(fresh, progress, announce, replace_others=True)
                others = [entry.name for entry in output.iterdir() if not any(map(entry.match, OWN_FILES))]
                carry_over(output, fresh, others)
        else:
            output.mkdir(parents=True, exist_ok=True)
            work.write(output, progress, announce, replace_others=force or own)
    tokens = sum(row.tokens for row in work.rows)
    return {"output": str(output), "sessions": len(work.rows), "tokens": tokens, "file_bytes": _held_bytes(output)}


def require_place_of_shards(output: Path, force: bool = False) -> None:
    """Refuse a place where shards could not be written, before a model is loaded.

    Raises:
        InputError: There are finished shards that are not to be replaced, or that cannot be.
    """
    finished = (output / INDEX).exists()
    if finished and not force:
        sweep(output)
        raise InputError("already holds shards", "Pass --force to replace them", path=output)
    if finished or not output.is_dir():  # an unfinished one is written in place
        require_directory(output, force=finished)


def _locked(output: Path) -> AbstractContextManager[None]:
    """Let no other process write the shards; a volume whose parent is closed to us goes without the lock."""
    parent = Path(os.path.realpath(output)).parent
    return locked_directory(output) if os.access(parent, os.W_OK) or not parent.exists() else nullcontext()


class _Harvest:
    """A harvest of sessions, given as id and token ids [N] int64, that can be written to a directory.

    Attributes:
        rows: What its index will say.
        stated: What `shards.json` will say.
    """

    def __init__(
        self,
        model: CausalLM,
        tokenizer: Tokenizer | None,
        sessions: Sequence[tuple[str, Tensor]],
        settings: HarvestSettings,
    ) -> None:
        self.model, self.tokenizer, self.settings = model, tokenizer, settings
        self.sessions = [(name, ids[: settings.tokens].clone()) for name, ids in sessions if len(ids)]
        self.rows = split_rows(self.sessions, settings)
        self.probe = capture(model, self.sessions[0][1][:2], tokenizer=tokenizer)
        self.stated: dict[str, Any] = {
            "model": asdict(self.probe.origin.fingerprint),
            "settings": asdict(settings),
            "sessions": [[name, len(ids), int(ids.sum()), _digest(ids)] for name, ids in self.sessions],
            "parameters": sum(parameter.numel() for parameter in model.parameters()),
            "shapes": [[s.heads, s.key_size, s.value_size] for s in layer_shapes(self.probe)],
        }

    def write(self, place: Path, progress: Progress, announce: Announce, *, replace_others: bool) -> None:
        """Write what is missing in a directory, the index last."""
        if not self.is_of(place):
            self._take(place, replace_others)
        values, table = sum(shape.channels for shape in layer_shapes(self.probe)), embeddings_of(self.model)
        needed, rows = shard_bytes(self.rows, values, table.numel()), self.rows
        tokens = sum(row.tokens for row in rows)
        announce(f"{len(rows)} sessions, {tokens:,} tokens: shards of about {needed / 1e9:.2f} GB")
        _require_space(place, needed - _held_bytes(place))
        for done, (row, (_, ids)) in enumerate(zip(rows, self.sessions, strict=True), 1):
            _write_session(self.model, self.tokenizer, row, ids, place, self.settings)
            progress("harvest", done, len(rows))
        if not (place / TOKENS).exists():
            _write_tokens(self.model, table, [ids for _, ids in self.sessions], self.probe, place)
        atomic_write(place / INDEX, ((json.dumps(row.to_json()) + "\n").encode() for row in rows), force=True)

    def is_of(self, place: Path) -> bool:
        """Return whether what lies in a directory, whole or not, is of this harvest."""
        found = _stated_in(place)
        return found is not None and found == json.loads(json.dumps(self.stated))

    def _take(self, place: Path, replace_others: bool) -> None:
        """Say in `shards.json` what will lie here; what is of other sessions is removed or refused."""
        found = _stated_in(place)
        if found is not None and not replace_others:
            if found.get("model") != self.stated["model"]:
                ours, theirs = (str(one.get("weights"))[:16] for one in (self.stated["model"], found.get("model", {})))
                raise MismatchError(
                    "the model of these shards", ours, theirs, "Pass --force to replace them", path=place
                )
            raise InputError("holds shards of other sessions or settings", "Pass --force to replace them", path=place)
        # The index first: without it nothing here is a harvest, whenever this is interrupted.
        for pattern in (*OWN_FILES, f"{PREFIX}*"):
            for old in place.glob(pattern):
                remove(old)
        atomic_write(place / SETTINGS, [json.dumps(self.stated).encode()], force=True)


def _stated_in(place: Path) -> dict[str, Any] | None:
    """Return what `shards.json` of a directory says, None where it is missing; empty where it is damaged."""
    try:
        found = json.loads((place / SETTINGS).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def _digest(ids: Tensor) -> str:
    return hashlib.sha256(ids.numpy().tobytes()).hexdigest()[:16]


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
        write_tensors(temporary, tensors | {"scale": torch.tensor(scale)})


def _write_tokens(model: CausalLM, table: Tensor, sessions: Sequence[Tensor], probe: KVSnapshot, output: Path) -> None:
    """Write what the model says of single tokens."""
    ids = _first_ids(sessions, len(table))
    caches, rope = first_token_caches(model, ids), rope_of(probe.origin)
    held = dict(enumerate(caches))
    tensors = {f"first.{index}": layer_channels(held, [index], rope).clamp(-6e4, 6e4).half() for index in held}
    with atomic_path(output / TOKENS) as temporary:
        write_tensors(temporary, tensors | {"first_ids": ids, "embeddings": table.half()})


def _first_ids(sessions: Sequence[Tensor], vocab_size: int) -> Tensor:
    """Return the ids [n] int64, ascending, of tokens to look at where they stand first."""
    openings = [int(ids[0]) for ids in sessions]
    counts = Counter(token for ids in sessions for token in ids.tolist())
    frequent = [token for token, _ in counts.most_common(FIRST_TOKENS // 2)]
    spread = torch.linspace(0, vocab_size - 1, min(FIRST_TOKENS, vocab_size), dtype=torch.float32).long().tolist()
    chosen = list(dict.fromkeys([*openings, *frequent, *spread]))[:FIRST_TOKENS]
    return torch.tensor(sorted(chosen))
