"""A conversation reads each token once, and its cache is the one that a prefill of the whole gives."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from kvcompress.hf import capture
from kvcompress.hf import generation as generation_module
from kvcompress.hf.conversation import Conversation, common_prefix
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
