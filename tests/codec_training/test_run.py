"""From recorded sessions to a codec by the documented command: alone, resumed, and in two processes."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("lightning", reason="the train extra is not installed")

from kvcompress.codec.directory import load_tinyvae

ROOT = Path(__file__).parents[2]
RECIPE = """
fit: {rank: 96, prior_rank: 32, prior_width: 48, fisher_sessions: 3}
rate_stage: {steps: 6, learning_rate: 0.001}
divergence_stage: {steps: 4, learning_rate: 0.0001, synthesis_rate: 0.001}
continuation_tokens: 32
validate_steps: 3
logger: csv
"""


def train(out: Path, sessions: Path, *more: str) -> subprocess.CompletedProcess[str]:
    recipe = out.with_name("recipe.yaml")
    recipe.write_text(RECIPE)
    command = [sys.executable, "-m", "kvcompress", "train", "--sessions", str(sessions), "-o", str(out)]
    command += ["--config", str(recipe), "--threads", "1", *more]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env={**os.environ, "HF_HUB_OFFLINE": "1"})


@pytest.fixture(scope="module")
def sessions(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("sessions") / "s.jsonl"
    lines = (ROOT / "examples" / "sessions.jsonl").read_text().splitlines()[:8]
    path.write_text("\n".join(lines) + "\n")
    return path


@pytest.mark.slow
@pytest.mark.parametrize("devices", ["1", "2"])
def test_a_run_gives_a_codec_that_files_can_use(tmp_path: Path, sessions: Path, devices: str) -> None:
    done = train(tmp_path / "codec", sessions, "--devices", devices)
    assert done.returncode == 0, done.stderr[-2000:]
    codec = load_tinyvae(tmp_path / "codec")
    assert codec.vae(0).config.prior_layers == 1
    assert not codec.promises  # eight sessions are too few to verify a quality on
    assert "no quality is promised" in done.stderr
    before = load_tinyvae(tmp_path / "codec.run" / "closed-form")
    assert codec.fingerprint != before.fingerprint
    fitted = json.loads((tmp_path / "codec" / "config.json").read_text())["fitted"]
    assert fitted["recipe"]["devices"] == int(devices)
    assert {name: stage["steps"] for name, stage in fitted["trained"].items()} == {"rate": 6, "divergence": 4}
    assert all(stage["gained_bits_per_token"] >= 0 for stage in fitted["trained"].values())


@pytest.mark.slow
def test_a_run_that_was_cut_off_goes_on(tmp_path: Path, sessions: Path) -> None:
    assert train(tmp_path / "codec", sessions).returncode == 0
    whole = load_tinyvae(tmp_path / "codec").fingerprint
    shutil.rmtree(tmp_path / "codec")
    again = train(tmp_path / "codec", sessions)  # every stage is found done: the same weights come out
    assert again.returncode == 0, again.stderr[-2000:]
    assert load_tinyvae(tmp_path / "codec").fingerprint == whole


def test_training_needs_one_source(tmp_path: Path, sessions: Path) -> None:
    done = train(tmp_path / "codec", sessions, "--shards", str(tmp_path))
    assert done.returncode == 1
    assert "needs either --sessions or --shards" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.slow
def test_what_another_recipe_left_is_not_gone_on_with(tmp_path: Path, sessions: Path) -> None:
    assert train(tmp_path / "codec", sessions).returncode == 0
    other = tmp_path / "other.yaml"
    other.write_text(RECIPE.replace("steps: 6", "steps: 5"))
    done = train(tmp_path / "codec", sessions, "--config", str(other))
    assert done.returncode == 1
    assert "another recipe" in done.stderr
