"""Law: code that comes with a model is run only where the user said so, and nobody is ever asked."""

from __future__ import annotations

import builtins
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import dynamic_module_utils

from kvcompress.errors import CheckpointError
from kvcompress.hf import capture, load_model
from kvcompress.hf.geometry import geometry_of
from kvcompress.hf.loading import model_config, model_tokenizer
from kvcompress.hub.bundled import find_checkpoint
from kvcompress.hub.trust import trusting_remote_code
from tests.hf.families import model_of

OWN_MODEL = {
    "model_type": "of_their_own",
    "auto_map": {"AutoConfig": "theirs.C", "AutoModelForCausalLM": "theirs.M"},
}
OWN_TOKENIZER = {"tokenizer_class": "T", "auto_map": {"AutoTokenizer": [None, "theirs.T"]}}
CODE = """
from pathlib import Path
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
Path({ran!r}).touch()
class C(LlamaConfig):
    model_type = "of_their_own"
class M(LlamaForCausalLM):
    config_class = C
class T(PreTrainedTokenizerFast):
    pass
"""


def change(file: Path, found: dict[str, Any]) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | found))


def saved_with_code(where: Path, model: Any) -> Path:
    model.save_pretrained(where)
    change(where / "config.json", OWN_MODEL)
    (where / "theirs.py").write_text(CODE.format(ran=str(where / "ran")))
    return where


@pytest.fixture(autouse=True)
def _asked(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Fail where anybody is asked, as on a terminal; and keep their modules out of the user's cache."""

    def asked(question: str = "") -> str:
        pytest.fail(f"asked: {question}")

    monkeypatch.setattr(builtins, "input", asked)
    monkeypatch.setattr(dynamic_module_utils, "HF_MODULES_CACHE", str(tmp_path / "modules"))


@pytest.fixture
def own(tmp_path: Path) -> Path:
    return saved_with_code(tmp_path / "own", model_of("llama"))


@pytest.mark.parametrize("read", [load_model, model_config])
def test_a_model_that_needs_its_code_is_refused_with_the_option_named(own: Path, read: Any) -> None:
    with pytest.raises(CheckpointError, match=r"own/config\.json: the model comes with .* --trust-remote-code") as told:
        read(own)
    assert "\n" not in str(told.value)
    assert not (own / "ran").exists()


def test_a_tokenizer_that_needs_its_code_is_refused_with_the_option_named(tmp_path: Path) -> None:
    where = tmp_path / "own"
    model_of("llama").save_pretrained(where)
    model_tokenizer("reference-lm").save_pretrained(where)
    for auto_map in (OWN_TOKENIZER["auto_map"], {"AutoTokenizer": ["theirs.T", None]}, ["theirs.T", None]):
        change(where / "tokenizer_config.json", OWN_TOKENIZER | {"auto_map": auto_map})
        for read in (load_model, model_tokenizer):
            with pytest.raises(CheckpointError, match=r"the tokenizer comes with .* --trust-remote-code"):
                read(where)


def test_a_trusted_model_runs_its_code_and_can_be_captured(own: Path) -> None:
    model, _ = load_model(own, trust_remote_code=True)
    assert (own / "ran").exists()
    ids = torch.arange(1, 9)
    ours, theirs = capture(model, ids), capture(model_of("llama"), ids)
    assert all(torch.equal(a.keys, b.keys) for a, b in zip(ours.layers, theirs.layers, strict=True))
    (own / "ran").unlink()
    with pytest.raises(CheckpointError, match="trust-remote-code"):  # trust of one load is not trust of the next
        load_model(own)
    assert not (own / "ran").exists()
    with trusting_remote_code():
        assert model_config(own).model_type == "of_their_own"


def test_where_transformers_has_the_class_it_is_taken_with_a_word(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    where = saved_with_code(tmp_path / "own", model_of("llama"))
    change(where / "config.json", {"model_type": "llama"})
    model, _ = load_model(where)
    assert type(model).__module__.startswith("transformers.")
    assert not (where / "ran").exists()
    assert "own code is not run" in caplog.text


def test_a_geometry_asks_nobody() -> None:
    config = model_of("llama").config.__class__(num_hidden_layers=1)
    config.auto_map = {"AutoModelForCausalLM": "theirs.M"}
    assert geometry_of(config).parameters
    config.__class__ = type("Other", (type(config),), {"model_type": "of_nobody"})
    with pytest.raises(ValueError, match="custom code"):
        geometry_of(config)


def test_pickled_weights_are_refused(tmp_path: Path) -> None:
    where = tmp_path / "pickled"
    model = model_of("llama")
    model.save_pretrained(where)
    (where / "model.safetensors").unlink()
    torch.save(model.state_dict(), where / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match=r"the weights are not safetensors\. Convert them with save_pretrained"):
        load_model(where)


def test_every_call_that_could_run_code_says_whether_it_may() -> None:
    root = Path(__file__).parents[2]
    for package in ("kvcompress", "kvcompress_train", "kvcompress_eval", "train", "eval"):
        for file in (root / package).rglob("*.py"):
            text = file.read_text(encoding="utf-8")
            for at, _ in enumerate(text):
                if text.startswith(("Auto", "made.from_config"), at) and _is_load(text[at : at + 60]):
                    around = text[max(0, at - 400) : at + 500]
                    assert "trust_remote_code" in around, f"{file}: {text[at : at + 60]}"
    assert find_checkpoint("reference-lm").is_dir()


def _is_load(text: str) -> bool:
    name = text.partition("(")[0]
    return name.endswith((".from_pretrained", ".from_config")) and not name.startswith("AutoCodec")
