"""A codec with other weights of its model: refused, unless it was measured with them; and files say so."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers.pre_tokenizers import Digits, Sequence
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from kvcompress.codec.directory import load_codec
from kvcompress.codec.facts import read_facts
from kvcompress.codec.promise import QUALITIES, applying
from kvcompress.codec.quality import encode_at_quality
from kvcompress.codec.settings import settings_of
from kvcompress.codec.tinyvae import TinyVAECodec
from kvcompress.data.sessions import read_sessions, session_token_ids
from kvcompress.errors import CheckpointError, FormatError, InputError, MismatchError
from kvcompress.fit.adopt import adopt, fit_of, measured
from kvcompress.fit.trials import compared, trials_from_sessions
from kvcompress.format.container import Encoded, from_bytes, to_bytes
from kvcompress.hf import capture, fingerprint, load_model, restore
from kvcompress.hf.fingerprint import configured_rope_digest, rope_digest, vocabulary_digest
from kvcompress.hf.generation import feed
from kvcompress.hub.bundled import find_checkpoint
from kvcompress.metrics.fidelity import TIERS
from kvcompress.snapshot import KVSnapshot

SMALL, LARGE = 0.005, 0.5
"""Noise on each weight, in standard deviations of its matrix: as bfloat16 against 4 bits; and a ruined model."""

SESSION_TOKENS = 256


def nothing(stage: str, done: int, total: int) -> None:
    del stage, done, total


def noisy(noise: float) -> tuple[Any, Any]:
    """The bundled model with noise on its weights, and its tokenizer."""
    model, tokenizer = load_model("reference-lm")
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(noise * weight.std() * torch.randn(weight.shape, generator=generator))
    return model, tokenizer


@pytest.fixture(scope="module", autouse=True)
def own_place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """What is measured here is kept in a place of these tests."""
    place = tmp_path_factory.mktemp("home")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("KVCOMPRESS_HOME", str(place))
        yield place


@pytest.fixture(scope="module")
def near() -> tuple[Any, Any]:
    torch.set_num_threads(1)
    return noisy(SMALL)


@pytest.fixture(scope="module")
def sessions(tmp_path_factory: pytest.TempPathFactory, sessions_file: Path, near: tuple[Any, Any]) -> Path:
    """Twenty recorded sessions, cut short."""
    place, rows = tmp_path_factory.mktemp("sessions") / "sessions.jsonl", []
    for session in list(read_sessions(sessions_file))[:20]:
        text = near[1].decode(session_token_ids(session, near[1])[:SESSION_TOKENS])
        rows.append(json.dumps({"id": session.id, "text": text, "special_tokens": True}) + "\n")
    place.write_text("".join(rows), encoding="utf-8")
    return place


@pytest.fixture(scope="module")
def own() -> TinyVAECodec:
    return load_codec()


@pytest.fixture(scope="module")
def fresh(sessions_file: Path, near: tuple[Any, Any]) -> list[torch.Tensor]:
    """Token ids of sessions that nothing was measured on."""
    later = list(read_sessions(sessions_file))[20:44]
    return [torch.tensor(session_token_ids(one, near[1])[:SESSION_TOKENS]) for one in later]


@pytest.fixture(scope="module")
def snapshot(near: tuple[Any, Any], fresh: list[torch.Tensor]) -> KVSnapshot:
    return capture(near[0], fresh[0], tokenizer=near[1])


@pytest.fixture(scope="module")
def tried(own: TinyVAECodec, near: tuple[Any, Any], sessions: Path) -> TinyVAECodec:
    """The bundled codec, measured with slightly different weights."""
    return measured(adopt(own, *near), *near, sessions, nothing)


def test_other_weights_are_refused_by_default(own: TinyVAECodec, snapshot: KVSnapshot) -> None:
    with pytest.raises(MismatchError, match="the model's weights"):
        own.encode(snapshot, 60)
    with pytest.raises(MismatchError, match="the model's weights"):
        encode_at_quality(own, snapshot, "high")


def test_nothing_is_promised_before_it_was_measured(
    own: TinyVAECodec, near: tuple[Any, Any], snapshot: KVSnapshot, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KVCOMPRESS_HOME", str(tmp_path))
    codec = measured(adopt(own, *near), *near, None, nothing)
    assert not codec.promises
    with pytest.raises(InputError, match=r"'high' with these weights was never measured.*--sessions.*--max-kl"):
        encode_at_quality(codec, snapshot, "high")
    assert own.promises  # the codec itself is as it was, and so is what would be saved of the other
    assert codec.config_json() == own.config_json()


def test_slightly_different_weights_keep_what_was_measured(
    own: TinyVAECodec, tried: TinyVAECodec, near: tuple[Any, Any], fresh: list[torch.Tensor]
) -> None:
    assert set(tried.promises) >= set(QUALITIES)
    assert tried.fingerprint == own.fingerprint
    trials = trials_from_sessions(near[0], fresh, near[1])
    for tier in TIERS:
        losses = []
        for trial in trials:
            encoded = from_bytes(to_bytes(encode_at_quality(tried, trial.snapshot, tier.name)))
            exact = feed(near[0], restore(trial.snapshot, near[0]), trial.continuation, len(trial.token_ids))
            cache = restore(own.decode(encoded), near[0])
            decoded = feed(near[0], cache, trial.continuation, len(trial.token_ids))
            losses.append(compared(torch.log_softmax(exact, -1), decoded))
        assert sum(kl for kl, _ in losses) / len(losses) <= tier.max_kl_nats
        assert sum(same for _, same in losses) / len(losses) >= tier.min_top1_agreement


def test_one_measurement_serves_every_session(
    own: TinyVAECodec, tried: TinyVAECodec, near: tuple[Any, Any], snapshot: KVSnapshot
) -> None:
    again = measured(adopt(own, *near), *near, None, nothing)
    assert again.promises == tried.promises
    assert to_bytes(encode_at_quality(again, snapshot, "high")) == to_bytes(encode_at_quality(tried, snapshot, "high"))


def test_a_damaged_measurement_is_refused_with_the_remedy(
    own: TinyVAECodec,
    tried: TinyVAECodec,
    near: tuple[Any, Any],
    own_place: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    del tried
    (place,) = (own_place / "other-weights").glob("*.json")
    data = json.loads(place.read_text())
    monkeypatch.setenv("KVCOMPRESS_HOME", str(tmp_path))
    (tmp_path / "other-weights").mkdir()
    for damage in ({"codec": "of another"}, {"session": {}}, {"nearest": {}}, {"promises": {"high": 3}}):
        (tmp_path / "other-weights" / place.name).write_text(json.dumps(data | damage))
        with pytest.raises(CheckpointError, match=r"damaged"):
            measured(adopt(own, *near), *near, None, nothing)


def test_a_file_names_both_weights_and_what_was_measured(
    own: TinyVAECodec, tried: TinyVAECodec, near: tuple[Any, Any], snapshot: KVSnapshot
) -> None:
    encoded = encode_at_quality(tried, snapshot, "high")
    stated = encoded.settings["other_weights"]
    assert stated["codec"] == own.model_fingerprint.weights[:32]
    assert stated["session"] == fingerprint(near[0]).weights[:32]
    assert stated["kl_nats"] == tried.promises["high"].kl_nats.measured
    assert stated["sessions"] == 20
    assert applying(own.promises, settings_of(encoded)) is None  # what its own weights keep is no promise here


def test_only_the_weights_that_recorded_a_file_go_on_from_it(
    own: TinyVAECodec, tried: TinyVAECodec, near: tuple[Any, Any], snapshot: KVSnapshot
) -> None:
    decoded = own.decode(encode_at_quality(tried, snapshot, "high"))
    assert restore(decoded, near[0], tokenizer=near[1]).get_seq_length() == snapshot.tokens
    with pytest.raises(MismatchError, match="the model's weights"):
        restore(decoded, load_model("reference-lm")[0])


def test_a_codec_reads_its_own_files_as_before(
    own: TinyVAECodec, tried: TinyVAECodec, fresh: list[torch.Tensor]
) -> None:
    exact = capture(load_model("reference-lm")[0], fresh[0])
    encoded = own.encode(exact, 60)
    assert "other_weights" not in encoded.settings
    assert torch.equal(tried.decode(encoded).layers[0].keys, own.decode(encoded).layers[0].keys)
    with pytest.raises(MismatchError, match="the model's weights"):
        tried.encode(exact, 60)


def _without(encoded: Encoded) -> Encoded:
    return replace(encoded, settings={name: one for name, one in encoded.settings.items() if name != "other_weights"})


def _stating(**parts: Any) -> Callable[[Encoded], Encoded]:
    def change(encoded: Encoded) -> Encoded:
        return replace(
            encoded, settings={**encoded.settings, "other_weights": encoded.settings["other_weights"] | parts}
        )

    return change


@pytest.mark.parametrize(
    ("change", "error", "told"),
    [
        (_without, MismatchError, "the model's weights"),
        (_stating(codec="0" * 32), MismatchError, "the weights of the codec"),
        (_stating(session="0" * 32), MismatchError, "the weights of the session"),
        (_stating(session=3), FormatError, "damaged"),
    ],
)
def test_a_file_that_says_other_weights_than_it_has_is_refused(
    own: TinyVAECodec,
    tried: TinyVAECodec,
    snapshot: KVSnapshot,
    change: Callable[[Encoded], Encoded],
    error: type[Exception],
    told: str,
) -> None:
    encoded = tried.encode(snapshot, 60)
    with pytest.raises(error, match=told):
        own.decode(change(encoded))


def test_very_different_weights_are_refused_with_the_figure(own: TinyVAECodec, sessions: Path) -> None:
    far = noisy(LARGE)
    codec = measured(adopt(own, *far), *far, sessions, nothing)
    assert codec.adopted is not None
    assert codec.adopted.nearest is not None
    assert codec.adopted.nearest.kl_nats > 0.08
    told = rf"does not keep 'usable' .* KL {codec.adopted.nearest.kl_nats:.3g} nats \(at most 0.08\).*fit a codec"
    with pytest.raises(InputError, match=told):
        codec.promise_of("usable")
    assert not set(codec.promises) & set(QUALITIES)


def test_its_own_weights_need_no_leave(own: TinyVAECodec) -> None:
    assert adopt(own, *load_model("reference-lm")) is own


def respelled(model: Any) -> Any:
    """The same model as another tool writes it: integers for floats, an epsilon in float32, a key of its own."""
    config = copy.deepcopy(model.config)
    config.rope_parameters = {name: int(v) if isinstance(v, float) else v for name, v in config.rope_parameters.items()}
    config.rms_norm_eps = float(torch.tensor(config.rms_norm_eps))
    config.their_own_key, config.initializer_range, config.pad_token_id = {"a": 1}, 0.5, 3
    other = AutoModelForCausalLM.from_config(config).eval()
    other.load_state_dict(model.state_dict())
    return other


def test_another_spelling_of_the_configuration_is_the_same_architecture(
    own: TinyVAECodec, near: tuple[Any, Any]
) -> None:
    other = respelled(near[0])
    assert fingerprint(other).rope != own.model_fingerprint.rope
    assert fingerprint(other).config != own.model_fingerprint.config
    codec = adopt(own, other, near[1])
    ids = torch.arange(4, 100)
    decoded = own.decode(codec.encode(capture(other, ids), 60))
    assert decoded.tokens == len(ids)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("num_key_value_heads", 8),
        ("hidden_act", "gelu"),
        ("rms_norm_eps", 1e-5),
        ("rope_parameters", {"rope_theta": 5e4}),
    ],
)
def test_another_architecture_stays_refused(own: TinyVAECodec, near: tuple[Any, Any], key: str, value: Any) -> None:
    config = AutoConfig.from_pretrained(find_checkpoint("reference-lm"))
    current = getattr(config, key)
    setattr(config, key, {**current, **value} if isinstance(value, dict) else value)
    with pytest.raises(MismatchError, match=rf"the model's architecture \({key}\)"):
        adopt(own, AutoModelForCausalLM.from_config(config).eval(), near[1])


def test_frequencies_that_are_not_as_configured_stay_refused(own: TinyVAECodec, near: tuple[Any, Any]) -> None:
    other = copy.deepcopy(near[0])
    other.model.rotary_emb.inv_freq.mul_(1.01)
    assert configured_rope_digest(json.loads(other.config.to_json_string(use_diff=False))) != rope_digest(other)
    with pytest.raises(MismatchError, match="the model's rope"):
        adopt(own, other, near[1])


def test_another_vocabulary_stays_refused_and_other_rules_of_splitting_do_not(
    own: TinyVAECodec, near: tuple[Any, Any]
) -> None:
    tokenizer = AutoTokenizer.from_pretrained(find_checkpoint("reference-lm"))
    backend = tokenizer.backend_tokenizer
    backend.pre_tokenizer = Sequence([Digits(individual_digits=True), backend.pre_tokenizer])
    with pytest.raises(MismatchError, match="the tokenizer:"):  # the bundled codec does not say its vocabulary
        adopt(own, near[0], tokenizer)
    knowing = copy.copy(own)
    knowing.fitted = own.fitted | {"vocabulary": vocabulary_digest(near[1])}
    assert adopt(knowing, near[0], tokenizer).adopted is not None
    tokenizer.add_tokens(["<|another|>"])
    with pytest.raises(MismatchError, match="the tokenizer's vocabulary"):
        adopt(knowing, near[0], tokenizer)


def test_whether_a_codec_fits_a_model_is_told_without_loading_it(near: tuple[Any, Any]) -> None:
    facts = read_facts(find_checkpoint("reference-lm-tinyvae"))
    assert fit_of(facts, *load_model("reference-lm")) == "yes"
    assert fit_of(facts, *near) == "other weights"
    assert fit_of(replace(facts, origin={}), *near) == "no"
    config = AutoConfig.from_pretrained(find_checkpoint("reference-lm"), num_hidden_layers=2)
    assert fit_of(facts, AutoModelForCausalLM.from_config(config).eval(), near[1]) == "no"
