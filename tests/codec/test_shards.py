"""Shards: made once, resumed after a kill, refused where they are another's, and fits that go on."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from safetensors.torch import load_file

from kvcompress.codec.recompute import parse_layers
from kvcompress.data import harvest as harvest_module
from kvcompress.data.harvest import harvest
from kvcompress.data.shards import CALIBRATION, FIT, INDEX, LEVELS, HarvestSettings, Shards, opening_digest
from kvcompress.errors import FormatError, InputError, MismatchError
from kvcompress.fit.fitter import Fitter
from kvcompress.fit.run import verify
from kvcompress.fit.settings import FitSettings
from kvcompress.fit.working import Working
from kvcompress.hf import capture, fingerprint
from tests.codec.conftest import random_sessions, tiny_model

SETTINGS = HarvestSettings(continuation_tokens=32, gradient_sessions=4)
FIT_SETTINGS = FitSettings(rank=24, prior_rank=8, prior_taps=2, fisher_sessions=4, continuation_tokens=32)


class Usage(NamedTuple):
    total: int
    used: int
    free: int


def silent(stage: str, done: int, total: int) -> None:
    """Take progress and say nothing."""


def made(model: Any, place: Path, count: int = 8, progress: Callable[[str, int, int], None] = silent) -> Path:
    rows = [(f"s{number}", ids) for number, ids in enumerate(random_sessions(count, 96))]
    harvest(model, None, rows, place, progress, settings=SETTINGS)
    return place


@pytest.fixture(scope="module")
def shards(model: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return made(model, tmp_path_factory.mktemp("harvest") / "shards")


def test_shards_hold_what_the_model_has_before_the_continuation(model: Any, shards: Path) -> None:
    found = Shards(shards)
    session = random_sessions(8, 96)[3]
    exact, stored = capture(model, session[:64]), found.snapshot(3)
    assert torch.equal(found.session(3), session)
    assert stored.origin.dtype == "float16"
    for ours, theirs in zip(stored.layers, exact.layers, strict=True):
        assert torch.equal(ours.keys, theirs.keys.half())
    parts = [{row.id for row in found.part(name).rows} for name in (FIT, LEVELS, CALIBRATION)]
    assert all(parts)
    assert sum(map(len, parts)) == len(set.union(*parts)) == 8


def test_what_promises_are_verified_on_fits_nothing(shards: Path, tmp_path: Path) -> None:
    """Caches kept for promises may hold anything: the codec that comes out is the same."""
    place, whole = tmp_path / "shards", Fitter(Shards(shards), FIT_SETTINGS).fit()
    shutil.copytree(shards, place)
    kept = Shards(place).part(CALIBRATION)
    for row in kept.rows:
        (place / row.file).write_bytes((place / Shards(place).part(FIT).rows[0].file).read_bytes())
    again = Fitter(Shards(place), FIT_SETTINGS).fit()
    assert again.fingerprint == whole.fingerprint
    assert again.fitted["session_digests"] == whole.fitted["session_digests"]
    digests = {opening_digest(Shards(shards).part(CALIBRATION).session(number)) for number in range(len(kept))}
    assert not digests & set(whole.fitted["session_digests"])


def test_whether_a_promise_was_measured_apart_from_the_fit_is_looked_at(
    model: Any, shards: Path, tmp_path: Path
) -> None:
    told: list[str] = []
    codec = Fitter(Shards(shards), FIT_SETTINGS).fit()
    verify(codec, model, None, Shards(shards), Working(None), silent, told.append)
    assert codec.fitted["verified_apart"]
    assert "no quality is promised" in told[0]  # of eight sessions
    place = tmp_path / "shards"
    shutil.copytree(shards, place)
    one, other = Shards(place).part(CALIBRATION).rows[0], Shards(place).part(FIT).rows[0]
    shutil.copy(place / other.file, place / one.file)
    rows = [json.loads(line) for line in (place / INDEX).read_text().splitlines()]
    followed = next(row["continuation"] for row in rows if row["id"] == other.id)
    rows = [row | ({"continuation": followed} if row["id"] == one.id else {}) for row in rows]
    (place / INDEX).write_text("".join(json.dumps(row) + "\n" for row in rows))
    verify(codec, model, None, Shards(place), Working(None), silent, told.append)
    assert not codec.fitted["verified_apart"]


def test_first_tokens_have_the_cache_of_a_session_of_one_token(model: Any, shards: Path) -> None:
    ids, channels = Shards(shards).first_tokens([1])
    alone = capture(model, ids[5:6])
    values = alone.layers[1].values.transpose(0, 1).flatten(1)
    assert torch.allclose(channels[5, values.shape[1] :], values[0], atol=2e-3)


def test_a_killed_harvest_goes_on_and_ends_the_same(model: Any, shards: Path, tmp_path: Path) -> None:
    class Killed(Exception):
        pass

    def kill(stage: str, done: int, total: int) -> None:
        if done == 5:
            raise Killed

    place = tmp_path / "shards"
    with pytest.raises(Killed):
        made(model, place, progress=kill)
    assert not (place / INDEX).exists()
    before = {path.name: path.stat().st_mtime_ns for path in place.glob("shard-*")}
    assert len(before) == 5
    made(model, place)
    assert all((place / name).stat().st_mtime_ns == stamp for name, stamp in before.items())
    assert (place / INDEX).read_bytes() == (shards / INDEX).read_bytes()
    for path in shards.glob("*.safetensors"):  # the library writes metadata in any order
        ours, theirs = load_file(place / path.name), load_file(path)
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(ours[name], theirs[name]) for name in theirs), path.name


def test_what_another_harvest_left_is_not_mixed_in(model: Any, shards: Path, tmp_path: Path) -> None:
    place = tmp_path / "shards"
    shutil.copytree(shards, place)
    (place / INDEX).unlink()
    with pytest.raises(MismatchError, match="model of these shards"):
        made(tiny_model(seed=5), place)
    with pytest.raises(InputError, match="other sessions or settings"):
        made(model, place, count=7)
    with pytest.raises(InputError, match="already holds shards"):
        made(model, shards)


def test_no_space_for_shards_is_said_before_anything_is_written(
    model: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(harvest_module.shutil, "disk_usage", lambda path: Usage(10**9, 10**9 - 10**6, 10**6))
    with pytest.raises(InputError, match="are free"):
        made(model, tmp_path / "shards")
    assert not list((tmp_path / "shards").glob("*.safetensors"))


@pytest.mark.parametrize(
    "damage", ["{", '{"id": "a"}', '{"id":"a","file":"../x","tokens":1,"continuation":[],"part":"fit"}']
)
def test_a_damaged_index_is_refused(shards: Path, tmp_path: Path, damage: str) -> None:
    place = tmp_path / "shards"
    shutil.copytree(shards, place)
    (place / INDEX).write_text(damage + "\n")
    with pytest.raises(FormatError):
        Shards(place)


def test_a_directory_without_a_harvest_says_how_to_make_one(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="kvcompress harvest"):
        Shards(tmp_path)


def test_a_killed_fit_goes_on_with_the_next_pass(shards: Path, tmp_path: Path) -> None:
    class Killed(Exception):
        pass

    whole = Fitter(Shards(shards), FIT_SETTINGS).fit()
    ran: list[str] = []

    def kill(stage: str, done: int, total: int) -> None:
        ran.append(stage)
        if stage.startswith("worth"):
            raise Killed

    place = tmp_path / "work"
    with pytest.raises(Killed):
        Fitter(Shards(shards), FIT_SETTINGS, kill, Working(place, {"run": 1})).fit()
    assert "sensitivity" in ran
    ran.clear()
    again = Fitter(
        Shards(shards), FIT_SETTINGS, lambda stage, done, total: ran.append(stage), Working(place, {"run": 1})
    ).fit()
    assert "sensitivity" not in ran
    assert again.fingerprint == whole.fingerprint


def test_a_working_directory_of_something_else_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(InputError, match="no working directory"):
        Working(tmp_path, {"run": 1})
    assert (tmp_path / "thesis.txt").exists()


def test_results_of_other_settings_are_not_taken(tmp_path: Path) -> None:
    Working(tmp_path / "w", {"run": 1}).tensors("a", lambda: {"x": torch.ones(1)})
    found = Working(tmp_path / "w", {"run": 2}).tensors("a", lambda: {"x": torch.zeros(1)})
    assert float(found["x"]) == 0.0


def test_shards_name_their_model(model: Any, shards: Path) -> None:
    stated = json.loads((shards / "shards.json").read_text())
    assert stated["model"]["weights"] == fingerprint(model).weights
    assert stated["parameters"] == sum(parameter.numel() for parameter in model.parameters())


@pytest.mark.parametrize(("asked", "layers"), [("3", 3), ("10%", 3), ("20 %", 6), ("0", 0), ("1%", 0)])
def test_layers_are_asked_for_by_number_or_share(asked: str, layers: int) -> None:
    assert parse_layers(asked, lambda: 30) == layers


@pytest.mark.parametrize("asked", ["", "a tenth", "100%", "-5%", "1.5", "%"])
def test_other_words_for_layers_are_refused(asked: str) -> None:
    with pytest.raises(InputError, match="neither a number"):
        parse_layers(asked, lambda: 30)
