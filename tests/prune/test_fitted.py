"""What scorers learnt lies with the codec of its model: it changes plans, not files of one tier or the fingerprint."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from kvcompress.codec.directory import load_codec
from kvcompress.codec.pull import pull
from kvcompress.codec.tinyvae import TinyVAECodec
from kvcompress.errors import CheckpointError
from kvcompress.fit.checkpoint import save_codec
from kvcompress.hub.hub_id import SCORERS_FILE
from kvcompress.prune.evidence.collect import collect
from kvcompress.prune.evidence.record import KINDS
from kvcompress.prune.scorers.profiles import FITTED, KNOTS, Profile, fitted_file, load_fitted, profile_of
from kvcompress.prune.scorers.registry import find_scorer, scored
from kvcompress.prune.session import Asked, PlannedSession, SessionPlanner
from kvcompress.snapshot import KVSnapshot


@pytest.fixture
def directory(codec: TinyVAECodec, tmp_path: Path) -> Path:
    save_codec(codec, tmp_path / "codec")
    return tmp_path / "codec"


def learnt(codec: TinyVAECodec, **changes: Any) -> dict[str, Any]:
    """The numbers that came along, said to be of a codec's model, some of them changed."""
    return {**load_fitted(FITTED), "made": {"model": codec.model_fingerprint.weights}, **changes}


def planned(directory: Path, model: Any, snapshot: KVSnapshot, scorer: str = "key_norm") -> PlannedSession:
    asked = Asked(scorers=(scorer,), size_ratio=30.0)
    return SessionPlanner(load_codec(directory), model, None, snapshot, asked).run_quickly()


def test_another_profile_changes_the_plan_and_nothing_else(
    directory: Path, codec: TinyVAECodec, model: Any, snapshot: KVSnapshot
) -> None:
    before = planned(directory, model, snapshot)
    steep = {"share": 0.0, "curve": [20 * knot for knot in KNOTS]}
    (directory / SCORERS_FILE).write_text(json.dumps(learnt(codec, profiles={"key_norm": steep})))
    after = planned(directory, model, snapshot)
    assert not torch.equal(before.table.tiers, after.table.tiers)
    loaded = load_codec(directory)
    assert loaded.fingerprint == codec.fingerprint
    assert loaded.encode(snapshot, 60).to_bytes() == codec.encode(snapshot, 60).to_bytes()
    assert profile_of("key_norm", fitted_file(loaded)) == Profile(0.0, tuple(steep["curve"]))


def test_a_codec_without_numbers_takes_those_that_came_along(
    directory: Path, codec: TinyVAECodec, model: Any, snapshot: KVSnapshot
) -> None:
    assert fitted_file(load_codec(directory)) == FITTED
    before = planned(directory, model, snapshot, "learned")
    (directory / SCORERS_FILE).write_text(json.dumps(learnt(codec)))
    assert planned(directory, model, snapshot, "learned").encoded.to_bytes() == before.encoded.to_bytes()


@pytest.mark.parametrize("scorer", ["learned", "salience"])
def test_scorers_take_what_the_codecs_file_holds(
    scorer: str, directory: Path, codec: TinyVAECodec, model: Any, snapshot: KVSnapshot
) -> None:
    evidence = collect(model, snapshot, KINDS, codec=codec)
    numbers = dict(load_fitted(FITTED))
    network = numbers["learned"]["numbers"]
    numbers["learned"] = {
        **numbers["learned"],
        "numbers": {**network, "2.weight": [[-w for w in network["2.weight"][0]]]},
    }
    numbers["salience"] = {"surprise": 0, "novelty": 1, "arousal": 0, "reward": 0, "conflict": 0}
    path = directory / SCORERS_FILE
    path.write_text(json.dumps(numbers))
    assert not torch.equal(scored(find_scorer(scorer, path), evidence), scored(find_scorer(scorer), evidence))


BROKEN: dict[str, dict[str, Any]] = {
    "no profiles": {"profiles": None},
    "a curve that is cut": {"profiles": {"key_norm": {"share": 1, "curve": [0.0]}}},
    "a number that is text": {"profiles": {"key_norm": {"share": "1", "curve": [0.0] * len(KNOTS)}}},
    "a number that is none": {"profiles": {"key_norm": {"share": float("nan"), "curve": [0.0] * len(KNOTS)}}},
    "a curve of truths": {"profiles": {"key_norm": {"share": 1, "curve": [True] * len(KNOTS)}}},
    "another model's": {"made": {"model": "ab" * 32}},
    "nobody's": {"made": {}},
}


@pytest.mark.parametrize("name", sorted(BROKEN))
def test_a_broken_file_is_one_clear_error(
    name: str, directory: Path, codec: TinyVAECodec, model: Any, snapshot: KVSnapshot
) -> None:
    (directory / SCORERS_FILE).write_text(json.dumps(learnt(codec, **BROKEN[name])))
    with pytest.raises(CheckpointError, match=r"scorers\.json.*--fit") as failure:
        planned(directory, model, snapshot)
    assert "\n" not in str(failure.value)
    assert load_codec(directory).encode(snapshot, 60)  # what needs no plan goes on


@pytest.mark.parametrize("text", ["", "{", "[]", "\x00", "[" * 100_000])
def test_a_file_that_is_no_json_is_one_clear_error(
    text: str, directory: Path, model: Any, snapshot: KVSnapshot
) -> None:
    (directory / SCORERS_FILE).write_text(text)
    with pytest.raises(CheckpointError, match=r"scorers\.json.*--fit"):
        planned(directory, model, snapshot)


@pytest.mark.parametrize("scorer", ["learned", "salience"])
def test_numbers_that_do_not_fit_a_scorer_are_one_clear_error(
    scorer: str, directory: Path, codec: TinyVAECodec, model: Any, snapshot: KVSnapshot
) -> None:
    (directory / SCORERS_FILE).write_text(
        json.dumps(learnt(codec, learned={"features": []}, salience={"novelty": "x"}))
    )
    with pytest.raises(CheckpointError, match=r"scorers\.json.*--fit"):
        planned(directory, model, snapshot, scorer)


def test_what_is_copied_brings_its_numbers_along(directory: Path, codec: TinyVAECodec, tmp_path: Path) -> None:
    (directory / SCORERS_FILE).write_text(json.dumps(learnt(codec)))
    pull(str(directory), tmp_path / "copy")
    assert (tmp_path / "copy" / SCORERS_FILE).read_text() == (directory / SCORERS_FILE).read_text()
    assert fitted_file(load_codec(tmp_path / "copy")) == tmp_path / "copy" / SCORERS_FILE
