"""A cache reaches the model under whatever name its forward has for it, or the model is refused."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import LlamaForCausalLM, PreTrainedModel

from kvcompress.errors import InputError
from kvcompress.hf import capture, first_layers, restore
from kvcompress.hf.attention_hook import Observer
from kvcompress.hf.families import new_cache
from kvcompress.hf.forward import cache_name, held_tokens, open_mask, run, take_logits
from kvcompress.hf.generation import feed
from kvcompress.metrics.sampled_kl import Judge
from tests.hf.families import ACCEPTED, build, model_of, session


class Renamed(LlamaForCausalLM):
    """A Llama whose forward calls its cache `cache`."""

    def forward(self, input_ids: Tensor, cache: Any = None, **rest: Any) -> Any:
        assert "past_key_values" not in rest
        return super().forward(input_ids=input_ids, past_key_values=cache, **rest)


class Swallowing(LlamaForCausalLM):
    """A Llama whose forward knows no cache and takes any keyword."""

    def forward(self, input_ids: Tensor, **rest: Any) -> Any:
        return super().forward(input_ids=input_ids, use_cache=False)


class Deaf(LlamaForCausalLM):
    """A Llama whose forward names a cache and leaves it empty."""

    def forward(self, input_ids: Tensor, past_key_values: Any = None, **rest: Any) -> Any:
        return super().forward(input_ids=input_ids, use_cache=False)


def as_a(kind: type[PreTrainedModel]) -> Any:
    model = build(ACCEPTED["llama"]())
    model.__class__ = kind
    return model


def parts(cache: Any) -> list[Tensor]:
    return [part for layer in cache.layers for part in (layer.keys, layer.values)]


def test_the_cache_goes_under_the_name_that_forward_has_for_it() -> None:
    assert cache_name(as_a(Renamed)) == "cache"
    assert cache_name(model_of("llama")) == "past_key_values"


def test_a_model_with_the_other_name_gives_the_same_bits() -> None:
    model, renamed, ids, more = model_of("llama"), as_a(Renamed), session(20), session(7, seed=2)
    expected, found = capture(model, ids), capture(renamed, ids, chunk_tokens=6)
    assert found.origin.rope_layers == expected.origin.rope_layers == (True, True)
    for one, other in zip(capture(renamed, ids).layers, expected.layers, strict=True):
        assert torch.equal(one.keys, other.keys)
        assert torch.equal(one.values, other.values)
    caches = restore(expected, model), restore(expected, renamed)
    assert torch.equal(feed(renamed, caches[1], more, 20), feed(model, caches[0], more, 20))
    assert all(map(torch.equal, parts(caches[0]), parts(caches[1])))
    assert torch.equal(first_layers(renamed, ids, 1)[1].keys, first_layers(model, ids, 1)[1].keys)
    assert torch.equal(Judge(renamed, expected).exact, Judge(model, expected).exact)
    observed = Observer(renamed).run(more, 20, restore(expected, renamed), None, logits=True)
    assert torch.equal(observed, Observer(model).run(more, 20, restore(expected, model), None, logits=True))


def test_a_forward_that_names_no_cache_is_refused() -> None:
    for call in (lambda: capture(as_a(Swallowing), session(4)), lambda: first_layers(as_a(Swallowing), session(4), 1)):
        with pytest.raises(InputError, match=r"'llama' takes no key-value cache .* past_key_values or cache") as caught:
            call()
        assert "\n" not in str(caught.value)


def test_a_forward_that_leaves_the_cache_empty_is_refused() -> None:
    with pytest.raises(InputError, match="'llama' put 0 of 4 tokens into its cache"):
        capture(as_a(Deaf), session(4))
    deaf, cache = as_a(Deaf), restore(capture(model_of("llama"), session(9)), model_of("llama"))
    with pytest.raises(InputError, match="put 0 of 3 tokens") as caught:
        feed(deaf, cache, session(3), 9)
    assert "\n" not in str(caught.value)


def test_no_cache_is_no_cache() -> None:
    model, ids = as_a(Swallowing), session(6)[None]
    assert torch.equal(run(model, ids), run(model_of("llama"), ids))


@pytest.mark.parametrize("name", ACCEPTED)
def test_every_family_fills_its_cache_and_spares_logits(name: str) -> None:
    model, ids = model_of(name), session(40)[None]  # more than a window
    cache: Any = new_cache(model)
    with torch.inference_mode():
        first = run(model, ids[:, :30], cache, last_only=True)
        rest = run(model, ids[:, 30:], cache, attention_mask=open_mask(cache, ids[:, 30:]))
    assert first.shape[1] == (1 if take_logits(model, last_only=True) else 30)
    assert (held_tokens(cache), rest.shape[1]) == (40, 10)


def test_gradients_reach_the_cache() -> None:
    model, cache = model_of("llama"), restore(capture(model_of("llama"), session(5)), model_of("llama"))
    leaf = cache.layers[0].values.requires_grad_()
    (found,) = torch.autograd.grad(run(model, session(3)[None], cache).sum(), [leaf])
    assert found.abs().sum() > 0
