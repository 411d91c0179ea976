"""A resumed session goes on exactly as the uninterrupted one."""

from __future__ import annotations

import pytest
import torch

from kvcompress.errors import InputError
from kvcompress.hf import capture, restore
from kvcompress.hf.generation import TextStream, generate_from, resume_start
from tests.fidelity.models import CONTEXT, WINDOW, build, greedy, keep, prefill, tokens


@pytest.mark.parametrize("prompt", [0, 1, 9])
@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_resumed_greedy_text_equals_the_uninterrupted_run(family: str, prompt: int) -> None:
    model, ids = build(family), tokens(40 + prompt)
    cache = prefill(model, ids[:40])
    pending, position = resume_start(cache, ids[:40], ids[40:].tolist())
    assert position == (40 if prompt else 39)
    assert generate_from(model, cache, pending, next_position=position, max_new_tokens=20) == greedy(model, ids, 20)


@pytest.mark.parametrize(("session", "prompt"), [(40, 3), (WINDOW - 1, 0), (5, 0), (1, 0)])
def test_sliding_windows_resume_exactly(session: int, prompt: int) -> None:
    model, ids = build("mistral"), tokens(session + prompt)
    cache = prefill(model, ids[:session])
    pending, position = resume_start(cache, ids[:session], ids[session:].tolist())
    assert generate_from(model, cache, pending, next_position=position, max_new_tokens=20) == greedy(model, ids, 20)


@pytest.mark.parametrize("session", [WINDOW, 40])
def test_a_full_sliding_window_is_refused_without_a_prompt_and_stays_whole(session: int) -> None:
    model, ids = build("mistral"), tokens(session)
    cache = prefill(model, ids)
    with pytest.raises(InputError, match="prompt"):
        resume_start(cache, ids)
    pending, position = resume_start(cache, ids, [7])
    expected = greedy(model, torch.cat([ids, torch.tensor([7])]), 9)
    assert generate_from(model, cache, pending, next_position=position, max_new_tokens=9) == expected


@pytest.mark.parametrize("prompt", [[], [3, 4]])
@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_a_captured_and_restored_session_resumes_as_if_uninterrupted(family: str, prompt: list[int]) -> None:
    model, ids = build(family).float(), tokens(50)
    snapshot = capture(model, ids)
    cache = restore(snapshot, model)
    positions = [layer.positions for layer in snapshot.layers]
    pending, position = resume_start(cache, snapshot.token_ids, prompt, layer_positions=positions)
    new_ids = generate_from(model, cache, pending, next_position=position, max_new_tokens=16)
    assert new_ids == greedy(model, torch.cat([ids, torch.tensor(prompt, dtype=torch.int64)]), 16)


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_a_pruned_cache_that_lost_its_last_token_gets_it_back_by_feeding_it(family: str) -> None:
    model, ids = build(family), tokens(30)
    with_last, without = torch.tensor([0, 4, 5, 29]), torch.tensor([0, 4, 5])
    runs = []
    for kept in (with_last, without):
        cache = keep(prefill(model, ids), [kept, kept])
        pending, position = resume_start(cache, ids, layer_positions=[kept, kept])
        assert (pending, position) == ([int(ids[-1])], 29)
        assert [layer.keys.shape[-2] for layer in cache.layers] == [3, 3]
        runs.append(generate_from(model, cache, pending, next_position=position, max_new_tokens=12))
    assert runs[0] == runs[1]


def test_generation_can_be_interrupted_anywhere() -> None:
    model, ids = build("llama"), tokens(30)
    cache = prefill(model, ids[:-1])
    first = generate_from(model, cache, [int(ids[-1])], next_position=29, max_new_tokens=8)
    second = generate_from(model, cache, first[-1:], next_position=37, max_new_tokens=8)
    assert first + second == greedy(model, ids, 16)


def test_generation_ends_with_a_stop_token_and_reports_each_token_before_it_once() -> None:
    model, ids = build("llama"), tokens(30)
    expected = greedy(model, ids, 12)
    stop, seen = expected[5], list[int]()
    cache = prefill(model, ids[:-1])
    new_ids = generate_from(
        model, cache, [int(ids[-1])], next_position=29, max_new_tokens=12, stop_ids=[stop], on_token=seen.append
    )
    assert new_ids == expected[: expected.index(stop) + 1]
    assert seen == new_ids[:-1]


def test_sampling_depends_on_its_seed_alone() -> None:
    model, ids = build("llama"), tokens(30)

    def sample(seed: int, temperature: float) -> list[int]:
        return generate_from(
            model,
            prefill(model, ids[:-1]),
            [int(ids[-1])],
            next_position=29,
            max_new_tokens=24,
            temperature=temperature,
            seed=seed,
        )

    assert sample(1, 2.0) == sample(1, 2.0)
    assert sample(1, 2.0) != sample(2, 2.0)
    assert sample(1, 1e-6) == greedy(model, ids, 24)


def test_what_cannot_be_resumed_is_refused() -> None:
    model, ids = build("llama"), tokens(30)
    cache = prefill(model, ids)
    with pytest.raises(InputError, match="pending"):
        generate_from(model, cache, [], next_position=30, max_new_tokens=4)
    with pytest.raises(InputError, match="negative"):
        generate_from(model, cache, [1], next_position=30, max_new_tokens=-1)
    with pytest.raises(InputError, match="exceed the model's context"):
        generate_from(model, cache, [1], next_position=30, max_new_tokens=CONTEXT - 29)
    with pytest.raises(InputError, match="empty session"):
        resume_start(cache, ids[:0])
    assert cache.get_seq_length() == 30
    assert generate_from(model, cache, [1], next_position=30, max_new_tokens=0) == []


class Bytes:
    """A tokenizer whose tokens are bytes, so that a character may need four of them."""

    def decode(self, ids: list[int]) -> str:
        return bytes(ids).decode("utf-8", "replace")


@pytest.mark.parametrize("context", [b"", "the gate \u00fc".encode()])
def test_streamed_text_is_whole_characters_and_adds_up(context: bytes) -> None:
    text, pieces = "na\u00efve \u65e5\u672c \U0001f511 caf\u00e9", list[str]()
    stream = TextStream(Bytes(), pieces.append, list(context))
    for byte in text.encode():
        stream(byte)
    stream.close()
    assert "".join(pieces) == text
    assert all("\ufffd" not in piece for piece in pieces)


def test_a_stream_cut_within_a_character_shows_what_it_has_when_closed() -> None:
    pieces: list[str] = []
    stream = TextStream(Bytes(), pieces.append)
    for byte in b"ab\xf0\x9f":
        stream(byte)
    assert "".join(pieces) == "ab"
    stream.close()
    assert "".join(pieces) == "ab\ufffd"
