"""Greedy paths and sampled branches are those of a plain loop over the model."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from kvcompress.hf import capture, restore
from kvcompress.hf.generation import context_limit
from kvcompress.hf.sampling import sample_continuations
from kvcompress_eval.suite.branches import _sample
from kvcompress_eval.suite.greedy import follow, greedy_path
from tests.hf.families import model_of, session

OPENING = [3, 4]


def predicted(ids: list[int]) -> Tensor:
    """Return the logits [V] after tokens, computed without any cache."""
    with torch.inference_mode():
        return model_of("llama")(input_ids=torch.tensor([ids]), use_cache=False).logits[0, -1].float()  # type: ignore[no-any-return]


def test_a_greedy_path_is_the_most_likely_token_each_time() -> None:
    model, ids = model_of("llama"), session(20)
    cache = restore(capture(model, ids), model)
    path = greedy_path(model, cache, len(ids), OPENING, 8)
    said = [*ids.tolist(), *OPENING]
    for token, margin in zip(path.tokens, path.margins_nats, strict=True):
        best = predicted(said).topk(2)
        assert token == int(best.indices[0])
        assert margin == pytest.approx(float(best.values[0] - best.values[1]), abs=1e-4)
        said.append(token)
    assert len(path.tokens) == 8
    assert follow(model, cache, path).divergence_tokens == 8


def test_a_path_ends_with_the_context() -> None:
    model = model_of("llama")
    limit = context_limit(model)
    assert limit is not None
    ids = session(limit - 3)
    cache = restore(capture(model, ids), model)
    assert len(greedy_path(model, cache, len(ids), OPENING, 8).tokens) == 2
    assert greedy_path(model, cache, len(ids), [1, 2, 3, 4], 8).tokens == ()


def test_branches_are_drawn_from_what_the_model_predicts() -> None:
    model, ids = model_of("llama"), session(20)
    drawn = _sample(model, restore(capture(model, ids), model), len(ids), OPENING, 3, 4, 7)
    generator, rows = torch.Generator().manual_seed(7), [[*ids.tolist(), *OPENING] for _ in range(3)]
    for _ in range(4):
        odds = torch.stack([predicted(row) for row in rows]).double().softmax(-1)
        for row, token in zip(rows, torch.multinomial(odds, 1, generator=generator)[:, 0].tolist(), strict=True):
            row.append(token)
    assert drawn.tolist() == [row[-4:] for row in rows]


def test_continuations_begin_where_the_session_ends() -> None:
    model, ids = model_of("llama"), session(20)
    drawn = sample_continuations(model, capture(model, ids), count=2, tokens=5, seed=3)
    generator, rows = torch.Generator().manual_seed(3), [ids.tolist() for _ in range(2)]
    for _ in range(5):
        odds = torch.stack([predicted(row) for row in rows]).softmax(-1)
        for row, token in zip(rows, torch.multinomial(odds, 1, generator=generator)[:, 0].tolist(), strict=True):
            row.append(token)
    assert drawn.tolist() == [row[-5:] for row in rows]
