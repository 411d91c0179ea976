"""Plans as a user asks for them, on the bundled model."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from kvcompress.cli.app import app
from kvcompress.errors import MemoryLimitError
from kvcompress.format.raw_snapshot import load_raw
from tests.cli.test_commands import refused, run

TOKENS = 400
INSTRUCTED = "s025"


@pytest.fixture(scope="module")
def raw(tmp_path_factory: pytest.TempPathFactory, sessions_file: Path) -> Path:
    """A session that begins with standing instructions."""
    path = tmp_path_factory.mktemp("planned") / "raw.safetensors"
    run("record", "--session", sessions_file, "--id", INSTRUCTED, "--tokens", TOKENS, "-o", path)
    return path


@pytest.fixture(scope="module")
def planned(raw: Path) -> dict[str, Any]:
    """The session planned with a mark and a history, and what the command said."""
    place = raw.parent
    said = run(
        *("encode", raw, "-o", place / "plan.kvz", "--quality", "usable", "--keep", "Menm", "--keep-message", 1),
        *("--guarantee", "number=coarse", "--plan-table", place / "plan.json", "--history", place / "history.json"),
    )
    return said | {"file": place / "plan.kvz", "table": place / "plan.json", "history": place / "history.json"}


def test_a_planned_file_shows_its_plan(planned: dict[str, Any]) -> None:
    shown = run("inspect", planned["file"], "--plan", "--plan-table", planned["table"])
    assert sum(shown["tokens_by_tier"].values()) == TOKENS == len(shown["tier"]) == len(shown["bits"])
    coded = {"coarse", "fine", "exact"}
    for text, tier, bits, anchors in zip(shown["text"], shown["tier"], shown["bits"], shown["anchors"], strict=True):
        if "mark" in anchors:
            assert tier == "fine", text
        if {"instruction", "number", "sink"} & set(anchors):
            assert tier in coded, text
        assert (bits > 0) <= (tier in coded)
    assert "prior only" in shown["tier"]
    assert any("mark" in anchors for anchors in shown["anchors"])
    assert "Close all your answers" in "".join(shown["text"])
    assert all(len(part) == TOKENS for part in shown["parts"].values())


def test_the_table_is_readable_and_needs_no_table_file(planned: dict[str, Any]) -> None:
    result = CliRunner().invoke(app, ["inspect", str(planned["file"]), "--plan"], catch_exceptions=False)
    lines = result.stdout.splitlines()
    assert lines[0].split() == ["tier", "tokens"]
    assert lines[1].startswith("exact")
    assert len(lines) == 1 + 5 + 1 + 1 + TOKENS
    assert "<|bos|>" in lines[8]


def test_a_plan_is_shown_within_the_limit_of_memory(planned: dict[str, Any]) -> None:
    arguments = ["inspect", str(planned["file"]), "--plan", "--max-memory", "1MB"]
    with pytest.raises(MemoryLimitError, match="limit of 1 MB"):
        CliRunner().invoke(app, arguments, catch_exceptions=False)


def test_the_search_is_told_and_steers_the_next(planned: dict[str, Any]) -> None:
    search = json.loads(planned["table"].read_text())["search"]
    history = json.loads(planned["history"].read_text())["candidates"]
    assert set(search["candidates"]) == set(history)
    assert search["kl_nats"] <= search["one_tier"]["kl_nats"]
    assert all(record[0] == 1 for record in history.values())


def test_the_same_plan_is_made_again(planned: dict[str, Any], raw: Path, tmp_path: Path) -> None:
    for name in ("a", "b"):
        run("encode", raw, "-o", tmp_path / f"{name}.kvz", "--scorer", "key_norm", "--size-ratio", 300)
    assert (tmp_path / "a.kvz").read_bytes() == (tmp_path / "b.kvz").read_bytes()


def test_dropped_tokens_leave_memory_and_the_session_goes_on(raw: Path, tmp_path: Path) -> None:
    run("encode", raw, "-o", tmp_path / "half.kvz", "--quality", "high", "--keep-fraction", 0.5)
    run("decode", tmp_path / "half.kvz", "-o", tmp_path / "half.safetensors")
    pruned = load_raw(tmp_path / "half.safetensors")
    assert {len(layer.positions) for layer in pruned.layers} == {TOKENS // 2}
    assert pruned.origin.next_position == TOKENS
    ours = run("resume", tmp_path / "half.kvz", "--prompt", "Thank you very much.", "--max-new-tokens", 24)
    exact = run("resume", raw, "--prompt", "Thank you very much.", "--max-new-tokens", 24)
    assert ours["text"].startswith("Indeed.")
    assert exact["text"].startswith("Indeed.")


def test_recorded_evidence_gives_the_plan_that_collecting_it_gives(
    raw: Path, sessions_file: Path, tmp_path: Path
) -> None:
    evidence, again = tmp_path / "evidence.safetensors", tmp_path / "again.safetensors"
    session = ("--session", sessions_file, "--id", INSTRUCTED, "--tokens", TOKENS)
    said = run("record", *session, "-o", again, "--evidence", evidence)
    assert said["evidence"] == str(evidence)
    options = ("--quality", "usable", "--plan", "quick")
    run("encode", raw, "-o", tmp_path / "a.kvz", *options)
    run("encode", raw, "-o", tmp_path / "b.kvz", *options, "--evidence", evidence)
    assert (tmp_path / "a.kvz").read_bytes() == (tmp_path / "b.kvz").read_bytes()
    few = tmp_path / "few.safetensors"
    run("record", *session, "-o", tmp_path / "c.safetensors", "--evidence", few, "--scorer", "attention_mass")
    assert few.stat().st_size < evidence.stat().st_size
    run("record", *session[:4], "--tokens", TOKENS - 1, "-o", tmp_path / "shorter.safetensors")
    told = refused("encode", tmp_path / "shorter.safetensors", "-o", tmp_path / "d.kvz", "--evidence", evidence)
    assert "the evidence's session" in told
    assert "--evidence" in refused("record", *session, "-o", tmp_path / "e.safetensors", "--scorer", "surprise")
    assert not (tmp_path / "e.safetensors").exists()


def test_the_concert_hears_the_clock(sessions_file: Path, tmp_path: Path) -> None:
    """A message said long before the others is older by the clock than by the count of its tokens."""
    row = next(json.loads(line) for line in sessions_file.read_text().splitlines() if INSTRUCTED in line)
    for message in row["messages"]:
        message["time"] = "2026-05-01T12:00:00Z"
    row["messages"][0]["time"] = "2026-05-01T00:00:00Z"
    (tmp_path / "timed.jsonl").write_text(json.dumps(row) + "\n")
    files = {"raw": tmp_path / "raw.safetensors", "evidence": tmp_path / "evidence.safetensors"}
    options = ("--session", tmp_path / "timed.jsonl", "--tokens", TOKENS, "--scorer", "concert")
    run("record", *options, "-o", files["raw"], "--evidence", files["evidence"])
    table = ("--quality", "usable", "--scorer", "concert", "--plan", "quick", "--plan-table", tmp_path / "plan.json")
    run("encode", files["raw"], "-o", tmp_path / "a.kvz", *table, "--evidence", files["evidence"])
    recency = json.loads((tmp_path / "plan.json").read_text())["parts"]["recency"]
    first, last = recency[0], recency[-1]
    assert last == 1.0
    assert abs(first - math.exp(-2)) < 1e-6  # twelve hours at tau of six
    assert set(recency) == {first, last}


def test_a_lossless_file_may_drop_tokens(raw: Path, tmp_path: Path) -> None:
    options = ("--lossless", "--keep-fraction", 0.25, "--scorer", "attention_mass", "--keep", "Menm")
    run("encode", raw, "-o", tmp_path / "a.kvz", *options)
    run("decode", tmp_path / "a.kvz", "-o", tmp_path / "a.safetensors")
    pruned, whole = load_raw(tmp_path / "a.safetensors"), load_raw(raw)
    for ours, exact in zip(pruned.layers, whole.layers, strict=True):
        assert len(ours.positions) == TOKENS // 4
        assert torch.equal(ours.keys, exact.keys[:, ours.positions])


def test_exact_tokens_are_exact(raw: Path, tmp_path: Path) -> None:
    options = ("--quality", "usable", "--keep", "Menm", "--guarantee", "mark=exact", "--scorer", "key_norm")
    run("encode", raw, "-o", tmp_path / "a.kvz", *options)
    shown = run("inspect", tmp_path / "a.kvz", "--plan")
    exact = [index for index, tier in enumerate(shown["tier"]) if tier == "exact"]
    assert exact
    run("decode", tmp_path / "a.kvz", "-o", tmp_path / "a.safetensors")
    for ours, theirs in zip(load_raw(tmp_path / "a.safetensors").layers, load_raw(raw).layers, strict=True):
        assert torch.equal(ours.keys[:, exact], theirs.keys[:, exact])
        assert torch.equal(ours.values[:, exact], theirs.values[:, exact])
        assert not torch.equal(ours.values, theirs.values)


def test_the_report_colours_tokens_by_tier(planned: dict[str, Any], sessions_file: Path, tmp_path: Path) -> None:
    run("report", planned["file"], "--session", sessions_file, "--id", INSTRUCTED, "-o", tmp_path)
    page = (tmp_path / "report.html").read_text()
    tiers = json.loads((tmp_path / "report.json").read_text())["tokens_tier"]
    assert "Tiers along the session" in page
    assert f"fine: {tiers.count('fine'):,}" in page
    assert len(tiers) == TOKENS


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (("--keep", "zebra"), "'zebra' matches nothing"),
        (("--keep", "("), "no regular expression"),
        (("--keep-message", "999"), "there is no message 999"),
        (("--keep-fraction", "0"), "keep fraction of 0 is not above 0"),
        (("--keep-fraction", "1.5"), "keep fraction of 1.5"),
        (("--keep-fraction", "0.01"), "guaranteed anchors alone are"),
        (("--scorer", "snarc"), "unknown scorer 'snarc'"),
        (("--guarantee", "verb=fine"), "is not KIND=TIER"),
        (("--plan", "best"), "'best' is unknown"),
        (("--plan", "none", "--keep", "a"), "--keep needs a plan"),
        (("--keep", ".", "--guarantee", "mark=exact", "--size-ratio", "50", "--scorer", "key_norm"), "alone make"),
        (("--size-ratio", "-1", "--plan", "auto"), "size ratio must be a positive number, not -1"),
        (("--lossless", "--keep", "a"), "Give a keep fraction (--keep-fraction)"),
    ],
    ids=str,
)
def test_plans_that_cannot_be_are_refused_in_one_line(
    options: tuple[str, ...], told: str, raw: Path, tmp_path: Path
) -> None:
    line = refused("encode", raw, "-o", tmp_path / "a.kvz", *options)
    assert told in line
    assert not list(tmp_path.iterdir())
