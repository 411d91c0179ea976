"""The commands as a user types them, on the bundled model, each in a process of its own where that matters."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from kvcompress.cli.app import app
from kvcompress.errors import KVCompressError
from kvcompress.raw import load_raw

TOKENS = 300


def run(*arguments: object) -> dict[str, Any]:
    """Run a command in this process and return its JSON."""
    result = CliRunner().invoke(app, [*map(str, arguments), "--json"], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    parsed: dict[str, Any] = json.loads(result.stdout)
    return parsed


def refused(*arguments: object) -> str:
    """Run a command that must be refused in a fresh process; return its one line."""
    command = [sys.executable, "-m", "kvcompress", *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1, done.stdout + done.stderr
    lines = done.stderr.strip().splitlines()
    assert len(lines) == 1, done.stderr
    assert lines[0].startswith("error: ")
    return lines[0]


@pytest.fixture(scope="module")
def stored(tmp_path_factory: pytest.TempPathFactory, sessions_file: Path) -> dict[str, Path]:
    """One session recorded and encoded in every way."""
    place = tmp_path_factory.mktemp("stored")
    paths = {name: place / name for name in ("raw.safetensors", "high.kvz", "lossless.kvz", "ratio.kvz")}
    raw = paths["raw.safetensors"]
    run("record", "--session", sessions_file, "--tokens", TOKENS, "-o", raw)
    run("encode", raw, "-o", paths["high.kvz"], "--quality", "high")
    run("encode", raw, "-o", paths["lossless.kvz"], "--lossless")
    run("encode", raw, "-o", paths["ratio.kvz"], "--size-ratio", "25")
    return paths


def test_help_comes_in_under_a_second_and_without_torch() -> None:
    code = "import sys; from kvcompress.cli import app; print('torch' in sys.modules, 'transformers' in sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert loaded.split() == ["False", "False"]
    times = []
    for _ in range(3):
        start = time.perf_counter()
        subprocess.run([sys.executable, "-m", "kvcompress", "--help"], capture_output=True, check=True)
        times.append(time.perf_counter() - start)
    assert min(times) < 1.0


@pytest.mark.parametrize(
    "command", ["record", "encode", "decode", "resume", "inspect", "verify", "report", "fit", "harvest"]
)
def test_every_command_explains_itself(command: str) -> None:
    result = CliRunner().invoke(app, [command, "--help"])
    assert result.exit_code == 0
    assert "Usage" in result.output


def test_lossless_gives_the_identical_bits_back(stored: dict[str, Path], tmp_path: Path) -> None:
    run("decode", stored["lossless.kvz"], "-o", tmp_path / "again.safetensors")
    again, raw = load_raw(tmp_path / "again.safetensors"), load_raw(stored["raw.safetensors"])
    for ours, theirs in zip(again.layers, raw.layers, strict=True):
        assert torch.equal(ours.keys.view(torch.int32), theirs.keys.view(torch.int32))
        assert torch.equal(ours.values.view(torch.int32), theirs.values.view(torch.int32))
    assert again.origin == raw.origin


def test_inspect_agrees_with_the_file_system_and_loads_no_torch(stored: dict[str, Path]) -> None:
    code = (
        "import sys; from kvcompress.cli.app import main; sys.argv[1:] = ['inspect', sys.argv[1], '--json'];\n"
        "try: main()\nexcept SystemExit: pass\nprint('torch' in sys.modules)"
    )
    path = stored["high.kvz"]
    done = subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, text=True, check=True)
    first, last = done.stdout.strip().splitlines()
    data = json.loads(first)
    assert last == "False"
    assert data["file_bytes"] == path.stat().st_size == sum(data["sections"].values())
    assert data["tokens"] == TOKENS
    assert data["size_ratio"] == pytest.approx(data["raw_bytes"] / path.stat().st_size)


def test_size_ratio_is_met(stored: dict[str, Path]) -> None:
    assert run("inspect", stored["ratio.kvz"])["size_ratio"] >= 25


def test_raw_bytes_count_two_bytes_a_value(stored: dict[str, Path]) -> None:
    raw = load_raw(stored["raw.safetensors"])
    values = sum(layer.keys.numel() + layer.values.numel() for layer in raw.layers)
    assert run("inspect", stored["high.kvz"])["raw_bytes"] == 2 * values


def test_resume_goes_on_exactly_from_lossless_and_raw(stored: dict[str, Path]) -> None:
    texts = [
        run("resume", stored[name], "--max-new-tokens", 24)["new_token_ids"]
        for name in ("lossless.kvz", "raw.safetensors")
    ]
    assert texts[0] == texts[1]


def test_resume_with_a_prompt_answers_it(stored: dict[str, Path]) -> None:
    answer = run("resume", stored["high.kvz"], "--prompt", "Thank you!", "--max-new-tokens", 8)
    assert answer["text"].strip()


def test_verify_checks_both_partners(stored: dict[str, Path]) -> None:
    found = run("verify", stored["high.kvz"], "--model", "reference-lm")
    assert {found["checksums"], found["codec"], found["decodes"], found["model"]} == {"ok"}


def test_verify_fails_on_a_flipped_bit(stored: dict[str, Path], tmp_path: Path) -> None:
    data = bytearray(stored["high.kvz"].read_bytes())
    data[-10] ^= 1
    (tmp_path / "bad.kvz").write_bytes(data)
    assert "latents.0" in refused("verify", tmp_path / "bad.kvz")


def test_existing_output_is_refused_and_kept(stored: dict[str, Path], tmp_path: Path) -> None:
    target = tmp_path / "taken.kvz"
    target.write_bytes(b"precious")
    assert "--force" in refused("encode", stored["raw.safetensors"], "-o", target)
    assert target.read_bytes() == b"precious"
    run("encode", stored["raw.safetensors"], "-o", target, "--quality", "usable", "--force")
    assert target.stat().st_size > 100


@pytest.mark.parametrize(
    ("content", "told"), [(b"", "empty"), (b"hello, this is no such file", "not a .kvz"), (b"\x89KVZ\r\n\x1a\n", "")]
)
def test_foreign_files_are_refused(tmp_path: Path, content: bytes, told: str) -> None:
    (tmp_path / "x.kvz").write_bytes(content)
    for command in (["inspect"], ["verify"], ["decode", "-o", tmp_path / "y.safetensors"]):
        assert told in refused(command[0], tmp_path / "x.kvz", *command[1:]).lower()
    assert not (tmp_path / "y.safetensors").exists()


def test_unknown_id_is_refused_and_names_known_ones(tmp_path: Path, sessions_file: Path) -> None:
    line = refused("record", "--session", sessions_file, "--id", "nobody", "-o", tmp_path / "r.safetensors")
    assert "nobody" in line
    assert "s000" in line


def test_session_longer_than_the_context_is_refused(tmp_path: Path) -> None:
    (tmp_path / "long.txt").write_text("word " * 4000)
    line = refused("record", "--text", tmp_path / "long.txt", "-o", tmp_path / "r.safetensors")
    assert "2048" in line
    assert not (tmp_path / "r.safetensors").exists()


@pytest.mark.parametrize("options", [["--quality", "perfect"], ["--size-ratio", "0"], ["--size-ratio", "1e9"]])
def test_impossible_wishes_are_refused(stored: dict[str, Path], tmp_path: Path, options: list[str]) -> None:
    refused("encode", stored["raw.safetensors"], "-o", tmp_path / "x.kvz", *options)
    assert not (tmp_path / "x.kvz").exists()


def test_contradictory_wishes_are_refused(stored: dict[str, Path], tmp_path: Path) -> None:
    line = refused("encode", stored["raw.safetensors"], "-o", tmp_path / "x.kvz", "--lossless", "--quality", "high")
    assert "only one" in line


def test_missing_directories_are_named(stored: dict[str, Path], tmp_path: Path) -> None:
    assert "no-such-codec" in refused(
        "decode", stored["high.kvz"], "-o", tmp_path / "x.safetensors", "--codec", "no-such-codec"
    )
    assert "no-such-model" in refused("resume", stored["high.kvz"], "--model", "no-such-model")


def test_a_bfloat16_session_is_stored_and_resumed_in_bfloat16(tmp_path: Path, sessions_file: Path) -> None:
    raw, kvz = tmp_path / "raw.safetensors", tmp_path / "a.kvz"
    run("record", "--session", sessions_file, "--tokens", 80, "--dtype", "bfloat16", "-o", raw)
    run("encode", raw, "-o", kvz)
    run("decode", kvz, "-o", tmp_path / "again.safetensors")
    assert load_raw(tmp_path / "again.safetensors").layers[0].keys.dtype == torch.bfloat16
    assert len(run("resume", kvz, "--dtype", "bfloat16", "--max-new-tokens", 4)["new_token_ids"]) > 0


def test_chat_records_what_was_said(tmp_path: Path) -> None:
    said = CliRunner().invoke(
        app, ["record", "--chat", "-o", str(tmp_path / "chat.safetensors")], input="My locker code is 4821.\n\n"
    )
    assert said.exit_code == 0, said.output
    assert load_raw(tmp_path / "chat.safetensors").tokens > 10


def test_report_writes_three_files_and_its_figures_agree(
    stored: dict[str, Path], tmp_path: Path, sessions_file: Path
) -> None:
    data = run("report", stored["high.kvz"], "--session", sessions_file, "-o", tmp_path / "report")
    assert {p.name for p in (tmp_path / "report").iterdir()} >= {"report.json", "report.md", "report.html"}
    saved = json.loads((tmp_path / "report" / "report.json").read_text())
    wanted = "size_ratio file_bytes raw_bytes kl_nats context_worth_nats context_lost top1_agreement ppl_ratio"
    for key in [*wanted.split(), "restore_seconds", "prefill_seconds", "recall"]:
        assert saved[key] == data[key]
    assert saved["file_bytes"] == stored["high.kvz"].stat().st_size
    assert saved["context_lost"] == pytest.approx(saved["kl_nats"] / saved["context_worth_nats"])


def test_report_of_another_session_is_refused(stored: dict[str, Path], tmp_path: Path, sessions_file: Path) -> None:
    line = refused("report", stored["high.kvz"], "--session", sessions_file, "--id", "s001", "-o", tmp_path / "r")
    assert "s001" in line


def test_harvest_writes_shards_that_datasets_reads(tmp_path: Path, sessions_file: Path) -> None:
    from kvcompress.harvest import shards_as_dataset

    short = tmp_path / "two.jsonl"
    rows = [json.loads(line) for line in sessions_file.read_text().splitlines()[:2]]
    short.write_text("".join(json.dumps({"id": r["id"], "messages": r["messages"][:4]}) + "\n" for r in rows))
    run("harvest", "--sessions", short, "-o", tmp_path / "shards")
    found = list(shards_as_dataset(tmp_path / "shards"))
    assert [row["id"] for row in found] == [r["id"] for r in rows]
    index = [json.loads(line) for line in (tmp_path / "shards" / "index.jsonl").read_text().splitlines()]
    assert [len(row["token_ids"]) for row in found] == [entry["tokens"] for entry in index]
    assert load_raw(tmp_path / "shards" / index[0]["file"]).origin.dtype == "bfloat16"
    assert "--force" in refused("harvest", "--sessions", short, "-o", tmp_path / "shards")


def test_errors_name_the_path_once() -> None:
    error = KVCompressError("is odd", "Do something", path="file.kvz")
    assert str(error) == "file.kvz: is odd. Do something."
