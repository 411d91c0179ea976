"""The report of the trade-off: figures from true files, sizes at equal KL, a page that says what was measured."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from typer.testing import CliRunner

from eval.__main__ import app
from eval.recompute.report import write_page
from eval.recompute.run import TradeOffSettings, run_trade_off, size_ratio_at
from kvcompress.errors import InputError
from kvcompress.metrics.timing import in_turns
from tests.trade_off_example import build_trade_off

SETTINGS = TradeOffSettings(tokens=100, continuation_tokens=32, count=2, long_tokens=120, rounds=1)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory, sessions_file: Path) -> Path:
    return build_trade_off(tmp_path_factory.mktemp("trade_off"), sessions_file)


@pytest.fixture(scope="module")
def result(place: Path) -> dict[str, Any]:
    partners = (str(place / "model"), str(place / "codec"), place / "sessions.jsonl", place / "report")
    return run_trade_off(*partners, SETTINGS, lambda stage, done, total: None, "the command")


def row(kl_nats: float, size_ratio: float) -> dict[str, Any]:
    return {"kl_nats": {"mean": kl_nats}, "size_ratio": {"mean": size_ratio}}


def test_sizes_at_equal_kl_are_read_off_in_logarithms() -> None:
    rows = [row(0.001, 10.0), row(0.004, 20.0), row(0.016, 40.0)]  # the ratio is the root of the KL
    for kl in (0.001, 0.002, 0.004, 0.01, 0.0005, 0.05):
        assert size_ratio_at(rows, kl) == pytest.approx(10 * math.sqrt(kl / 0.001))


def test_noise_between_neighbouring_rates_does_not_lead_astray() -> None:
    rows = [row(0.0002, 9.0), row(0.00030000, 10.0), row(0.00030001, 40.0)]
    assert 40.0 <= size_ratio_at(rows, 0.0008) < 1000.0


def test_every_point_of_the_dial_is_measured(result: dict[str, Any], place: Path) -> None:
    whole, one = result["points"]
    assert [whole["recompute_layers"], one["recompute_layers"]] == [0, 1]
    assert whole["gain_at_equal_kl"] == pytest.approx(1.0)
    for point in (whole, one):
        assert {"transparent", "high", "usable"} == set(point["tiers"])
        assert all(qp in {found["rate"] for found in point["rates"]} for qp in point["tiers"].values())
        bytes_by_qp = [found["file_bytes"] for found in sorted(point["rates"], key=lambda found: found["rate"])]
        assert bytes_by_qp == sorted(bytes_by_qp)
        speed = result["prefill"]["prefill_seconds"] / point["restore_seconds"]
        assert point["prefill_over_restore"] == pytest.approx(speed)
    assert result["prefill"]["file_bytes"] < min(found["file_bytes"] for found in one["rates"])
    weights = place / "codec" / "recompute-1" / "model.safetensors"
    assert result["codec_bytes"]["1"] == weights.stat().st_size
    assert json.loads((place / "report" / "report.json").read_text()) == json.loads(json.dumps(result))


def test_the_page_shows_what_was_measured(result: dict[str, Any], place: Path) -> None:
    write_page(result, place / "report")
    page = (place / "report" / "report.md").read_text()
    for point in result["points"]:
        assert f"| {point['gain_at_equal_kl']:.2f} |" in page
    assert "| prefill |" in page
    assert "m = 1, 33% of the layers" in page
    picture = (place / "report" / "trade_off.svg").read_text()
    assert ElementTree.fromstring(picture).tag.endswith("svg")
    assert "var(" not in picture


def test_a_directory_without_a_dial_is_refused(place: Path, tmp_path: Path) -> None:
    options = ["--codec", place / "codec" / "recompute-1", "--model", place / "model", "--out", tmp_path / "report"]
    found = CliRunner().invoke(app, ["recompute", *map(str, options)])
    assert isinstance(found.exception, InputError)
    assert "the trade-off needs 0 and another" in str(found.exception)
    assert not (tmp_path / "report").exists()


def test_calls_take_turns_and_the_first_round_does_not_count() -> None:
    order: list[str] = []
    seconds = in_turns({"a": lambda: order.append("a"), "b": lambda: order.append("b")}, 2)
    assert order == ["a", "b"] * 3
    assert set(seconds) == {"a", "b"}
