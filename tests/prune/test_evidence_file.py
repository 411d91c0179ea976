"""Stored evidence is what was collected, of its own session only; a file that is anything else is refused."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from kvcompress.codec.tinyvae import TinyVAECodec
from kvcompress.errors import FormatError, InputError, KVCompressError, MismatchError
from kvcompress.hf import capture
from kvcompress.prune.evidence.collect import collect
from kvcompress.prune.evidence.file import load_evidence, save_evidence
from kvcompress.prune.evidence.record import KINDS, SURPRISE, Evidence
from kvcompress.prune.scorers.registry import SCORERS, find_scorer, scored
from kvcompress.snapshot import KVSnapshot
from tests.codec.conftest import random_sessions
from tests.format.examples import make_evidence
from tests.format.make_golden import GOLDEN


@pytest.fixture(scope="module")
def evidence(model: Any, codec: TinyVAECodec, snapshot: KVSnapshot) -> Evidence:
    ages = torch.linspace(9_000, 0, snapshot.tokens)
    return collect(model, snapshot, KINDS, codec=codec, known=Evidence(snapshot, ages_seconds=ages))


@pytest.fixture
def path(evidence: Evidence, tmp_path: Path) -> Path:
    save_evidence(tmp_path / "e.safetensors", evidence, "a codec")
    return tmp_path / "e.safetensors"


def test_every_scorer_says_the_same_of_stored_evidence(path: Path, evidence: Evidence, snapshot: KVSnapshot) -> None:
    again, codec = load_evidence(path, snapshot)
    assert codec == "a codec"
    assert again.kinds == KINDS
    for name in SCORERS:
        assert torch.equal(scored(find_scorer(name), again), scored(find_scorer(name), evidence)), name


def test_the_golden_file_is_read_as_it_was_written() -> None:
    known = make_evidence()
    again, codec = load_evidence(GOLDEN / "evidence.safetensors", known.snapshot)
    assert codec == "a codec"
    for name in ("surprise", "sensitivity", "ages_seconds"):
        assert torch.equal(getattr(again, name), getattr(known, name))
    for ours, theirs in zip(again.require_queries(), known.require_queries(), strict=True):
        assert torch.equal(ours.mean, theirs.mean)
        assert torch.equal(ours.covariance, theirs.covariance)
        assert ours.scaling == theirs.scaling
    for kind in ("window_attention", "reconstruction"):
        for mine, other in zip(getattr(again, kind), getattr(known, kind), strict=True):
            assert torch.equal(mine, other)


def test_what_was_not_collected_is_left_out_and_may_be_collected_later(
    model: Any, codec: TinyVAECodec, evidence: Evidence, snapshot: KVSnapshot, tmp_path: Path
) -> None:
    part = collect(model, snapshot, [SURPRISE])
    save_evidence(tmp_path / "part", dataclasses.replace(part, queries=None, window_attention=None))
    again, fingerprint = load_evidence(tmp_path / "part", snapshot)
    assert (again.kinds, fingerprint, again.ages_seconds) == ((SURPRISE,), "", None)
    whole = collect(model, snapshot, KINDS, codec=codec, known=again)
    assert torch.equal(whole.require_surprise(), again.require_surprise())
    assert torch.equal(whole.require_sensitivity(), evidence.require_sensitivity())


def test_known_evidence_is_not_collected_again(evidence: Evidence, snapshot: KVSnapshot) -> None:
    """No model is asked for: there is none to run."""
    assert collect(None, snapshot, KINDS, known=evidence) is evidence


def test_evidence_of_another_session_is_refused(path: Path, model: Any) -> None:
    other = capture(model, random_sessions(1, 64, seed=5)[0])
    with pytest.raises(MismatchError, match="the evidence's session"):
        load_evidence(path, other)


def test_a_file_is_not_replaced_unasked(path: Path, evidence: Evidence) -> None:
    before = path.read_bytes()
    with pytest.raises(InputError, match="exists"):
        save_evidence(path, evidence)
    assert path.read_bytes() == before
    save_evidence(path, evidence, force=True)


def _changed(path: Path, change: Callable[[dict[str, Tensor], dict[str, str]], object]) -> None:
    with safe_open(path, framework="pt") as file:
        tensors, metadata = {name: file.get_tensor(name) for name in list(file.keys())}, dict(file.metadata())
    change(tensors, metadata)
    save_file(tensors, path, metadata)


@pytest.mark.parametrize(
    "change",
    [
        lambda tensors, metadata: metadata.update(format="something"),
        lambda tensors, metadata: metadata.update(version="2"),
        lambda tensors, metadata: tensors.update(more=torch.zeros(3)),
        lambda tensors, metadata: tensors.pop("reconstruction.0"),
        lambda tensors, metadata: tensors.pop("queries.scaling.0"),
        lambda tensors, metadata: tensors.update(surprise=torch.zeros(3)),
        lambda tensors, metadata: tensors.update(surprise=torch.zeros_like(tensors["surprise"]) / 0),
        lambda tensors, metadata: tensors.update({"queries.covariance.0": torch.zeros(2, 3, 4)}),
        lambda tensors, metadata: tensors.update({"queries.mean.0": tensors["queries.mean.0"].repeat(2, 1)}),
        lambda tensors, metadata: tensors.update(sensitivity=torch.zeros(len(tensors["surprise"]), dtype=torch.int64)),
    ],
)
def test_files_that_are_no_evidence_are_refused(
    path: Path, snapshot: KVSnapshot, change: Callable[[dict[str, Tensor], dict[str, str]], object]
) -> None:
    _changed(path, change)
    with pytest.raises(FormatError) as caught:
        load_evidence(path, snapshot)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_damaged_files_are_refused(path: Path, snapshot: KVSnapshot, tmp_path: Path) -> None:
    whole = path.read_bytes()
    for name, data in (("cut", whole[: len(whole) // 2]), ("empty", b""), ("other", b"no tensors at all")):
        (tmp_path / name).write_bytes(data)
        with pytest.raises(FormatError):
            load_evidence(tmp_path / name, snapshot)
    with pytest.raises(KVCompressError):
        load_evidence(tmp_path / "missing", snapshot)
