"""The bundled model and sessions are what their cards promise."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from kvcompress.codec.directory import load_codec
from kvcompress.data.sessions import read_sessions, session_token_ids
from kvcompress.errors import CheckpointError
from kvcompress.fit.checkpoint import card
from kvcompress.hf import load_model
from kvcompress.hub.bundled import (
    DEFAULT_CODEC,
    bundled,
    checkpoint_root,
    codec_parts,
    find_checkpoint,
    recompute_choices,
)

MODEL_LIMIT_BYTES = 24_000_000


def test_reference_model_has_the_promised_geometry() -> None:
    directory = find_checkpoint("reference-lm")
    config = json.loads((directory / "config.json").read_text())
    assert config["model_type"] == "llama"
    assert config["num_hidden_layers"] >= 6
    assert config["num_key_value_heads"] * 2 <= config["num_attention_heads"]
    assert config["head_dim"] in (32, 64)
    assert config["max_position_embeddings"] >= 2048
    assert 4000 <= config["vocab_size"] <= 8192
    assert (directory / "model.safetensors").stat().st_size <= MODEL_LIMIT_BYTES


def test_reference_model_is_stored_in_bfloat16_with_a_chat_template() -> None:
    model, tokenizer = load_model(find_checkpoint("reference-lm"), "bfloat16")
    assert model.dtype == torch.bfloat16
    assert tokenizer is not None
    assert tokenizer.chat_template
    assert model.get_input_embeddings().weight.shape[0] == len(tokenizer)


def test_bundled_codecs_belong_to_the_bundled_model() -> None:
    from kvcompress.hf import fingerprint

    model, tokenizer = load_model(find_checkpoint("reference-lm"))
    for layers in recompute_choices(find_checkpoint(DEFAULT_CODEC)):
        codec = load_codec(DEFAULT_CODEC, layers)
        codec.model_fingerprint.require_match(fingerprint(model, tokenizer))
        assert codec.recompute_layers == layers
        assert set(codec.tiers) == {"transparent", "high", "usable"}
        assert codec.tiers["transparent"] >= codec.tiers["high"] >= codec.tiers["usable"]


def test_every_bundled_checkpoint_has_its_digest() -> None:
    root = checkpoint_root()
    there = {path.parent.relative_to(root).as_posix() for path in root.glob("**/model.safetensors")}
    assert there == set(bundled())


def test_damaged_bundled_weights_are_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in bundled():
        (tmp_path / name).mkdir()
        (tmp_path / name / "model.safetensors").write_bytes(b"damaged")
    (tmp_path / "index.json").write_text((checkpoint_root() / "index.json").read_text())
    monkeypatch.setattr("kvcompress.hub.bundled.checkpoint_root", lambda: tmp_path)
    with pytest.raises(CheckpointError, match="damaged"):
        find_checkpoint("reference-lm")


def test_example_sessions_are_long_many_and_hold_facts(sessions_file: Path) -> None:
    _, tokenizer = load_model(find_checkpoint("reference-lm"))
    sessions = list(read_sessions(sessions_file))
    assert len(sessions) >= 64
    assert len({session.id for session in sessions}) == len(sessions)
    for session in sessions:
        assert 1000 <= len(session_token_ids(session, tokenizer)) <= 2000
        assert session.facts
        for fact in session.facts:
            assert fact["value"] in session.messages[fact["stated_message"]]["content"]
            assert session.messages[fact["question_message"]]["role"] == "user"
        roles = [message["role"] for message in session.messages]
        assert roles == ["user", "assistant"] * (len(roles) // 2)


@pytest.mark.parametrize("layers", [0, 1, 2])
def test_the_card_can_be_written_again_and_says_what_it_said(layers: int) -> None:
    """Recipes of earlier versions name their fields otherwise; calibrating such a codec writes its card anew."""
    directory = codec_parts(find_checkpoint(DEFAULT_CODEC))[layers]
    stated, again = (directory / "README.md").read_text(encoding="utf-8"), card(load_codec(DEFAULT_CODEC, layers))
    shared = set(again.splitlines()) & set(stated.splitlines())
    assert "None" not in again
    assert any(line.startswith("| transparent | latents at ") for line in again.splitlines())
    assert len(shared) > len(stated.splitlines()) // 2
