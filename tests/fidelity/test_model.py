"""Measures taken on models: the batched computation against a naive one, and the refusals."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AttentionInterface, AttentionMaskInterface

from kvcompress.errors import InputError
from kvcompress.metrics.fidelity import context_worth_nats, continuation_logits, fidelity, kl_nats, short_context_logits
from tests.fidelity.models import CONTEXT, WINDOW, build, keep, prefill, tokens, whole_logits

FAMILIES = ("llama", "gpt2", "mistral")


@pytest.mark.parametrize("family", FAMILIES)
def test_continuing_from_a_cache_equals_one_pass_and_leaves_the_cache_alone(family: str) -> None:
    model, ids = build(family), tokens(100)
    cache = prefill(model, ids[:30])
    before = copy.deepcopy(cache)
    assert torch.allclose(continuation_logits(model, cache, ids[30:], 30), whole_logits(model, ids)[30:], atol=1e-9)
    for old, new in zip(before.layers, cache.layers, strict=True):
        assert old.get_seq_length() == new.get_seq_length()
        assert torch.equal(old.keys, new.keys)
        assert torch.equal(old.values, new.values)


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_a_pruned_cache_keeps_the_positions_of_its_tokens(family: str) -> None:
    model, ids = build(family), tokens(60)
    kept = torch.tensor([0, 1, 5, 6, 7, 20, 28])
    pruned = keep(prefill(model, ids[:30]), [kept, kept])
    seen = torch.zeros(1, 60, dtype=torch.int64)
    seen[0, kept] = 1
    seen[0, 30:] = 1
    with torch.no_grad():  # the reference hides the dropped tokens by a mask, and nothing is removed
        masked = model(
            ids[None, 30:],
            attention_mask=seen,
            position_ids=torch.arange(30, 60)[None],
            past_key_values=prefill(model, ids[:30]),
        ).logits[0]
    assert torch.allclose(continuation_logits(model, pruned, ids[30:], 30), masked, atol=1e-9)


def causal_by_own_length(
    module: Any, query: Tensor, key: Tensor, value: Tensor, attention_mask: object, scaling: float, **kind: Any
) -> tuple[Tensor, None]:
    """Attend with a mask made from this layer's own number of keys."""
    groups = query.shape[1] // key.shape[1]
    key, value = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)
    new, held = query.shape[2], key.shape[2]
    distance = torch.arange(held - new, held)[:, None] - torch.arange(held)[None]
    hidden = (distance < 0) | (distance >= (kind.get("sliding_window") or held))
    weights = (query @ key.transpose(2, 3) * scaling).masked_fill(hidden, -torch.inf).softmax(-1)
    return (weights @ value).transpose(1, 2), None


def attend_by_own_length(model: Any) -> None:
    AttentionInterface.register("own_length", causal_by_own_length)
    AttentionMaskInterface.register("own_length", lambda *_, **__: None)
    model.set_attn_implementation("own_length")


def test_a_pruned_layer_beside_a_sliding_one_sees_its_newest_tokens() -> None:
    model, ids = build("qwen2"), tokens(60)
    kept = [torch.tensor([0, 3, 4, 9]), torch.arange(WINDOW - 1)]
    found = continuation_logits(model, keep(prefill(model, ids[:30]), kept), ids[30:], 30)
    attend_by_own_length(model)
    expected = continuation_logits(model, keep(prefill(model, ids[:30]), kept), ids[30:], 30)
    assert torch.allclose(found, expected, atol=1e-9)


def test_layers_of_different_lengths_are_fed_one_token_at_a_time() -> None:
    model, ids = build("llama"), tokens(50)
    kept = [torch.tensor([0, 3, 4, 9]), torch.arange(2, 20)]
    stepped = continuation_logits(model, keep(prefill(model, ids[:20]), kept), ids[20:], 20)
    attend_by_own_length(model)
    at_once = continuation_logits(model, keep(prefill(model, ids[:20]), kept), ids[20:], 20)
    assert torch.allclose(stepped, at_once, atol=1e-9)
    model.set_attn_implementation("eager")
    with pytest.raises(InputError, match="sdpa"):
        continuation_logits(model, keep(prefill(model, ids[:20]), kept), ids[20:], 20)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(("session", "window"), [(60, 32), (5, 32), (31, 32), (0, 32), (20, 1)])
def test_batched_windows_equal_one_window_at_a_time(family: str, session: int, window: int) -> None:
    model, ids = build(family), tokens(session + 70)
    expected = []
    for last in range(session, session + 70):
        first = max(last + 1 - window, 0)
        at = torch.arange(first, last + 1)[None]
        with torch.no_grad():
            expected.append(model(ids[None, first : last + 1], position_ids=at, use_cache=False).logits[0, -1])
    found = short_context_logits(model, ids[:session], ids[session:], window)
    assert torch.allclose(found, torch.stack(expected), atol=1e-9)
    if window == 32:
        worth = kl_nats(whole_logits(model, ids)[session:], torch.stack(expected)).mean()
        assert context_worth_nats(model, ids[:session], ids[session:]) == pytest.approx(float(worth), abs=1e-9)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_exact_cache_is_transparent_and_a_ruined_one_is_not(family: str) -> None:
    model, ids = build(family), tokens(128)
    exact, ruined = prefill(model, ids[:60]), prefill(model, ids[:60])
    same = fidelity(model, exact, prefill(model, ids[:60]), ids[:60], ids[60:])
    assert (same.kl_max_nats, same.top1_agreement, same.tier) == (0.0, 1.0, "transparent")
    assert same.ppl_ratio == 1.0
    for layer in ruined.layers:
        layer.keys, layer.values = layer.keys.flip(-2), -layer.values
    broken = fidelity(model, exact, ruined, ids[:60], ids[60:])
    assert broken.kl_nats > 0.08
    assert broken.tier is None
    assert broken.context_worth_nats == pytest.approx(same.context_worth_nats)


def test_what_cannot_be_measured_is_refused_in_one_line() -> None:
    model, ids = build("llama"), tokens(CONTEXT + 1)
    cache = prefill(model, ids[:60])

    def refused(session: Tensor, continuation: Tensor, what: str) -> None:
        with pytest.raises(InputError, match=what) as caught:
            fidelity(model, cache, cache, session, continuation)
        assert "\n" not in str(caught.value)

    refused(ids[:60], ids[60:123], "63 tokens")
    refused(ids[:60], ids[60:], "context of 256")
    refused(ids[:60][None], ids[60:124], "batch axis")
    with pytest.raises(InputError, match="context of 256"):
        context_worth_nats(model, ids[:60], ids[60:])
    model.train()
    refused(ids[:60], ids[60:124], "eval")
    model.eval()
    cache.layers[1].values[0, 0, 3, 3] = torch.nan
    refused(ids[:60], ids[60:124], "NaN")
