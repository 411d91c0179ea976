"""Sessions of a codec's training: split whole, never by token; caches harvested once into safetensors shards."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from safetensors.torch import load_file, save_file
from torch import Tensor

from kvcompress.channels import group_positions, to_channels
from kvcompress.codec import TinyVAECodec, rope_of
from kvcompress.harvest import tokenized_sessions
from kvcompress.hf import capture

SHORTEST_TOKENS = 64
VALIDATION_SHARE = 0.05

BELOW_RATE = 72
"""Rate at which lower groups are decoded for the first stage, in the middle of what is used."""


@dataclass(frozen=True, slots=True)
class Split:
    """Token ids of whole sessions, and for what.

    Attributes:
        train: Columns `id` and `token_ids`.
        validation: The same.
    """

    train: Dataset
    validation: Dataset


def split_sessions(model: Any, tokenizer: Any, path: Path, seed: int, kept_out: Sequence[Tensor] = ()) -> Split:
    """Tokenise a file of sessions and split it by session.

    Args:
        model: The model, for the length of its context.
        tokenizer: Its tokenizer.
        path: JSON lines of recorded sessions.
        seed: Of the split.
        kept_out: Sessions that are in neither part, because levels and tiers are measured on them.
    """
    hidden = {tuple(ids.tolist()) for ids in kept_out}
    rows = [
        {"id": session.id, "token_ids": ids.tolist()}
        for session, ids in tokenized_sessions(model, tokenizer, path)
        if len(ids) >= SHORTEST_TOKENS and tuple(ids.tolist()) not in hidden
    ]
    sessions = Dataset.from_list(rows)
    held = max(1, round(VALIDATION_SHARE * len(rows)))
    parts = sessions.train_test_split(test_size=held, seed=seed, shuffle=True)
    return Split(parts["train"], parts["test"])


class ChannelShards(torch.utils.data.Dataset[dict[str, Tensor]]):
    """Channels of sessions, one file a session; made once, then only read.

    Args:
        directory: Where the shards are.
        count: Sessions.
    """

    def __init__(self, directory: Path, count: int) -> None:
        self.paths = [directory / f"{number:05d}.safetensors" for number in range(count)]

    def __len__(self) -> int:
        """Return the number of sessions."""
        return len(self.paths)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        """Return `token_ids` [N] and for each group g `places.g` [T], `channels.g` [T, C] float16, `known.g` [N, C'].

        Known channels, float16, are there only where the codec leaves layers to the model; `below.g` [T, B] float16,
        decoded latents of lower groups, only where it has several.
        """
        return load_file(self.paths[index])


@torch.inference_mode()
def harvest_channels(
    model: Any, codec: TinyVAECodec, sessions: Dataset, directory: Path, progress: Callable[[str, int, int], None]
) -> ChannelShards:
    """Write what is not there yet of the shards of sessions."""
    directory.mkdir(parents=True, exist_ok=True)
    shards = ChannelShards(directory, len(sessions))
    for number, (path, row) in enumerate(zip(shards.paths, sessions, strict=True)):
        if not path.exists():
            ids = torch.tensor(row["token_ids"])
            tensors = {"token_ids": ids} | _channels(model, codec, ids)
            part = path.with_suffix(".part")
            save_file(tensors, part)
            part.rename(path)
        progress(f"harvest {directory.name}", number + 1, len(sessions))
    return shards


def _channels(model: Any, codec: TinyVAECodec, ids: Tensor) -> dict[str, Tensor]:
    snapshot, found = capture(model, ids), dict[str, Tensor]()
    for group, layers in enumerate(codec.groups):
        found[f"places.{group}"] = group_positions(snapshot, layers).clone()
        channels = to_channels(snapshot, layers, rope_of(snapshot.origin))
        found[f"channels.{group}"] = channels.clamp(-6e4, 6e4).half()
        known = codec.known_rows(snapshot, group)
        if known is not None:
            found[f"known.{group}"] = known.clamp(-6e4, 6e4).half()
    for group, below in enumerate(codec.below(snapshot, BELOW_RATE)):
        if below is not None:
            found[f"below.{group}"] = below.clone().clamp(-6e4, 6e4).half()
    return found


class Cuts(torch.utils.data.Dataset[tuple[Tensor, int]]):
    """Sessions cut in two at random: what is cached and what follows.

    Args:
        sessions: Column `token_ids`.
        prefix_tokens: Tokens before the cut, at most.
        continuation_tokens: Tokens after it.
        seed: Of the cuts; epochs differ.
    """

    def __init__(self, sessions: Dataset, prefix_tokens: int, continuation_tokens: int, seed: int) -> None:
        self.sessions, self.prefix, self.continuation = sessions, prefix_tokens, continuation_tokens
        self.seed, self.epoch = seed, 0

    def __len__(self) -> int:
        """Return the number of sessions."""
        return len(self.sessions)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        """Return token ids [N] and how many of them are cached."""
        ids = torch.tensor(self.sessions[index]["token_ids"])
        chance = random.Random(f"{self.seed}:{self.epoch}:{index}")
        after = min(self.continuation, len(ids) // 3)
        most = min(self.prefix, len(ids) - after)
        cut = chance.randint(max(1, most // 2), most)
        # Sessions end with what was asked last: half of the cuts look at an end, the others anywhere.
        start = len(ids) - after - cut if chance.random() < 0.5 and len(ids) <= self.prefix + after else 0
        return ids[start : start + cut + after], cut
