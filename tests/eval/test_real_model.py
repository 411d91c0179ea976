"""The report on a real model: figures against independent computation, runs that go on, targets, sizes at equal KL."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
import torch

from eval.readme.real_model import readme_table
from kvcompress.codec.directory import load_codec
from kvcompress.codec.settings import CommonSettings
from kvcompress.data.sessions import read_sessions, session_token_ids
from kvcompress.data.shards import Shards
from kvcompress.errors import InputError
from kvcompress.format.container import from_bytes, load, save, to_bytes
from kvcompress.hf import capture, load_model, recompute_with, restore
from kvcompress.hub.bundled import DEFAULT_MODEL, find_checkpoint
from kvcompress.metrics.fidelity import continuation_logits, kl_nats, short_context_logits, top_agreement
from kvcompress.report.spelling import spell
from kvcompress_eval.baselines.kvtc_ideal import KvtcIdeal, Tables
from kvcompress_eval.baselines.kvtc_transform import fit
from kvcompress_eval.baselines.protocol import Calibration
from kvcompress_eval.real_model import kvtc
from kvcompress_eval.real_model import run as run_module
from kvcompress_eval.real_model.equal_kl import advantage, ratio_at
from kvcompress_eval.real_model.interval import mean_of, ratio_of
from kvcompress_eval.real_model.page import page
from kvcompress_eval.real_model.run import RealModelRun, read_facts
from kvcompress_eval.real_model.targets import bound_checks, check, size_targets
from kvcompress_eval.real_model.words import WIDTH, verdict
from kvcompress_eval.suite.damage import damage
from kvcompress_eval.suite.rows import Rows
from tests.codec.conftest import random_sessions, tiny_model
from tests.eval.real_model_example import FIT_FACTS, QPS, SETTINGS, build, job

Result = dict[str, Any]


def silent(stage: str, done: int, total: int) -> None:
    """Show nothing."""


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory, sessions_file: Path) -> Path:
    return build(tmp_path_factory.mktemp("real"), sessions_file)


@pytest.fixture(scope="module")
def result(place: Path) -> Result:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(kvtc, "MOST_BLOCK_RANK", 48)  # allocating bits of all components takes a minute
        return RealModelRun(job(place), SETTINGS, silent).run()


@pytest.fixture(scope="module")
def rows(result: Result, place: Path) -> list[Result]:
    return [json.loads(line) for line in (place / "report" / "rows.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("layers", [0, 1])
def test_a_row_is_what_a_second_computation_finds(rows: list[Result], place: Path, tmp_path: Path, layers: int) -> None:
    model, tokenizer = load_model(find_checkpoint(DEFAULT_MODEL))
    session = next(read_sessions(place / "test.jsonl"))
    ids = torch.tensor(session_token_ids(session, tokenizer))[: SETTINGS.tokens + SETTINGS.continuation_tokens]
    stored, following = ids[: SETTINGS.tokens], ids[SETTINGS.tokens :]
    snapshot = capture(model, stored, tokenizer=tokenizer)
    codec = load_codec(place / "codec", layers)
    codec.recompute = recompute_with(model, tokenizer)
    save(tmp_path / "file.kvz", codec.encode(snapshot, QPS["high"], CommonSettings(quality="high")))
    exact = continuation_logits(model, restore(snapshot, model), following, len(stored))
    resumed = continuation_logits(
        model, restore(codec.decode(load(tmp_path / "file.kvz")), model), following, len(stored)
    )
    short = short_context_logits(model, stored, following)
    row = next(
        row for row in rows if row["key"][:3] == ["ours", f"m={layers}", "high"] and row["session"] == session.id
    )
    assert row["file_bytes"] == (tmp_path / "file.kvz").stat().st_size
    assert row["raw_bytes"] == snapshot.raw_bytes
    assert row["category"] == session.category
    kl = kl_nats(exact, resumed)
    for name, span in (("near", slice(0, 128)), ("far", slice(None))):
        assert row[f"kl_{name}_nats"] == pytest.approx(float(kl[span].mean()), abs=1e-6, rel=1e-3)
        assert row[f"worst_{name}_nats"] == pytest.approx(float(kl[span].max()), abs=1e-6, rel=1e-3)
        assert row[f"top1_{name}"] == pytest.approx(top_agreement(exact[span], resumed[span], 1))
        worth = kl_nats(exact[span][::8], short[span][::8]).mean()
        assert row[f"worth_{name}_nats"] == pytest.approx(float(worth), rel=1e-3)
    assert row["stored"] == "latents"


def test_every_codec_quality_and_source_is_there(result: Result) -> None:
    found = {(point["source"], point["codec"], point["quality"]): point for point in result["points"]}
    assert set(found) == {(s, m, q) for s in ("test", "other") for m in ("m=0", "m=1") for q in QPS}
    assert {point["sessions"] for key, point in found.items() if key[0] == "test"} == {SETTINGS.count}
    assert {point["sessions"] for key, point in found.items() if key[0] == "other"} == {SETTINGS.other_count}
    for codec in result["codecs"]:
        assert codec["not_promised"] == ["usable"]
    assert {row["codec"] for row in result["timing"]["table"]} == {"m=0", "m=1"}
    assert result["timing"]["prefill_seconds"] > 0
    assert result["fit_facts"] == {"fit": FIT_FACTS}


def test_figures_over_sessions_are_those_of_the_rows(result: Result, rows: list[Result]) -> None:
    for point in result["points"]:
        mine = [
            row
            for row in rows
            if (row.get("source"), row.get("codec"), row.get("point"))
            == (point["source"], point["codec"], point["quality"])
        ]
        sums = [sum(row[name] for row in mine) for name in ("raw_bytes", "file_bytes", "kl_far_nats", "worth_far_nats")]
        assert point["size_ratio"]["value"] == pytest.approx(sums[0] / sums[1])
        assert point["lost_far"]["value"] == pytest.approx(sums[2] / sums[3])
        assert point["kl_near_nats"]["value"] == pytest.approx(np.mean([row["kl_near_nats"] for row in mine]))


def test_kvtc_is_compared_on_the_sessions_that_both_measured(result: Result, rows: list[Result]) -> None:
    assert [point["name"] for point in result["kvtc"]] == [name for _, name in kvtc.names()]
    assert {point["sessions"] for point in result["kvtc"]} == {SETTINGS.kvtc_sessions}
    sessions = {row["session"] for row in rows if row.get("kind") == "kvtc"}
    for row in result["equal_kl"]:
        mine = [r for r in rows if r.get("codec") == row["codec"] and r.get("point") == row["quality"]]
        shared = [r for r in mine if r["source"] == "test" and r["session"] in sessions]
        assert row["kl_nats"] == pytest.approx(np.mean([r["kl_near_nats"] for r in shared]))
        assert row["times"]["value"] == pytest.approx(row["size_ratio"] / max(row["by_form"].values()))


def test_a_killed_run_measures_what_is_missing_and_nothing_else(
    place: Path, result: Result, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = (place / "report" / "rows.jsonl").read_text().splitlines()
    again = place / "again"
    again.mkdir()
    lost = [number for number, line in enumerate(kept) if '"m=1"' in line][-1]
    left = [line for number, line in enumerate(kept) if number != lost]
    (again / "rows.jsonl").write_text("\n".join(left) + "\n" + kept[lost][:100])  # cut in the middle
    counted = []

    def measured(*arguments: Any) -> Result:
        counted.append(arguments)
        return measure(*arguments)

    measure = run_module.measure
    monkeypatch.setattr(run_module, "measure", measured)
    monkeypatch.setattr(kvtc, "fit", lambda *arguments, **options: pytest.fail("KVTC was fitted again"))
    second = RealModelRun(job(place, "again"), SETTINGS, silent).run()
    assert len(counted) == 1
    assert second["kvtc"] == result["kvtc"]
    assert second["timing"] == result["timing"]
    for ours, theirs in zip(second["points"], result["points"], strict=True):
        assert ours["size_ratio"] == theirs["size_ratio"]
        assert ours["kl_far_nats"] == pytest.approx(theirs["kl_far_nats"])


def test_rows_of_another_model_or_codec_are_not_taken(place: Path, result: Result, tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text((place / "report" / "rows.jsonl").read_text())
    first = json.loads((tmp_path / "rows.jsonl").read_text().splitlines()[0])
    assert Rows(tmp_path / "rows.jsonl", first["model"]).get(tuple(first["key"])) == first
    assert Rows(tmp_path / "rows.jsonl", "another").get(tuple(first["key"])) is None
    assert len((tmp_path / "rows.jsonl").read_text()) == len((place / "report" / "rows.jsonl").read_text())


def test_the_page_fits_80_columns_and_says_what_was_measured(result: Result, place: Path) -> None:
    text = (place / "report" / "report.md").read_text()
    assert max(map(len, text.splitlines())) <= WIDTH
    assert text == page(json.loads((place / "report" / "report.json").read_text()))
    for wanted in (
        "m=0 transparent",
        "| ideal-sink1-16x",
        "published-8x",
        "Lifeboat lbq2",
        "fit seconds",
        "KVTC, study",
    ):
        assert wanted in text
    picture = (place / "report" / "rate-fidelity.svg").read_text()
    assert ElementTree.fromstring(picture).tag.endswith("svg")
    assert "var(" not in picture


def test_the_readmes_table_has_every_quality_of_every_codec(result: Result) -> None:
    lines = readme_table(result).splitlines()
    points = [point for point in result["points"] if point["source"] == "test"]
    assert len(points) > 2
    assert len(lines) == 2 + len(points) + 2
    for line, point in zip(lines[2:], points, strict=False):
        assert f" {point['quality']} |" in line
        assert spell(point["kl_near_nats"]["value"], "short nats") in line


def test_a_missed_target_is_said_in_bold_and_a_doubtful_one_with_a_mark() -> None:
    assert verdict({"met": False, "clear": True}) == "**missed**"
    assert verdict({"met": False, "clear": False}) == "**missed** ?"
    assert verdict({"met": True, "clear": True}) == "met"


def test_the_page_says_which_targets_are_missed(place: Path) -> None:
    result = json.loads((place / "report" / "report.json").read_text())
    for wanted in ("met", "**missed**"):
        for found in [one for kind in result["checks"].values() for one in kind]:
            found |= {"met": wanted == "met", "clear": True}
        assert wanted in page(result)


def figure(value: float, low: float | None = None, high: float | None = None) -> Result:
    return {"value": value, "low": low, "high": high}


def test_targets_are_met_or_missed_by_value_and_clear_by_interval() -> None:
    for value, low, high, met, clear in (
        (16.0, 15.0, 17.0, True, False),
        (17.0, 16.5, 18.0, True, True),
        (15.9, 15.0, 16.2, False, False),
        (15.0, 14.0, 15.9, False, True),
        (15.0, None, None, False, True),
    ):
        found = check(figure(value, low, high), 16.0, at_least=True)
        assert (found["met"], found["clear"]) == (met, clear)
    assert check(figure(0.005), 0.005, at_least=False)["met"]
    assert not check(figure(0.0051), 0.005, at_least=False)["met"]
    assert size_targets(0.0)["usable"] == 200
    assert size_targets(3 / 30)["high"] == 90
    assert size_targets(6 / 30)["transparent"] == 32
    assert size_targets(1 / 6) == {}


def test_each_bound_is_held_against_its_own_figure() -> None:
    point = {"source": "test", "codec": "m=0", "quality": "high"}
    good = {"kl_near_nats": 0.019, "lost_near": 0.039, "top1_near": 0.941, "kl_far_nats": 0.019}
    bad = {"kl_near_nats": 0.021, "lost_near": 0.041, "top1_near": 0.939, "kl_far_nats": 0.021}
    for name in good:
        mixed = {**good, name: bad[name]}
        found = bound_checks([point | {key: figure(value) for key, value in mixed.items()}])
        assert [one["what"] for one in found if not one["met"]] == [name]


def test_a_curve_is_read_off_in_logarithms_and_not_followed_far() -> None:
    curve = [(0.016, 40.0), (0.001, 10.0), (0.004, 20.0)]  # the ratio is the root of the KL
    for kl in (0.001, 0.002, 0.004, 0.01, 0.016, 0.0006, 0.03):
        assert ratio_at(curve, kl) == pytest.approx(10 * math.sqrt(kl / 0.001))
    assert math.isnan(ratio_at(curve, 0.0004))
    assert math.isnan(ratio_at(curve, 0.04))
    assert math.isnan(ratio_at(curve[:1], 0.016))


def curve_rows(size_ratio: float, kl: float, sessions: int = 5) -> list[Result]:
    """Return rows of sessions that differ by one factor in KL and size alike, so that all factors are the same."""
    return [
        {"kl_near_nats": kl * (1 + i), "raw_bytes": 1000.0, "file_bytes": 1000 / size_ratio} for i in range(sessions)
    ]


def test_the_best_form_counts_at_equal_kl() -> None:
    ours = curve_rows(60.0, 0.002)
    forms = {
        "worse": [curve_rows(5.0, 0.001), curve_rows(10.0, 0.004)],
        "better": [curve_rows(10.0, 0.001), curve_rows(20.0, 0.004)],
        "far away": [curve_rows(10.0, 1.0), curve_rows(20.0, 4.0)],
    }
    found = advantage(ours, forms)
    assert found is not None
    assert found["form"] == "better"
    assert set(found["by_form"]) == {"worse", "better"}
    assert found["times"]["value"] == pytest.approx(60 / (10 * math.sqrt(2)))
    assert found["times"]["low"] == pytest.approx(found["times"]["high"])
    assert advantage(curve_rows(60.0, 0.0), forms) is None
    assert advantage(ours, {"far away": forms["far away"]}) is None


def test_intervals_resample_sessions() -> None:
    values = list(np.random.default_rng(0).normal(5.0, 1.0, 40))
    found = mean_of(values)
    assert found.low is not None
    assert found.high is not None
    assert found.high - found.low == pytest.approx(2 * 1.96 * np.std(values) / math.sqrt(40), rel=0.15)
    assert found.low < found.value < found.high
    assert ratio_of([3.0], [1.5]).to_json() == figure(2.0)


def test_damage_in_float32_is_the_kl_in_float64() -> None:
    generator = torch.Generator().manual_seed(1)
    exact = 4 * torch.randn(70, 900, generator=generator)
    for noise in (0.0, 1e-3, 0.3, 3.0):
        logits = exact + noise * torch.randn(70, 900, generator=generator) + 2.0
        found = damage(torch.log_softmax(exact, -1), logits)
        assert torch.allclose(found.kl_nats, kl_nats(exact, logits), atol=1e-6, rtol=1e-4)
        assert float(found.same.double().mean()) == top_agreement(exact, logits, 1)
    with pytest.raises(InputError, match="NaN"):
        damage(torch.log_softmax(exact, -1), torch.full_like(exact, math.nan))


def test_the_first_token_can_be_raw() -> None:
    transform, latents = fit(Calibration(tiny_model(), None, random_sessions(16, 260)), 1)
    baseline = KvtcIdeal(transform, Tables(torch.cat(latents, 1)), 8.0, 1)
    for tokens in (0, 1, 2, 90):
        snapshot = capture(tiny_model(), random_sessions(1, tokens, 9)[0])
        decoded = baseline.decode(from_bytes(to_bytes(baseline.encode(snapshot))))
        assert torch.equal(decoded.token_ids, snapshot.token_ids)
        for ours, exact in zip(decoded.layers, snapshot.layers, strict=True):
            assert ours.keys.shape == exact.keys.shape
            assert torch.equal(ours.keys[:, :1], exact.keys[:, :1].half().float())
            assert torch.equal(ours.values[:, :1], exact.values[:, :1].half().float())
            assert torch.equal(ours.positions, exact.positions)


def test_wide_caches_have_the_same_axes(monkeypatch: pytest.MonkeyPatch) -> None:
    calibration = Calibration(tiny_model(), None, random_sessions(8, 260))
    plain = fit(calibration)[0]
    monkeypatch.setattr("kvcompress_eval.baselines.kvtc.WIDE_CHANNELS", 8)
    wide = fit(calibration)[0]
    for ours, theirs in zip(wide.axes, plain.axes, strict=True):
        assert torch.allclose((ours.basis[:8] * theirs.basis[:8]).sum(1).abs(), torch.ones(8), atol=1e-2)
        everything = torch.eye(theirs.basis.shape[1])
        again = ours.synthesise(ours.analyse(everything))
        assert torch.allclose(again, theirs.synthesise(theirs.analyse(everything)), atol=1e-3)


def test_calibration_reads_harvested_caches_one_at_a_time(place: Path) -> None:
    calibration = kvtc.ShardCalibration.of(place / "shards", 3, 100)
    snapshots = list(calibration.snapshots())
    assert [one.tokens for one in snapshots] == [100] * 3
    shards = Shards(place / "shards").part("fit")
    assert torch.equal(snapshots[1].layers[2].keys, shards.snapshot(1).layers[2].keys[:, :100])
    assert kvtc.fingerprint(place / "shards", 3, 100) != kvtc.fingerprint(place / "shards", 2, 100)


def test_facts_that_cannot_be_read_are_refused_at_once(tmp_path: Path) -> None:
    (tmp_path / "list.json").write_text("[]")
    for name in ("missing.json", "list.json"):
        with pytest.raises(InputError, match="fit --json"):
            read_facts([tmp_path / name])
