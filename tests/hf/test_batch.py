"""Sessions in a batch go on as each would alone, whatever was dropped of them."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from kvcompress.errors import InputError
from kvcompress.hf import capture, restore
from kvcompress.hf.batch import feed_batch, generate_batch, restore_batch
from kvcompress.hf.generation import feed, generate_from
from kvcompress.prune.constraints import drop
from kvcompress.snapshot import KVSnapshot, LayerKV
from tests.hf.families import model_of, session

FAMILIES = ("llama", "gpt2", "opt", "gpt_neox", "phi3_partial", "qwen3")


def sessions(model: Any) -> list[KVSnapshot]:
    """Return a whole session, one with half of its tokens dropped, and a short one."""
    found = [capture(model, session(tokens, seed=tokens)) for tokens in (24, 40, 7)]
    kept = torch.arange(40) % 2 == 0
    return [found[0], drop(found[1], kept), found[2]]


@pytest.mark.parametrize("family", FAMILIES)
def test_each_session_of_a_batch_predicts_as_it_does_alone(family: str) -> None:
    model = model_of(family)
    snapshots = sessions(model)
    fed = [session(3, seed=5).tolist(), session(1, seed=6).tolist(), session(4, seed=7).tolist()]
    batch = restore_batch(snapshots, model)
    for _ in range(2):  # the second time behind what was fed the first time
        together = feed_batch(model, batch, fed)
    for row, snapshot in enumerate(snapshots):
        cache, at = restore(snapshot, model), snapshot.origin.next_position
        feed(model, cache, torch.tensor(fed[row]), at)
        alone = feed(model, cache, torch.tensor(fed[row]), at + len(fed[row]))[-1]
        assert torch.allclose(together[row], alone, atol=1e-4 * float(alone.abs().max()))
    assert batch.next_positions == [24 + 6, 40 + 2, 7 + 8]


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_a_batch_generates_what_each_session_would(family: str) -> None:
    model = model_of(family)
    snapshots = sessions(model)
    pending = [[5], [6, 7], [8]]
    together = generate_batch(model, restore_batch(snapshots, model), pending, max_new_tokens=6)
    for row, snapshot in enumerate(snapshots):
        alone = generate_from(
            model,
            restore(snapshot, model),
            pending[row],
            next_position=snapshot.origin.next_position,
            max_new_tokens=6,
        )
        assert together[row] == alone
    stop = together[0][1]
    stopped = generate_batch(model, restore_batch(snapshots, model), pending, max_new_tokens=6, stop_ids=[stop])
    assert stopped[0] == together[0][: together[0].index(stop) + 1]


def test_the_kept_tokens_stand_where_they_stood() -> None:
    """Positions counted from the cache's length, which transformers would take by itself, give other predictions."""
    model = model_of("gpt2")
    snapshot = sessions(model)[1]
    right = feed_batch(model, restore_batch([snapshot], model), [[5]])
    batch = restore_batch([snapshot], model)
    batch.next_positions = [20]
    assert not torch.allclose(right, feed_batch(model, batch, [[5]]), atol=1e-2)


def test_what_cannot_be_padded_is_refused() -> None:
    model = model_of("llama")
    whole = capture(model, session(12))
    first, second = whole.layers
    uneven = (first, LayerKV(second.keys[:, 2:], second.values[:, 2:], second.positions[2:]))
    for snapshots, told in (
        ([], "empty batch"),
        ([KVSnapshot(uneven, whole.token_ids, whole.origin)], "hold from 10 to 12"),
        ([capture(model_of("mistral_window"), session(12))], "sliding window"),
    ):
        with pytest.raises(InputError, match=told):
            restore_batch(snapshots, model)
    with pytest.raises(InputError, match="do not feed"):
        feed_batch(model, restore_batch([whole], model), [[1], [2]])
    with pytest.raises(InputError, match="context"):
        generate_batch(model, restore_batch([whole], model), [[1]], max_new_tokens=1000)
