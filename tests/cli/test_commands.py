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
from kvcompress.format.raw_snapshot import load_raw

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
    assert run("inspect", stored["ratio.kvz"])["size_ratio"] == pytest.approx(25, rel=0.03)


def test_a_size_ratio_that_is_out_of_reach_of_the_finest_rate_is_told(stored: dict[str, Path], tmp_path: Path) -> None:
    options = ["encode", stored["raw.safetensors"], "-o", tmp_path / "a.kvz", "--size-ratio", "2", "--json"]
    result = CliRunner().invoke(app, list(map(str, options)))
    data = json.loads(result.stdout)
    assert data["settings"]["size_ratio"] == 2
    assert data["size_ratio"] > 2.06
    assert f"asked 2, reached {data['size_ratio']:.4g}: the codec has no finer QP" in result.stderr


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


def test_a_bound_on_kl_is_kept_and_certified(stored: dict[str, Path], tmp_path: Path) -> None:
    data = run("encode", stored["raw.safetensors"], "-o", tmp_path / "a.kvz", "--max-kl", "0.05")
    certificate = data["settings"]["certificate"]
    assert certificate == run("inspect", tmp_path / "a.kvz")["settings"]["certificate"]
    assert 0 < certificate["kl_nats"] <= certificate["max_kl_nats"] == 0.05
    assert certificate["tail_tokens"] == TOKENS // 4
    assert data["codec"] == "tinyvae"
    assert data["settings"]["rate"] >= 0
    told = CliRunner().invoke(app, ["inspect", str(tmp_path / "a.kvz")]).stdout
    assert f"mean KL {certificate['kl_nats']:.4g} nats, measured over the last {TOKENS // 4} tokens" in told
    assert "at most 0.05" in told


def bounded(raw: Path, path: Path, max_kl: str) -> tuple[dict[str, Any], str]:
    """Return what `encode --max-kl` says as JSON, and its notes."""
    result = CliRunner().invoke(app, ["encode", str(raw), "-o", str(path), "--max-kl", max_kl, "--json"])
    return json.loads(result.stdout), result.stderr


def test_a_bound_below_what_latents_reach_is_kept_by_a_residual(stored: dict[str, Path], tmp_path: Path) -> None:
    data, told = bounded(stored["raw.safetensors"], tmp_path / "a.kvz", "1e-4")
    assert data["codec"] == "tinyvae"
    assert data["settings"]["residual_rate"] > data["settings"]["rate"]
    assert data["settings"]["certificate"]["kl_nats"] <= 1e-4
    assert "no QP of the codec" not in told
    assert {run("verify", tmp_path / "a.kvz")[part] for part in ("checksums", "decodes")} == {"ok"}
    assert run("resume", tmp_path / "a.kvz", "--max-new-tokens", 2)["tokens"] == TOKENS


def test_a_bound_below_every_rate_is_kept_by_a_codec_without_one_and_the_note_says_so(
    stored: dict[str, Path], tmp_path: Path
) -> None:
    path = tmp_path / "a.kvz"
    data, told = bounded(stored["raw.safetensors"], path, "1e-12")
    assert data["codec"] == "lossless"
    assert "no QP of the codec keeps a mean KL of 1e-12 nats: stored by the codec 'lossless'" in told
    assert {run("verify", path)[part] for part in ("checksums", "decodes")} == {"ok"}
    assert run("decode", path, "-o", tmp_path / "again.safetensors", "--codec", "no-such-codec")["tokens"] == TOKENS
    assert run("resume", path, "--codec", "no-such-codec", "--max-new-tokens", 2)["tokens"] == TOKENS


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["--max-kl", "0"], "must be a positive number"),
        (["--max-kl", "nan"], "must be a positive number"),
        (["--max-kl", "inf"], "must be a positive number"),
        (["--max-kl", "0.1", "--quality", "high"], "exclude each other"),
        (["--max-kl", "0.1", "--model", "no-such-model"], "no-such-model"),
        (["--model", "reference-lm"], "--max-kl"),
    ],
)
def test_bounds_that_cannot_be_are_refused(
    stored: dict[str, Path], tmp_path: Path, options: list[str], told: str
) -> None:
    assert told in refused("encode", stored["raw.safetensors"], "-o", tmp_path / "x.kvz", *options)
    assert not (tmp_path / "x.kvz").exists()


def test_sessions_too_short_for_a_bound_are_refused_with_the_remedy(tmp_path: Path, sessions_file: Path) -> None:
    run("record", "--session", sessions_file, "--tokens", 63, "-o", tmp_path / "raw.safetensors")
    line = refused("encode", tmp_path / "raw.safetensors", "-o", tmp_path / "x.kvz", "--max-kl", "0.1")
    assert "raw.safetensors" in line
    assert "Record at least 64 tokens" in line


def test_the_wrong_model_is_refused_before_the_search(stored: dict[str, Path], tmp_path: Path) -> None:
    from tests.codec.conftest import tiny_model

    tiny_model().save_pretrained(tmp_path / "other")
    line = refused(
        "encode", stored["raw.safetensors"], "-o", tmp_path / "x.kvz", "--max-kl", "0.1", "--model", tmp_path / "other"
    )
    assert "mismatch in the model's config" in line


def test_sessions_unlike_the_codecs_are_stored_finer_and_inspect_says_so(
    stored: dict[str, Path], tmp_path: Path, sessions_file: Path
) -> None:
    import shutil

    from kvcompress.hub.bundled import find_checkpoint

    directory = shutil.copytree(find_checkpoint("reference-lm-tinyvae"), tmp_path / "codec")
    config = json.loads((directory / "config.json").read_text())
    spread = {"bits_per_token": [1e-3, 0.0], "error": [1e6, 0.0]}  # nothing is ordinary
    config["fitted"]["known"] = {"sessions": 8, "tiers": {"usable": spread}}
    (directory / "config.json").write_text(json.dumps(config))
    options = ["encode", stored["raw.safetensors"], "-o", tmp_path / "a.kvz", "--codec", directory]
    result = CliRunner().invoke(app, [*map(str, options), "--quality", "usable"])
    assert result.exit_code == 0
    assert result.stderr.strip().count("\n") == 0
    assert "differs from those that the codec was calibrated on: stored at 'high' instead of 'usable'" in result.stderr
    told = CliRunner().invoke(app, ["inspect", str(tmp_path / "a.kvz")]).stdout
    assert "'usable' was asked for, 'high' is stored" in told
    settings = run("inspect", tmp_path / "a.kvz")["settings"]
    assert {**settings, "rate": 0} == {"quality": "usable", "stored": "high", "unlike": True, "rate": 0}


def test_inspect_takes_no_words_from_settings_that_this_package_does_not_write(tmp_path: Path) -> None:
    from kvcompress.format.container import Encoded, save

    odd = {"certificate": {"kl_nats": "\x1b[31m"}, "unlike": True, "stored": 3, "quality": ["x"]}
    save(tmp_path / "a.kvz", Encoded("demo", "", {}, "", 1, 2, odd, {}))
    told = CliRunner().invoke(app, ["inspect", str(tmp_path / "a.kvz")])
    assert told.exit_code == 0
    assert "asked for" not in told.stdout
    assert "\x1b" not in told.stdout


@pytest.mark.parametrize("options", [["--quality", "perfect"], ["--size-ratio", "0"], ["--size-ratio", "1e9"]])
def test_impossible_wishes_are_refused(stored: dict[str, Path], tmp_path: Path, options: list[str]) -> None:
    refused("encode", stored["raw.safetensors"], "-o", tmp_path / "x.kvz", *options)
    assert not (tmp_path / "x.kvz").exists()


def test_contradictory_wishes_are_refused(stored: dict[str, Path], tmp_path: Path) -> None:
    line = refused("encode", stored["raw.safetensors"], "-o", tmp_path / "x.kvz", "--lossless", "--quality", "high")
    assert "exclude each other" in line


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
    from kvcompress.data.shards import shards_as_dataset

    short = tmp_path / "two.jsonl"
    rows = [json.loads(line) for line in sessions_file.read_text().splitlines()[:2]]
    short.write_text("".join(json.dumps({"id": r["id"], "messages": r["messages"][:4]}) + "\n" for r in rows))
    run("harvest", "--sessions", short, "-o", tmp_path / "shards")
    found = list(shards_as_dataset(tmp_path / "shards"))
    assert [row["id"] for row in found] == [r["id"] for r in rows]
    index = [json.loads(line) for line in (tmp_path / "shards" / "index.jsonl").read_text().splitlines()]
    assert [len(row["token_ids"]) for row in found] == [entry["tokens"] for entry in index]
    assert load_raw(tmp_path / "shards" / index[0]["file"]).origin.dtype == "float16"
    assert "--force" in refused("harvest", "--sessions", short, "-o", tmp_path / "shards")


def test_errors_name_the_path_once() -> None:
    error = KVCompressError("is odd", "Do something", path="file.kvz")
    assert str(error) == "file.kvz: is odd. Do something."
