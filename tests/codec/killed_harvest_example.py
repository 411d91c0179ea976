"""Harvests with a tiny model whose processes are killed; run as a module it prints what was seen."""

from __future__ import annotations

import json
import os
import random
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from kvcompress.data.harvest import harvest
from kvcompress.data.shards import HarvestSettings, Shards
from tests.codec.conftest import random_sessions, tiny_model
from tests.format.killed import in_child, killed_after

KILLS = 20
SETTINGS = HarvestSettings(continuation_tokens=16, gradient_sessions=2)
OLD, NEW = random_sessions(3, 48, seed=3), random_sessions(4, 48, seed=4)


def write(model: Any, place: Path, sessions: Sequence[torch.Tensor], **options: Any) -> None:
    rows = [(f"s{number}", ids) for number, ids in enumerate(sessions)]
    harvest(model, None, rows, place, lambda stage, done, total: None, settings=SETTINGS, **options)


def held(place: Path) -> str:
    """Return which of the two harvests lies in a directory, every file of it read."""
    shards = Shards(place)
    found = [shards.session(number) for number in range(len(shards))]
    for number in shards.with_gradients:
        shards.gradients(number, [0])
    shards.first_tokens([0])
    for name, wanted in (("old", OLD), ("new", NEW)):
        if len(found) == len(wanted) and all(map(torch.equal, found, wanted)):
            assert [row[1] for row in shards.settings["sessions"]] == [len(ids) for ids in wanted]
            assert len(list(place.glob("shard-*"))) == len(wanted)
            return name
    raise AssertionError("a mixture")


def names(directory: Path) -> list[str]:
    return sorted(entry.name for entry in directory.iterdir())


def killed_while_replacing(model: Any, root: Path) -> dict[str, Any]:
    """Kill harvests that replace one another; each time the one before or the one after is there."""
    place, chance, replaced, left = root / "shards", random.Random(5), [], 0
    in_child(lambda: write(model, place, OLD))
    start = time.perf_counter()
    in_child(lambda: write(model, place, OLD, force=True))
    once = time.perf_counter() - start
    for _ in range(KILLS):
        before = held(place)
        after, sessions = ("old", OLD) if before == "new" else ("new", NEW)
        killed_after(chance.uniform(0, 1.3 * once), lambda sessions=sessions: write(model, place, sessions, force=True))
        now = held(place)
        assert now in (before, after)
        replaced.append("new" if now == after else "old")
        left += names(root) != ["shards"]
    in_child(lambda: write(model, place, NEW, force=True))
    assert held(place) == "new"
    return {"replaced": replaced, "left": left, "swept": names(root)}


def killed_while_new(model: Any, place: Path) -> dict[str, Any]:
    """Kill a harvest where there is none yet, and let it go on."""
    chance = random.Random(2)
    for _ in range(4):
        killed_after(chance.uniform(0, 0.2), lambda: write(model, place, NEW))
    if not (place / "index.jsonl").exists():
        told = in_child(lambda: write(model, place, NEW))
        assert not told, told
    return {"first": held(place), "hidden": [*map(str, place.glob(".*")), *map(str, place.parent.glob(".*"))]}


def main() -> None:
    torch.set_num_threads(1)
    os.fsync = lambda descriptor: None  # what a killed process wrote the system keeps
    model = tiny_model()
    with tempfile.TemporaryDirectory() as one, tempfile.TemporaryDirectory() as other:
        found = killed_while_replacing(model, Path(one)) | killed_while_new(model, Path(other) / "shards")
    sys.stdout.write(json.dumps(found) + "\n")


if __name__ == "__main__":
    main()
