"""Shards: the caches of recorded sessions on disk, harvested once and read by every pass of a fit.

```
shards.json                  of which model, how sessions were cut and split; written first, so that a harvest can go on
tokens.safetensors           what the model says of single tokens: embeddings, caches of tokens that stand first
shard-00000.safetensors      raw snapshot of a session before its continuation
gradients-00000.safetensors  gradients of a sampled continuation with respect to that cache, for some sessions
index.jsonl                  a line a session, written last: id, file, tokens, continuation, part, gradients
```
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from kvcompress.errors import FormatError, InputError
from kvcompress.format.atomic_directory import recover
from kvcompress.format.raw_snapshot import load_raw, origin_of_raw, raw_layers
from kvcompress.format.safetensors_file import opened
from kvcompress.format.strict_json import read_json, read_json_lines
from kvcompress.hf.channels import Rope, layer_channels
from kvcompress.snapshot import KVSnapshot, Origin

INDEX, SETTINGS, TOKENS = "index.jsonl", "shards.json", "tokens.safetensors"
FIT, LEVELS, CALIBRATION = "fit", "levels", "calibration"
"""Parts of a harvest: prior, transform and steps; prediction, levels and tables; and what fits nothing."""

DIGEST_TOKENS = 256
MOST_ID = 1 << 31
"""No model has as many tokens in its vocabulary, no session as many in all."""


@dataclass(frozen=True, slots=True)
class HarvestSettings:
    """How sessions are cut and split.

    Attributes:
        tokens: Sessions are cut at this many tokens; None where only the model's context cuts them.
        continuation_tokens: Tokens at the end of each that stand for the future, at most half of it.
        calibration_share: Share of the sessions that fit nothing: quality is measured on them.
        levels_share: Share of the others kept out of prior and transform: levels and tables are fitted to them.
        gradient_sessions: Of the others, sessions whose gradients are kept.
        dtype: float16, or bfloat16 where numbers are too large for it.
        seed: Of the split and of sampled tokens.
    """

    tokens: int | None = None
    continuation_tokens: int = 256
    calibration_share: float = 0.25
    levels_share: float = 0.15
    gradient_sessions: int = 64
    dtype: str = "float16"
    seed: int = 0


@dataclass(frozen=True, slots=True)
class ShardRow:
    """One session of a harvest, a line of `index.jsonl`.

    Attributes:
        id: Of the session.
        file: Its shard.
        tokens: Tokens before the continuation.
        continuation: Token ids of the continuation.
        part: "fit", "levels" or "calibration".
        gradients: File of the gradients, None where there are none.
    """

    id: str
    file: str
    tokens: int
    continuation: tuple[int, ...]
    part: str
    gradients: str | None = None

    def to_json(self) -> dict[str, Any]:
        """Return the line as a JSON-able dictionary."""
        return asdict(self)

    @classmethod
    def from_json(cls, data: Any, path: Path) -> ShardRow:
        """Read a line; raises `FormatError` where it is none."""
        try:
            row = cls(**{**data, "continuation": tuple(map(int, data["continuation"]))})
        except (TypeError, KeyError, ValueError, OverflowError) as error:
            raise FormatError(f"a line is not of a shard ({error})", "Harvest again with --force", path=path) from error
        names = [row.file, *([row.gradients] if row.gradients else [])]
        plain = all(isinstance(name, str) and name and Path(name).name == name and name.isprintable() for name in names)
        counts = (row.tokens, *row.continuation)
        sound = all(type(count) is int and 0 <= count < MOST_ID for count in counts)
        if not plain or not sound or row.part not in (FIT, LEVELS, CALIBRATION):
            raise FormatError(f"the line of {row.id!r} is damaged", "Harvest again with --force", path=path)
        return row


class Shards:
    """A finished harvest.

    Args:
        directory: Where it lies.
        parts: Which sessions of it, "fit", "levels", "calibration" or several.

    Raises:
        InputError: There is no finished harvest.
        FormatError: Its index is damaged.
    """

    def __init__(self, directory: Path, parts: Sequence[str] = (FIT, LEVELS, CALIBRATION)) -> None:
        index = directory / INDEX
        recover(directory)
        if not index.is_file():
            raise InputError("no finished harvest here", "Make one with `kvcompress harvest`", path=directory)
        rows = [ShardRow.from_json(line, index) for _, line in read_json_lines(index, "a shard")]
        if not rows:
            raise FormatError("it names no session", "Harvest again with --force", path=index)
        self.directory = directory
        self.rows = [row for row in rows if row.part in parts]
        self.settings: dict[str, Any] = _settings(directory / SETTINGS)
        self.origin: Origin = origin_of_raw(directory / rows[0].file)

    def __len__(self) -> int:
        """Return the number of sessions."""
        return len(self.rows)

    def part(self, name: str) -> Shards:
        """Return the sessions of one part."""
        return Shards(self.directory, (name,))

    def snapshot(self, number: int) -> KVSnapshot:
        """Return the cache of a session before its continuation."""
        return load_raw(self.directory / self.rows[number].file)

    def continuation(self, number: int) -> Tensor:
        """Return the token ids [T] int64 that followed."""
        return torch.tensor(self.rows[number].continuation, dtype=torch.int64)

    def channels(self, number: int, layers: Sequence[int], rope: Rope) -> tuple[Tensor, Tensor, Tensor]:
        """Return token ids [N] of a session, positions [T] and channels [T, C] float32 of some of its layers."""
        token_ids, held = raw_layers(self.directory / self.rows[number].file, layers)
        return token_ids, held[layers[0]].positions, layer_channels(held, layers, rope)

    @property
    def with_gradients(self) -> list[int]:
        """Numbers of the sessions whose gradients are kept."""
        return [number for number, row in enumerate(self.rows) if row.gradients]

    def gradients(self, number: int, layers: Sequence[int]) -> Tensor:
        """Return gradients [T, C] float32 with respect to the channels of some layers of a session."""
        name = self.rows[number].gradients
        assert name is not None
        with opened(self.directory / name, "gradients") as file:
            parts = [file.get_tensor(f"gradients.{index}").float() for index in layers]
            found: Tensor = torch.cat(parts, 1) * file.get_tensor("scale")
        return found

    def token_ids(self, number: int) -> Tensor:
        """Return the token ids [N] int64 before the continuation."""
        return raw_layers(self.directory / self.rows[number].file, ())[0]

    def session(self, number: int) -> Tensor:
        """Return the token ids [N] int64 of a session with its continuation."""
        return torch.cat([self.token_ids(number), self.continuation(number)])

    @property
    def tokens(self) -> int:
        """Tokens of all sessions, continuations not counted."""
        return sum(row.tokens for row in self.rows)

    def embeddings(self) -> Tensor:
        """Return the model's token embeddings [V, E] float16."""
        with opened(self.directory / TOKENS, "token tensors") as file:
            found: Tensor = file.get_tensor("embeddings")
        return found

    def first_tokens(self, layers: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Return ids [n] int64 of tokens and the channels [n, C] float32 that each has where it stands first."""
        with opened(self.directory / TOKENS, "token tensors") as file:
            parts = [file.get_tensor(f"first.{index}").float() for index in layers]
            ids: Tensor = file.get_tensor("first_ids")
        return ids, torch.cat(parts, 1)


def _settings(place: Path) -> dict[str, Any]:
    found = read_json(place, "the settings of a harvest")
    if not isinstance(found, dict):
        raise FormatError("it is no JSON object", "Harvest again with --force", path=place)
    return found


def opening_digest(token_ids: Tensor) -> str:
    """Return a digest of how a session begins, ids [N] int64: the same however it is cut behind that."""
    data = token_ids[:DIGEST_TOKENS].to(torch.int64).numpy().tobytes()
    return hashlib.sha256(data).hexdigest()[:16]


def read_shards(directory: Path) -> Iterator[dict[str, Any]]:
    """Yield `{"id", "token_ids", "keys.i", "values.i"}` of each shard as tensors."""
    shards = Shards(directory)
    for number, row in enumerate(shards.rows):
        snapshot = shards.snapshot(number)
        data: dict[str, Any] = {"id": row.id, "token_ids": snapshot.token_ids}
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
        raise InputError("the package datasets is missing", 'pip install "kvcompress[train]"') from error

    def rows(directory: str) -> Iterator[dict[str, Any]]:
        # Imported here: datasets pickles this generator to fingerprint it.
        from pathlib import Path as LocalPath

        from kvcompress.data.shards import read_shards as read

        for row in read(LocalPath(directory)):
            yield {key: value.float().numpy() if hasattr(value, "float") else value for key, value in row.items()}

    return IterableDataset.from_generator(rows, gen_kwargs={"directory": str(directory)})
