"""Across devices: a symbol that changes anywhere is noticed, and everything else is only reported."""

from __future__ import annotations

import copy
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from kvcompress.codec.directory import load_codec
from kvcompress.errors import FormatError, InputError, KVCompressError
from kvcompress.fit.checkpoint import save_codec
from kvcompress.fit.fitter import fit_codec
from kvcompress.fit.settings import FitSettings
from kvcompress.format.raw_snapshot import load_raw, save_raw
from kvcompress_eval.portability import run
from kvcompress_eval.portability.compare import cache_difference, explain_symbols, judge, resumption_difference
from kvcompress_eval.portability.conditions import (
    DTYPES,
    INSTRUCTIONS,
    PRECISIONS,
    REFERENCE,
    Condition,
    conditions_at_hand,
)
from kvcompress_eval.portability.phases import Phases
from kvcompress_eval.portability.report import markdown, pair_grid, unmoved_conditions
from kvcompress_eval.portability.symbols import digest, outside_bins, quantised, read_back
from kvcompress_eval.portability.worker import RESULT, Bench
from tests.codec.conftest import promised, random_sessions, tiny_model
from tests.format.examples import make_snapshot
from tests.format.make_golden import GOLDEN

PORTABLE = Condition(instructions="portable")
BFLOAT16 = Condition(dtype="bfloat16")
Row = dict[str, Any]


def result_of(conditions: tuple[Condition, ...] = (REFERENCE, PORTABLE)) -> Row:
    """Return a whole result in which nothing differs."""
    labels = [condition.label for condition in conditions]
    found = {"largest_difference": 0.0, "largest_relative_difference": 0.0}
    resumed = {"kl_mean_nats": 0.0, "kl_max_nats": 0.0, "greedy_agreement_tokens": 32}
    same = {"same_cache_as_reference": True, "same_file_as_reference": True, "same_snapshot_same_bytes": True}
    encoding = {"session": "s0", "refused": None, "file_bytes": 1234, **same, "explanation": None}
    pair = {"session": "s0", "symbols_identical": True, "refused": None, **found, **resumed}
    golden = {"symbols_identical": True, "tensors_identical": True, "refused": None, **found}
    result: Row = {
        "command": "python -m eval devices",
        "versions": {"kvcompress": "0", "torch": "0", "python": "0"},
        "machine": "x86_64",
        "model": "m",
        "codec": "c",
        "quality": "transparent",
        "sessions": ["s0"],
        "tokens": 8,
        "continuation_tokens": 64,
        "greedy_tokens": 32,
        "conditions": [
            {"label": label, "in_force": {"cpu": "AVX2", "threads": 1, "device": "cpu"}} for label in labels
        ],
        "absent": [{"label": "cuda", "why": "no CUDA here"}],
        "encodings": [{"condition": label, **encoding} for label in labels],
        "pairs": [{"encoded_in": a, "decoded_in": b, **pair} for a in labels for b in labels],
        "golden": {"file": "g", "why_absent": None, "rows": [{"condition": label, **golden} for label in labels]},
    }
    return result | {"verdict": judge(result)}


def test_conditions_differ_from_each_other_and_cover_every_value() -> None:
    found = conditions_at_hand(cuda=False)
    assert found[0] == REFERENCE
    assert len({condition.label for condition in found}) == len(set(found)) == len(found)
    assert {condition.device for condition in found} == {"cpu"}
    for name, values in (("dtype", DTYPES), ("precision", PRECISIONS), ("instructions", INSTRUCTIONS)):
        assert {getattr(condition, name) for condition in found} == set(values)
    assert {(c.threads, c.deterministic) for c in found} >= {(1, False), (2, False), (1, True), (2, True)}
    with_cuda = conditions_at_hand(cuda=True)
    assert with_cuda[: len(found)] == found
    assert {condition.dtype for condition in with_cuda if condition.device == "cuda"} == set(DTYPES)


def test_conditions_survive_the_command_line() -> None:
    for condition in conditions_at_hand(cuda=True):
        assert Condition.from_text(condition.to_text()) == condition


@pytest.mark.parametrize(
    "text", ["{", "[]", '{"threads": 0}', '{"threads": true}', '{"dtype": "float64"}', '{"colour": 1}', '{"device": 3}']
)
def test_what_is_no_condition_is_refused(text: str) -> None:
    with pytest.raises(InputError):
        Condition.from_text(text)


def test_the_condition_alone_decides_on_arithmetic() -> None:
    inherited = {"PATH": "/bin", "OMP_NUM_THREADS": "7", "MKL_CBWR": "AVX2", "CUBLAS_WORKSPACE_CONFIG": ":16:8"}
    assert REFERENCE.environment(inherited) == {"PATH": "/bin"}
    assert PORTABLE.environment(inherited)["MKL_CBWR"] == "COMPATIBLE"
    assert Condition(deterministic=True).environment(inherited)["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"


def test_cache_difference_is_the_largest_of_all_tensors() -> None:
    snapshot = make_snapshot(dtype="float32")
    assert cache_difference(snapshot, snapshot) == {"largest_difference": 0.0, "largest_relative_difference": 0.0}
    moved = copy.deepcopy(snapshot)
    values = moved.layers[1].values
    values.zero_()
    values[0, 0, 0] = 4.0
    before = copy.deepcopy(moved)
    values[0, 0, 0] = 3.0
    assert cache_difference(before, moved) == {"largest_difference": 1.0, "largest_relative_difference": 0.25}
    with pytest.raises(FormatError):
        cache_difference(snapshot, make_snapshot(dtype="float32", dropped=(0, 1)))


def test_resumption_difference_agrees_with_the_formula() -> None:
    generator = torch.Generator().manual_seed(3)
    exact, other = (torch.randn(5, 11, generator=generator) for _ in range(2))
    p, q = (np.exp(x.double().numpy()) / np.exp(x.double().numpy()).sum(1, keepdims=True) for x in (exact, other))
    divergence = (p * np.log(p / q)).sum(1)
    found = resumption_difference(exact, other, [1, 2, 3], [1, 2, 4])
    assert found["kl_mean_nats"] == pytest.approx(divergence.mean())
    assert found["kl_max_nats"] == pytest.approx(divergence.max())
    assert found["greedy_agreement_tokens"] == 2
    same = resumption_difference(exact, exact, [1, 2, 3], [1, 2, 3])
    assert same == {"kl_mean_nats": 0.0, "kl_max_nats": 0.0, "greedy_agreement_tokens": 3}


@pytest.mark.parametrize(
    ("other", "outside", "explained"),
    [
        (2, 1e-6, True),
        (1, 1e-6, True),  # a neighbour that was rounded elsewhere moves what is expected here
        (2, 0.1, False),  # not a symbol that this latent rounds to
        (3, 0.0, False),  # the bytes differ although no symbol does
    ],
)
def test_only_rounding_explains_other_symbols(other: int, outside: float, explained: bool) -> None:
    mine, theirs = ([torch.tensor([[0, value]], dtype=torch.int32)] for value in (3, other))
    found = explain_symbols(mine, theirs, [torch.tensor([[0.0, outside]])], 1e-5)
    assert found["explained"] is explained
    assert found["differing"] == int(other != 3)
    assert found["symbols"] == 2


def test_own_symbols_lie_in_their_bins_and_others_show() -> None:
    codec, snapshot = load_codec(), load_raw(GOLDEN / "tinyvae.safetensors")
    symbols, latents = quantised(codec, snapshot, 48)
    qps = codec.qps(0, snapshot.token_ids, 48)
    assert float(outside_bins(codec, 0, snapshot.token_ids, qps, latents[0], symbols[0]).max()) <= 1e-4
    other = symbols[0].clone()
    other[-1, 0] += 1  # the last token: nothing is predicted from it
    outside = outside_bins(codec, 0, snapshot.token_ids, qps, latents[0], other)
    assert 0 < float(outside[-1, 0]) <= 1
    assert int((outside > 1e-4).sum()) == 1


def test_symbols_read_back_are_those_that_were_quantised() -> None:
    codec, snapshot = load_codec(), load_raw(GOLDEN / "tinyvae.safetensors")
    for qp in (1, 48):
        symbols, latents = quantised(codec, snapshot, qp)
        again = read_back(codec, codec.encode(snapshot, qp))
        assert digest(symbols) == digest(again)
        assert all(torch.equal(one, two) for one, two in zip(symbols, again, strict=True))
        qps = codec.qps(0, snapshot.token_ids, qp)
        assert float(outside_bins(codec, 0, snapshot.token_ids, qps, latents[0], symbols[0]).max()) <= 1e-4
        changed = [symbols[0].clone()]
        changed[0][0, 0] += 1
        assert digest(changed) != digest(again)


def test_verdict_holds_where_nothing_changed_and_breaks_with_one_pair() -> None:
    result = result_of()
    assert result["verdict"]["holds"]
    assert result["verdict"]["pairs_compared"] == 4
    result["pairs"][2]["symbols_identical"] = False
    broken = judge(result)
    assert not broken["holds"]
    assert broken["symbols_differ"] == [f"{PORTABLE.label} -> {REFERENCE.label}"]
    assert "BROKEN: symbols changed in 1 of 4" in markdown(result | {"verdict": broken})


def test_verdict_breaks_with_the_golden_file_and_with_unexplained_bytes() -> None:
    golden = result_of()
    golden["golden"]["rows"][1]["symbols_identical"] = False
    assert judge(golden)["golden_symbols_differ"] == [PORTABLE.label]
    assert not judge(golden)["holds"]
    bytes_differ = result_of()
    row = bytes_differ["encodings"][1]
    row |= {"same_snapshot_same_bytes": False, "explanation": {"explained": True}}
    assert judge(bytes_differ)["holds"]
    row["explanation"] = {"explained": False}
    assert not judge(bytes_differ)["holds"]


def test_refusals_prove_nothing() -> None:
    result = result_of((REFERENCE,))
    result["pairs"] = [result["pairs"][0] | {"symbols_identical": None, "refused": "wrong | partner"}]
    assert not judge(result)["holds"]
    del result["pairs"][0]["kl_mean_nats"]
    assert "refused: wrong | partner" in pair_grid(result)[2][0]
    assert "wrong \\| partner" in markdown(result)


def test_conditions_that_change_nothing_are_named() -> None:
    result = result_of((REFERENCE, PORTABLE, BFLOAT16))
    assert unmoved_conditions(result) == [PORTABLE.label, BFLOAT16.label]
    result["pairs"][1]["largest_difference"] = 1e-9
    assert result["pairs"][1]["decoded_in"] == PORTABLE.label
    assert unmoved_conditions(result) == [BFLOAT16.label]
    assert "no CUDA here" in markdown(result)


class Scripted(Phases):
    """Phases whose processes leave what the test says: one cache, and a digest a condition."""

    digests: dict[Condition, str]

    def _launch(self, task: str, condition: Condition, job: Path) -> Row:
        place = self.place(task, condition)
        place.mkdir()
        save_raw(place / "0.safetensors", make_snapshot())
        return {"files": [{"symbols_sha256": self.digests[condition], "unreadable": None, "refused": "no model here"}]}


@pytest.mark.parametrize("corrupted", [REFERENCE, PORTABLE])
def test_a_corrupted_digest_makes_the_verdict_fail(tmp_path: Path, corrupted: Condition) -> None:
    conditions = (REFERENCE, PORTABLE)
    phases = Scripted(tmp_path, {"golden": None}, conditions, lambda stage, done, total: None, 1)
    phases.digests = {condition: "aa" if condition != corrupted else "ab" for condition in conditions}
    origin = {"encoded_in": REFERENCE.label, "session": 0, "symbols_sha256": "aa"}
    pairs = phases.decode([origin])["pairs"]
    verdict = judge(result_of() | {"pairs": pairs})
    assert not verdict["holds"]
    assert verdict["symbols_differ"] == [f"{REFERENCE.label} -> {corrupted.label}"]


def test_a_broken_law_ends_with_status_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    result = result_of()
    monkeypatch.setattr(run, "compare_conditions", lambda *arguments: result)
    run.devices(tmp_path)
    result["pairs"][1]["symbols_identical"] = False
    result["verdict"] = judge(result)
    with pytest.raises(SystemExit) as ended:
        run.devices(tmp_path)
    assert ended.value.code == 1
    assert "BROKEN" in capsys.readouterr().out
    assert json.loads((tmp_path / "devices.json").read_text())["verdict"]["holds"] is False


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"codec": "no-such-codec"}, "neither a directory nor the name of a codec"),
        ({"sessions": Path("no-such.jsonl")}, "no-such.jsonl: cannot be read"),
        ({"tokens": 100_000}, "no session has the 100064 tokens needed"),
        ({"tokens": 0}, "cannot be compared"),
        ({"quality": "perfect"}, "no quality 'perfect'"),
    ],
)
def test_bad_input_is_one_line(
    changes: Row, said: str, sessions_file: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    options: Row = {"sessions": sessions_file} | changes
    with pytest.raises(SystemExit) as ended:
        run.devices(tmp_path, **options)
    lines = [line for line in capfd.readouterr().err.splitlines() if line.strip()]
    assert ended.value.code == 1
    assert said in lines[-1]
    assert [line.startswith("error: ") for line in lines] == [True]


def test_a_model_that_bfloat16_rounds_is_refused_and_its_symbols_survive(tmp_path: Path) -> None:
    """Weights that bfloat16 cannot hold are other weights: their fingerprint differs, and resuming is refused."""
    torch.set_num_threads(1)
    model, settings = tiny_model(), FitSettings(rank=24, prior_rank=8, prior_taps=2, fisher_sessions=2)
    codec, _ = fit_codec(model, None, random_sessions(4, 320), settings, lambda stage, done, total: None)
    codec.promises = promised({"transparent": 120})
    model.save_pretrained(tmp_path / "model")
    save_codec(codec, tmp_path / "codec")
    ids = random_sessions(1, 48, seed=9)[0].tolist()
    job: Row = {"model": tmp_path / "model", "codec": tmp_path / "codec", "quality": "transparent", "golden": None}
    job |= {
        "shared": tmp_path / "shared",
        "sessions": [{"stored": ids[:40], "following": ids[40:]}],
        "greedy_tokens": 3,
    }
    for name in ("shared", "encode-0", "encode-1", "decode-0", "decode-1"):
        (tmp_path / name).mkdir()
    exact = Bench(job, REFERENCE, tmp_path / "encode-0").encode()["sessions"][0]
    rounded = Bench(job, BFLOAT16, tmp_path / "encode-1").encode()["sessions"][0]
    assert rounded["own"] is None
    assert "mismatch in the model's weights" in rounded["refused"]
    assert rounded["shared_sha256"] == exact["shared_sha256"] is not None
    job["files"] = [{"path": exact["own"]["path"], "session": 0}]
    here = Bench(job, REFERENCE, tmp_path / "decode-0").decode()["files"][0]
    there = Bench(job, BFLOAT16, tmp_path / "decode-1").decode()["files"][0]
    assert here["symbols_sha256"] == there["symbols_sha256"] == exact["own"]["symbols_sha256"]
    assert len(here["greedy"]) == 3
    assert here["refused"] is None
    assert "mismatch in the model's weights" in there["refused"]


def test_two_conditions_read_each_others_files(sessions_file: Path) -> None:
    """Four processes: the portable instruction set stands for another processor."""
    asked = run.Asked(sessions=sessions_file, tokens=128, golden=GOLDEN)
    steps: list[tuple[str, int]] = []
    result = run.compare_conditions(asked, (REFERENCE, PORTABLE), lambda *step: steps.append(step[:2]))
    assert steps == [(stage, done) for stage in ("encode", "decode") for done in (0, 1, 2)]
    assert result["verdict"]["holds"], markdown(result)
    assert result["verdict"]["pairs_compared"] == 4
    assert [row["symbols_identical"] for row in result["golden"]["rows"]] == [True, True]
    assert [row["in_force"]["threads"] for row in result["conditions"]] == [1, 1]
    for row in result["pairs"]:
        assert math.isfinite(row["kl_max_nats"])
        assert row["largest_relative_difference"] <= 1e-4
        if row["decoded_in"] == REFERENCE.label:
            assert (row["largest_difference"], row["kl_max_nats"], row["greedy_agreement_tokens"]) == (0.0, 0.0, 32)


def test_a_process_that_fails_is_named(tmp_path: Path) -> None:
    phases = Phases(tmp_path, {"golden": None}, (REFERENCE,), lambda stage, done, total: None, 1)
    with pytest.raises(KVCompressError, match=r"decode failed in the condition cpu float32 1t .*absent\.json"):
        phases._launch("decode", REFERENCE, tmp_path / "absent.json")
    assert not (phases.place("decode", REFERENCE) / RESULT).exists()
