"""A conversation reads each token once, and its cache is the one that a prefill of the whole gives."""

from __future__ import annotations

import types
from typing import Any

import pytest
import torch

from kvcompress.errors import InputError
from kvcompress.hf import capture, restore
from kvcompress.hf import generation as generation_module
from kvcompress.hf.conversation import Conversation, common_prefix, stop_ids, turn_start
from kvcompress.hf.families import new_cache
from kvcompress.hf.generation import feed
from kvcompress.snapshot import KVSnapshot, LayerKV
from tests.codec.conftest import random_sessions, tiny_model
from tests.hf.families import model_of


@pytest.fixture(scope="module")
def model() -> Any:
    return tiny_model()


def close(model: Any, talk: Conversation, ids: list[int]) -> None:
    found, whole = talk.snapshot(ids), capture(model, ids)
    for mine, theirs in zip(found.layers, whole.layers, strict=True):
        assert torch.allclose(mine.keys, theirs.keys, atol=1e-4)
        assert torch.equal(mine.positions, theirs.positions)


def test_turns_are_read_once(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    fed: list[int] = []
    plain = generation_module.feed
    monkeypatch.setattr(
        generation_module, "feed", lambda m, c, ids, at, **more: fed.append(len(ids)) or plain(m, c, ids, at, **more)
    )
    talk, ids = Conversation(model), random_sessions(1, 40)[0].tolist()
    ids += talk.reply(ids, max_new_tokens=5)
    ids += [3, 4, 5]
    ids += talk.reply(ids, max_new_tokens=4)
    assert sum(fed) == len(ids) - 1
    close(model, talk, ids)


def test_a_template_that_writes_earlier_turns_anew_cuts_the_cache_back(model: Any) -> None:
    talk, ids = Conversation(model), random_sessions(1, 40)[0].tolist()
    talk.reply(ids, max_new_tokens=3)
    rewritten = [*ids[:20], 7, *ids[20:]]
    answer = talk.reply(rewritten, max_new_tokens=3)
    assert answer == Conversation(model).reply(rewritten, max_new_tokens=3)
    close(model, talk, [*rewritten, *answer])
    close(model, talk, rewritten[:10])


def test_a_sliding_window_is_begun_again() -> None:
    model = model_of("gemma3")
    talk, ids = Conversation(model), list(range(2, 42))
    talk.reply(ids, max_new_tokens=2)
    rewritten = [*ids[:5], 50, *ids[5:]]
    answer = talk.reply(rewritten, max_new_tokens=2)
    assert answer == Conversation(model).reply(rewritten, max_new_tokens=2)


def test_a_cut_cache_is_that_of_the_first_tokens_pruned_or_not(model: Any) -> None:
    ids = random_sessions(1, 40)[0].tolist()
    whole = capture(model, ids)
    kept = torch.tensor([0, 1, 2, 5, 8, 13, 21, 34])
    layers = [LayerKV(kv.keys[:, kept].clone(), kv.values[:, kept].clone(), kept) for kv in whole.layers]
    for snapshot, held in ((whole, 20), (KVSnapshot(tuple(layers), whole.token_ids, whole.origin), 6)):
        cache, pending, position = turn_start(model, snapshot, restore(snapshot, model), [*ids[:20], 7, 8], 20)
        assert (pending, position) == ([7, 8], 20)
        assert [layer.get_seq_length() for layer in cache.layers] == [held] * len(cache.layers)
        for slot, layer in zip(cache.layers, snapshot.layers, strict=True):
            assert torch.equal(slot.keys[0], layer.keys[:, :held])


def test_a_sliding_window_is_cut_while_it_holds_all_and_else_prefilled_anew() -> None:
    model = model_of("gemma3")
    window = next(int(layer.sliding_window) for layer in new_cache(model).layers if layer.is_sliding)
    for tokens in (window - 1, 2 * window):
        ids = list(range(2, 2 + tokens))
        snapshot = capture(model, ids)
        after = [*ids[:3], 9, 8, 7]
        cache, pending, position = turn_start(model, snapshot, restore(snapshot, model), after, 3)
        assert position == (3 if tokens < window else 0)
        feed(model, cache, torch.tensor(pending), position)
        found, fresh = capture(model, after, cache=cache), capture(model, after)
        for mine, theirs in zip(found.layers, fresh.layers, strict=True):
            assert torch.allclose(mine.keys, theirs.keys, atol=1e-4)
    full = snapshot.origin.layer_kinds.index("full_attention")
    dropped = [
        LayerKV(kv.keys[:, 1:], kv.values[:, 1:], kv.positions[1:]) if at == full else kv
        for at, kv in enumerate(snapshot.layers)
    ]
    pruned = KVSnapshot(tuple(dropped), snapshot.token_ids, snapshot.origin)
    with pytest.raises(InputError, match=r"anew from token 3.*--plain"):
        turn_start(model, pruned, restore(pruned, model), after, 3)


def test_an_answer_ends_at_each_token_that_model_or_tokenizer_name(model: Any) -> None:
    tokenizer = types.SimpleNamespace(eos_token_id=3)
    for stated, wanted in ((None, {3}), (5, {3, 5}), ([5, 6], {3, 5, 6})):
        told = types.SimpleNamespace(generation_config=types.SimpleNamespace(eos_token_id=stated))
        assert stop_ids(told, tokenizer) == wanted  # type: ignore[arg-type]


def test_an_answer_that_is_interrupted_leaves_nothing_behind(model: Any) -> None:
    talk, ids = Conversation(model), random_sessions(1, 40)[0].tolist()
    talk.reply(ids[:20], max_new_tokens=2)

    def stop(token: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        talk.reply(ids, max_new_tokens=5, on_token=stop)
    assert talk.reply(ids, max_new_tokens=3) == Conversation(model).reply(ids, max_new_tokens=3)
    close(model, talk, ids)


def test_nothing_new_is_said_with_no_room(model: Any) -> None:
    talk = Conversation(model)
    assert talk.reply([1, 2, 3], max_new_tokens=0) == []
    close(model, talk, [1, 2, 3])


@pytest.mark.parametrize(
    ("first", "second", "alike"), [([], [], 0), ([1], [], 0), ([1, 2], [1, 3], 1), ([1], [1, 2], 1)]
)
def test_a_common_prefix_is_counted(first: list[int], second: list[int], alike: int) -> None:
    assert common_prefix(first, second) == alike
