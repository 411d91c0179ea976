"""Where frequencies depend on the length of the session, a stored one goes on as `generate` would have."""

from __future__ import annotations

import pytest
import torch
import transformers as hf
from transformers import PreTrainedModel

from kvcompress.errors import InputError
from kvcompress.hf import capture, restore
from kvcompress.hf.call import cache_name
from kvcompress.hf.conversation import Conversation
from kvcompress.hf.generation import generate_from, resume_start
from kvcompress.hf.rope_length import restart_length
from tests.hf.families import GROUPED, build, model_of, session

NEW = 20
ORIGINAL = 64
DYNAMIC = {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 4.0}
LONG = {"rope_type": "longrope", "rope_theta": 1e4, "short_factor": [1.0] * 4, "long_factor": [2.0, 3.0, 4.0, 5.0]}
LONG |= {"original_max_position_embeddings": ORIGINAL}


def dynamic() -> PreTrainedModel:
    return build(hf.LlamaConfig(**{**GROUPED, "max_position_embeddings": ORIGINAL}, rope_parameters=dict(DYNAMIC)))


def longrope() -> PreTrainedModel:
    shape = {**GROUPED, "max_position_embeddings": 4 * ORIGINAL, "original_max_position_embeddings": ORIGINAL}
    return build(hf.Phi3Config(**shape, rope_parameters=dict(LONG)))


def feeds_all_again(model: PreTrainedModel) -> bool:
    """Tell whether `generate` feeds all tokens where it drops its cache; early releases fed the last one alone."""
    cache, ids = hf.DynamicCache(), torch.zeros(1, ORIGINAL + 1, dtype=torch.int64)
    cache.update(torch.zeros(1, 1, ORIGINAL, 1), torch.zeros(1, 1, ORIGINAL, 1), 0)
    steps = {cache_name(model): cache, "next_sequence_length": 1, "attention_mask": torch.ones_like(ids)}
    return bool(model.prepare_inputs_for_generation(ids, **steps)["input_ids"].shape[1] == ids.shape[1])


def generated(model: PreTrainedModel, ids: torch.Tensor) -> list[int]:
    if model.config.model_type == "phi3" and not feeds_all_again(model):
        everything = ids.tolist()
        for _ in range(NEW):  # what it then should have given: frequencies by the length, no cache in the way
            with torch.inference_mode():
                everything.append(int(model(torch.tensor([everything]), use_cache=False).logits[0, -1].argmax()))
        return everything[len(ids) :]
    found: list[int] = model.generate(ids[None], max_new_tokens=NEW, do_sample=False)[0, len(ids) :].tolist()
    return found


@pytest.mark.parametrize("make", [dynamic, longrope])
@pytest.mark.parametrize("stored", [30, 50, 60, 63, 64, 65, 66, 100])
def test_the_tokens_are_those_of_generate(make: object, stored: int) -> None:
    assert callable(make)
    model, ids = make(), session(stored)
    snapshot = capture(model, ids)
    cache = restore(snapshot, model)
    pending, position = resume_start(cache, ids, layer_positions=[kv.positions for kv in snapshot.layers])
    found = generate_from(model, cache, pending, next_position=position, max_new_tokens=NEW)
    assert found == generated(make(), ids)
    again = capture(model, [*ids.tolist(), *found[:-1]], cache=cache)
    assert again.tokens == stored + NEW - 1


@pytest.mark.parametrize("make", [dynamic, longrope])
def test_a_prompt_that_crosses_the_original_context_goes_on_as_generate_does(make: object) -> None:
    assert callable(make)
    model, ids = make(), session(80)
    snapshot = capture(model, ids[:50])
    found = generate_from(model, restore(snapshot, model), ids[50:].tolist(), next_position=50, max_new_tokens=NEW)
    if make is longrope:
        assert found == generated(make(), ids)
    assert len(found) == NEW


def test_a_longer_session_before_leaves_no_trace() -> None:
    model = dynamic()
    capture(model, session(120, seed=5))
    ids = session(70)
    assert generated(model, ids) == generated(dynamic(), ids)
    first, fresh = capture(model, ids).layers[0], capture(dynamic(), ids).layers[0]
    assert torch.equal(first.keys, fresh.keys)


def test_a_conversation_crosses_the_original_context_as_generate_does() -> None:
    model, ids = longrope(), session(60)
    assert Conversation(model).reply(ids.tolist(), max_new_tokens=NEW) == generated(longrope(), ids)


def test_a_cache_of_unknown_tokens_cannot_cross() -> None:
    model, ids = longrope(), session(60)
    cache = hf.DynamicCache(config=model.config)
    with torch.inference_mode():
        model(input_ids=ids[None], past_key_values=cache)
    with pytest.raises(InputError, match=r"beyond 64 tokens .* does not know"):
        generate_from(model, cache, [5], next_position=60, max_new_tokens=NEW)


@pytest.mark.parametrize("make", [dynamic, longrope])
def test_such_a_session_is_run_in_one_step(make: object) -> None:
    assert callable(make)
    with pytest.raises(InputError, match="depends on the length"):
        capture(make(), session(80), chunk_tokens=16)
    assert capture(make(), session(40), chunk_tokens=16).tokens == 40


def test_steady_families_are_never_restarted() -> None:
    assert restart_length(longrope()) == ORIGINAL
    assert all(restart_length(model_of(name)) is None for name in ("llama", "yarn", "phi3", "gpt2"))
