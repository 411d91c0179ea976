"""Capture and restore on a CUDA device."""

from __future__ import annotations

import copy

import pytest
import torch

from kvcompress.hf import capture, restore
from kvcompress.hf.families import new_cache
from tests.hf.families import model_of

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="this machine has no CUDA device"),
]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_logits_from_the_restored_cache_are_those_of_the_untouched_one(dtype: torch.dtype) -> None:
    model = copy.deepcopy(model_of("llama")).to("cuda", dtype)
    ids = torch.randint(3, 90, (40,))
    cache = new_cache(model)
    with torch.inference_mode():
        model(ids[None].cuda(), past_key_values=cache)
        restored = restore(capture(model, ids, cache=copy.deepcopy(cache)), model)
        following = torch.randint(3, 90, (1, 5)).cuda()
        exact = model(following, past_key_values=cache).logits
        again = model(following, past_key_values=restored).logits
    assert torch.equal(exact, again)
