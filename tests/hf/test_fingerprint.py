"""Equal meaning gives equal hashes, and a mismatch is refused by name."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from kvcompress.errors import CheckpointError, InputError, MismatchError
from kvcompress.hf import capture, fingerprint, load_model, restore
from tests.hf.families import ACCEPTED, CORE, VOCABULARY, build, model_of, session


def tokenizer_of(words: int, **options: object) -> PreTrainedTokenizerFast:
    vocabulary = {f"w{index}": index for index in range(words)} | {"[UNK]": words}
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="[UNK]", pad_token="w0", **options)


def saved(model: PreTrainedModel, path: Path) -> Path:
    model.save_pretrained(path)
    return path


@pytest.mark.parametrize("name", CORE)
def test_same_checkpoint_same_fingerprint_in_any_dtype(name: str, tmp_path: Path) -> None:
    stored = saved(model_of(name, "bfloat16"), tmp_path / name)
    prints = {fingerprint(load_model(stored, dtype)[0]) for dtype in ("float32", "bfloat16")}
    assert prints == {fingerprint(model_of(name, "bfloat16"))} == {fingerprint(model_of(name))}


def test_one_weight_changes_the_fingerprint_at_once() -> None:
    model = build(ACCEPTED["llama"]())
    before = fingerprint(model)
    assert fingerprint(model) == before
    with torch.no_grad():
        model.model.layers[1].mlp.up_proj.weight[3, 5] += 1e-3
    after = fingerprint(model)
    assert after.weights != before.weights
    assert (after.config, after.rope) == (before.config, before.rope)


def test_exchanged_weight_changes_the_fingerprint_at_once() -> None:
    model = build(ACCEPTED["llama"]())
    before = fingerprint(model)
    model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight.detach() * 2)
    assert fingerprint(model).weights != before.weights


def test_tied_weights_count_once_and_survive_a_round_trip(tmp_path: Path) -> None:
    config = ACCEPTED["llama"]()
    config.tie_word_embeddings = True
    model = build(config)
    assert model.lm_head.weight is model.model.embed_tokens.weight
    assert fingerprint(load_model(saved(model, tmp_path))[0]) == fingerprint(model)


def test_run_time_settings_do_not_change_the_fingerprint() -> None:
    model = build(ACCEPTED["llama"]())
    before = fingerprint(model)
    model.config.use_cache = False
    model.config.pad_token_id = 5
    model.config.name_or_path = "/somewhere/else"
    model.set_attn_implementation("eager")
    assert fingerprint(model) == before


def test_length_dependent_frequencies_do_not_change_the_fingerprint() -> None:
    model = build(ACCEPTED["dynamic"]())
    before = fingerprint(model)
    with torch.inference_mode():
        model(input_ids=session(200)[None])
    assert fingerprint(model) == before


def test_other_weights_are_refused() -> None:
    snapshot = capture(model_of("llama"), session(5))
    other = build(ACCEPTED["llama"](), seed=1)
    with pytest.raises(MismatchError, match="the model's weights") as caught:
        restore(snapshot, other)
    assert caught.value.expected == snapshot.origin.fingerprint.weights[:16]
    assert caught.value.found == fingerprint(other).weights[:16]
    assert restore(snapshot, other, check_fingerprint=False).get_seq_length() == 5


def test_other_rope_is_refused() -> None:
    snapshot = capture(model_of("llama"), session(5))
    config = ACCEPTED["llama"]()
    config.rope_parameters = {"rope_type": "default", "rope_theta": 5e5}
    other = build(config)
    assert fingerprint(other).weights == snapshot.origin.fingerprint.weights
    assert fingerprint(other).rope != snapshot.origin.fingerprint.rope
    with pytest.raises(MismatchError):
        restore(snapshot, other)


def test_changed_frequencies_are_refused_by_name() -> None:
    snapshot = capture(model_of("llama"), session(5))
    other = build(ACCEPTED["llama"]())
    other.model.rotary_emb.inv_freq *= 0.99
    with pytest.raises(MismatchError, match="the model's rope"):
        restore(snapshot, other)


def test_other_tokenizer_is_refused() -> None:
    model = model_of("llama")
    snapshot = capture(model, session(5), tokenizer=tokenizer_of(VOCABULARY - 1))
    restore(snapshot, model, tokenizer=tokenizer_of(VOCABULARY - 1))
    restore(snapshot, model)
    for other in (tokenizer_of(VOCABULARY - 2), tokenizer_of(VOCABULARY - 1, chat_template="{{ messages }}")):
        with pytest.raises(MismatchError, match="the model's tokenizer"):
            restore(snapshot, model, tokenizer=other)


def test_using_a_tokenizer_does_not_change_its_hash() -> None:
    model, tokenizer = model_of("llama"), tokenizer_of(50)
    before = fingerprint(model, tokenizer)
    tokenizer(["w1 w2", "w3"], padding="max_length", truncation=True, max_length=7)
    assert tokenizer.backend_tokenizer.padding is not None
    assert fingerprint(model, tokenizer) == before


def test_model_without_memory_is_refused() -> None:
    with torch.device("meta"):
        model = type(model_of("llama"))(ACCEPTED["llama"]())
    with pytest.raises(InputError, match="not in memory"):
        fingerprint(model)


def test_load_model_is_silent_and_ready(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    stored = saved(model_of("llama"), tmp_path / "llama")
    tokenizer_of(VOCABULARY - 1).save_pretrained(stored)
    capfd.readouterr()
    model, tokenizer = load_model(stored, "bfloat16")
    assert capfd.readouterr() == ("", "")
    assert model.dtype == torch.bfloat16
    assert not model.training
    assert tokenizer is not None
    assert capture(model, tokenizer("w5 w6")["input_ids"]).origin.model_name == "llama"


def test_bad_directory_gives_one_line(tmp_path: Path) -> None:
    empty, broken, holed = tmp_path / "empty", tmp_path / "broken", tmp_path / "holed"
    empty.mkdir()
    saved(model_of("llama"), broken)
    (broken / "model.safetensors").write_bytes(b"nothing")
    deep = ACCEPTED["llama"]()
    deep.num_hidden_layers = 3
    saved(model_of("llama"), holed)
    deep.save_pretrained(holed)
    for where, reason in (
        (tmp_path / "absent", "no such directory"),
        (empty, "config.json"),
        (broken, "cannot be loaded"),
        (holed, "weights are missing"),
    ):
        with pytest.raises(CheckpointError, match=reason) as caught:
            load_model(where)
        assert str(where) in str(caught.value)
        assert "save_pretrained" in str(caught.value)
        assert "\n" not in str(caught.value)
    with pytest.raises(InputError, match="unknown dtype"):
        load_model(broken, "int3")
