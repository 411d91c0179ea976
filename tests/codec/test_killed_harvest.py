"""Law: a harvest that replaces another is there whole or not at all, whenever it is killed, and goes on."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from kvcompress.data.harvest import harvest
from kvcompress.errors import InputError
from kvcompress.format.atomic_directory import locked_directory
from tests.codec.killed_harvest_example import KILLS, NEW, OLD, SETTINGS, held, names, write
from tests.format.killed import in_child

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def old(model: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("old") / "shards"
    write(model, place, OLD)
    return place


@pytest.fixture(scope="module")
def killed() -> dict[str, Any]:
    """What a process of its own saw: gradients cannot be had in a fork of one that has had some."""
    command = [sys.executable, "-m", "tests.codec.killed_harvest_example"]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=300, cwd=ROOT)
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def test_killed_at_any_moment_the_old_or_the_new_is_there(killed: dict[str, Any]) -> None:
    assert len(killed["replaced"]) == KILLS
    assert set(killed["replaced"]) == {"old", "new"}
    assert killed["left"] > KILLS // 4, "the kills did not meet the work"
    assert killed["swept"] == ["shards"]


def test_the_first_one_goes_on_whenever_it_was_killed(killed: dict[str, Any]) -> None:
    assert killed["first"] == "new"
    assert not killed["hidden"]


def test_one_that_was_killed_goes_on(model: Any, old: Path, tmp_path: Path) -> None:
    class Killed(Exception):
        pass

    def kill(stage: str, done: int, total: int) -> None:
        if done == 3:
            raise Killed

    place, rows = tmp_path / "shards", [(f"s{number}", ids) for number, ids in enumerate(NEW)]
    shutil.copytree(old, place)
    (place / "notes.txt").write_text("of the user")
    with pytest.raises(Killed):
        harvest(model, None, rows, place, kill, settings=SETTINGS, force=True)
    assert held(place) == "old"
    made = {path.name: path.stat().st_mtime_ns for path in tmp_path.glob(".kvcompress-*/unfinished/shard-*")}
    assert len(made) == 3
    with pytest.raises(InputError, match="Pass --force"):
        write(model, place, NEW)
    write(model, place, NEW, force=True)
    assert held(place) == "new"
    assert {name: (place / name).stat().st_mtime_ns for name in made} == made
    assert (place / "notes.txt").exists()
    assert names(tmp_path) == ["shards"]


def test_sessions_with_the_same_lengths_and_sums_are_told_apart(model: Any, tmp_path: Path) -> None:
    place, flipped = tmp_path / "shards", [ids.flip(0) for ids in OLD]
    write(model, place, OLD)
    (place / "index.jsonl").unlink()
    with pytest.raises(InputError, match="other sessions"):
        write(model, place, flipped)


def test_a_directory_of_its_own_is_taken_where_it_is_of_these_sessions(model: Any, old: Path, tmp_path: Path) -> None:
    place = tmp_path / "shards"
    shutil.copytree(old, place)
    stamp = (place / "index.jsonl").stat().st_mtime_ns
    write(model, place, OLD, own=True)
    assert (place / "index.jsonl").stat().st_mtime_ns == stamp
    write(model, place, NEW, own=True)
    assert held(place) == "new"


def test_two_at_once_are_one_too_many(model: Any, old: Path, tmp_path: Path) -> None:
    place = tmp_path / "shards"
    shutil.copytree(old, place)
    with locked_directory(place):
        told = in_child(lambda: write(model, place, NEW, force=True))
    assert "another process is writing it. Wait for it" in told
    assert held(place) == "old"
