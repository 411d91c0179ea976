"""The gate at resume: every field is compared, a fine-tune is refused unless it is asked for, and then measured."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

import kvcompress as kv
from kvcompress.codec.lossless import LosslessCodec
from kvcompress.errors import InputError, MismatchError
from kvcompress.snapshot import KVSnapshot, LayerKV
from kvcompress.store.foreign import measure
from kvcompress.store.identity import ALLOWED, DEGRADED, REFUSED, Compatibility, Identity, compare
from kvcompress.store.session import StoredSession
from kvcompress.store.store import Store
from tests.codec.conftest import random_sessions, tiny_model

IDS = random_sessions(1, 40)[0]


def fine_tuned(model: Any, step: float) -> Any:
    """The same model some steps of training on."""
    other, generator = copy.deepcopy(model), torch.Generator().manual_seed(7)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.add_(step * torch.randn(parameter.shape, generator=generator))
    return other


@pytest.fixture(scope="module")
def base() -> LlamaForCausalLM:
    return tiny_model()


@pytest.fixture
def session(store: Store, base: LlamaForCausalLM) -> StoredSession:
    found = store.session("talk", create=True)
    found.append(kv.capture(base, IDS), lossless=True)
    return found


def verdicts(found: Compatibility) -> dict[str, str]:
    return {one.name: one.verdict for one in found.fields if one.verdict != ALLOWED}


def test_the_model_itself_is_allowed_and_every_field_is_named(base: LlamaForCausalLM) -> None:
    origin, here = Identity.of_origin(kv.capture(base, IDS).origin), Identity.of_model(base)
    found = compare(origin, here)
    assert found.verdict == ALLOWED
    assert [one.name for one in found.fields] == [
        "weights", "tokenizer", "rope", "layer kinds", "geometry", "architecture", "dtype", "adapter"
    ]  # fmt: skip
    assert found.to_json()["verdict"] == "allowed"
    found.require()


def test_a_fine_tune_is_refused_before_anything_is_decoded(
    session: StoredSession, base: LlamaForCausalLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(StoredSession, "snapshot", lambda *given, **named: pytest.fail("it was decoded"))
    with pytest.raises(MismatchError, match=r"model's weights.*ask for other weights") as failure:
        session.resume(fine_tuned(base, 1e-3))
    assert "\n" not in str(failure.value)


def test_a_fine_tune_that_is_asked_for_is_measured(session: StoredSession, base: LlamaForCausalLM) -> None:
    found = [session.resume(fine_tuned(base, step), other_weights=True) for step in (1e-4, 3e-2)]
    near, far = (one.measured for one in found)
    assert near is not None
    assert far is not None
    assert 0 < near.kl_nats < far.kl_nats
    assert near.top1_agreement >= far.top1_agreement
    assert near.tokens == 20
    assert "other weights" in far.words()
    assert found[0].compatibility is not None
    assert found[0].compatibility.verdict == DEGRADED
    assert torch.equal(found[0].cache.layers[0].keys[0], session.snapshot().layers[0].keys)


def test_the_measure_is_the_distance_of_two_caches_of_one_model(base: LlamaForCausalLM) -> None:
    snapshot, other = kv.capture(base, IDS), fine_tuned(base, 1e-2)
    assert measure(kv.capture(other, IDS), other).kl_nats < 1e-9
    found = measure(snapshot, other, tokens=8)
    with torch.no_grad():
        exact = other(IDS[None]).logits[0, -8:].double().log_softmax(-1)
        cut = KVSnapshot(
            tuple(LayerKV(one.keys[:, :-8], one.values[:, :-8], one.positions[:-8]) for one in snapshot.layers),
            IDS[:-8],
            replace(snapshot.origin, next_position=len(IDS) - 8),
        )
        cache = kv.restore(cut, other, check_fingerprint=False)
        foreign = other(IDS[None, -8:], past_key_values=cache).logits[0].double().log_softmax(-1)
    assert found.kl_nats == pytest.approx(float((exact.exp() * (exact - foreign)).sum(-1).mean()), rel=1e-3)


def test_the_recording_model_is_not_measured(session: StoredSession, base: LlamaForCausalLM) -> None:
    for asked in (False, True):
        found = session.resume(base, other_weights=asked)
        assert found.measured is None
        assert found.compatibility is not None
        assert found.compatibility.verdict == ALLOWED
    assert session.resume(fine_tuned(base, 1e-3), check=False).compatibility is None


def test_what_cannot_be_measured_is_refused(base: LlamaForCausalLM) -> None:
    with pytest.raises(InputError, match="one token"):
        measure(kv.capture(base, IDS[:1]), base)
    whole = kv.capture(base, IDS)
    first = whole.layers[0]
    pruned = (LayerKV(first.keys[:, 1:], first.values[:, 1:], first.positions[1:]), *whole.layers[1:])
    with pytest.raises(InputError, match="let tokens go"):
        measure(KVSnapshot(pruned, IDS, whole.origin), base)


def model_with(**changes: Any) -> LlamaForCausalLM:
    sizes = {"vocab_size": 50, "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 2,
             "num_attention_heads": 2, "max_position_embeddings": 64}  # fmt: skip
    torch.manual_seed(0)
    return LlamaForCausalLM(LlamaConfig(**(sizes | changes))).eval()


@pytest.mark.parametrize(
    ("changes", "fields"),
    [
        ({"rope_parameters": {"rope_type": "default", "rope_theta": 5e5}}, {"rope", "architecture"}),
        ({"num_hidden_layers": 3}, {"weights", "layer kinds", "geometry", "architecture"}),
        ({"vocab_size": 51}, {"weights", "geometry", "architecture"}),
        ({"rms_norm_eps": 0.1}, {"architecture"}),
    ],
)
def test_what_gives_keys_another_meaning_is_refused_whatever_was_asked(
    changes: dict[str, Any], fields: set[str]
) -> None:
    recorded, here = Identity.of_model(model_with()), Identity.of_model(model_with(**changes))
    assert set(verdicts(compare(recorded, here))) == fields
    found = compare(recorded, here, other_weights=True)
    assert {name for name, verdict in verdicts(found).items() if verdict == REFUSED} == fields - {"weights"}
    with pytest.raises(MismatchError):
        found.require()


def test_another_data_type_is_degraded_with_what_is_lost(session: StoredSession) -> None:
    model = tiny_model()
    narrow = Identity.of_model(tiny_model().bfloat16())
    whole = Identity.of_model(model)
    found = compare(whole, replace(narrow, fingerprint=whole.fingerprint))
    assert verdicts(found) == {"dtype": DEGRADED}
    assert "8 of 24 significant bits" in found.fields[6].what
    half = compare(whole, replace(whole, dtype="float16")).fields[6]
    assert "overflow" in half.what
    assert "significant" not in compare(replace(whole, dtype="bfloat16"), whole).fields[6].what


def test_tokenizers_and_adapters_count_where_they_are_known() -> None:
    whole = Identity.of_model(tiny_model())
    one, other = (replace(whole, fingerprint=replace(whole.fingerprint, tokenizer=digit * 64)) for digit in ("1", "2"))
    assert verdicts(compare(one, other)) == {"tokenizer": REFUSED}
    assert verdicts(compare(one, other, other_weights=True)) == {"tokenizer": DEGRADED}
    assert verdicts(compare(whole, other)) == {}
    model = tiny_model(seed=1)
    model.peft_config = {"tuned": object()}
    model.active_adapters = ["tuned"]  # type: ignore[assignment]
    adapted = Identity.of_model(model)
    assert adapted.adapters == ("tuned",)
    recorded = replace(whole, adapters=None)
    assert verdicts(compare(recorded, adapted)) == {"weights": REFUSED, "adapter": REFUSED}
    assert verdicts(compare(whole, adapted, other_weights=True)) == {"weights": DEGRADED, "adapter": DEGRADED}


def test_a_file_is_known_by_its_digests(tmp_path: Path, base: LlamaForCausalLM) -> None:
    kv.save(tmp_path / "a.kvz", LosslessCodec().encode(kv.capture(base, IDS)))
    recorded = Identity.of_file(tmp_path / "a.kvz")
    assert compare(recorded, Identity.of_model(base)).verdict == ALLOWED
    assert verdicts(compare(recorded, Identity.of_model(fine_tuned(base, 1e-3)))) == {"weights": REFUSED}
    assert "architecture" in verdicts(compare(recorded, Identity.of_model(model_with())))
