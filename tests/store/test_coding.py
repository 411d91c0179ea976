"""Real caches in segments: the identical bits without loss, and what a quality costs and keeps turn by turn."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaConfig

import kvcompress as kv
from kvcompress.codec.quality import encode_at_quality
from kvcompress.codec.tinyvae import TinyVAECodec
from kvcompress.data.chat_template import Dialogue, layout_ids
from kvcompress.data.next_turn import with_dialogue
from kvcompress.data.sessions import read_sessions, session_token_ids
from kvcompress.errors import InputError, MismatchError
from kvcompress.hf.forward import cache_name
from kvcompress.hf.generation import feed
from kvcompress.metrics.fidelity import fidelity
from kvcompress.snapshot import KVSnapshot
from kvcompress.store.segment import part_of
from kvcompress.store.store import Store
from kvcompress.store.wrapper import peaks_of
from tests.codec.conftest import random_sessions, tiny_model
from tests.hf.chat_templates import tokenizer_of
from tests.hf.families import GROUPED, build
from tests.store.examples import same

TURNS = (96, 130, 131, 224)
EXAMPLES = Path(__file__).parents[2] / "examples" / "sessions.jsonl"


@pytest.fixture(scope="module")
def bundled() -> tuple[Any, Any]:
    return kv.load_model("reference-lm")


@pytest.fixture(scope="module")
def ids(bundled: tuple[Any, Any]) -> torch.Tensor:
    session = next(iter(read_sessions(EXAMPLES)))
    return torch.tensor(session_token_ids(session, bundled[1])[: TURNS[-1] + 64])


@pytest.fixture(scope="module")
def exact(bundled: tuple[Any, Any], ids: torch.Tensor) -> KVSnapshot:
    return kv.capture(bundled[0], ids[: TURNS[-1]])


def test_a_cache_that_grows_by_turns_comes_back_bit_by_bit(store: Store) -> None:
    model, ids = tiny_model(), random_sessions(1, 90)[0]
    session, cache, seen = store.session("talk", create=True), kv.restore(kv.capture(model, ids[:20]), model), 20
    for tokens in (20, 41, 42, 90):
        if tokens > seen:
            feed(model, cache, ids[seen:tokens], seen)
        seen = tokens
        grown = kv.capture(model, ids[:tokens], cache=cache)
        session.append(grown, lossless=True)
        assert same(session.snapshot(), grown)
    resumed = session.resume(model)
    assert torch.equal(resumed.token_ids, ids)
    pairs = zip(cache.layers, resumed.cache.layers, strict=True)
    assert all(torch.equal(a.keys, b.keys) and torch.equal(a.values, b.values) for a, b in pairs)


def test_what_was_decoded_is_never_coded_again(store: Store) -> None:
    model, ids = tiny_model(), random_sessions(1, 80)[0]
    session = store.session("talk", create=True)
    session.append(kv.capture(model, ids[:30]), lossless=True)
    first = session.entry(0).segment
    for tokens in range(35, 81, 5):  # ten hops: saved, resumed, continued, saved again
        resumed = session.resume(model)
        feed(model, resumed.cache, ids[tokens - 5 : tokens], tokens - 5)
        grown = kv.capture(model, ids[:tokens], cache=resumed.cache)
        session.append(grown, lossless=True)
        assert same(session.snapshot(), grown)
    assert [entry.start for entry in session] == [0, *range(30, 80, 5)]
    assert session.turns()[0].segment == first


def test_segments_of_a_learned_codec_are_what_coding_the_cut_cache_gives(
    store: Store, bundled: tuple[Any, Any], exact: KVSnapshot, ids: torch.Tensor
) -> None:
    session = store.session("talk", create=True)
    for tokens in TURNS:
        session.append(part_of(exact, 0, tokens), quality="transparent")
    codec = kv.load_codec()
    assert isinstance(codec, TinyVAECodec)
    found, start = session.snapshot(), 0
    assert found.origin == exact.origin
    for entry, tokens in zip(session, TURNS, strict=True):
        part = session.store.part(entry.segment).encoded
        assert part.codec_fingerprint == codec.fingerprint
        cut = part_of(exact, start, tokens)
        again = codec.decode(encode_at_quality(codec, cut, "transparent", start)) if start else None
        for index, layer in enumerate(found.layers):
            span = slice(start, tokens)
            assert layer.positions[span].tolist() == list(range(start, tokens))
            if again is not None:
                assert torch.equal(layer.keys[:, span], again.layers[index].keys)
        start = tokens
    model = bundled[0]
    caches = (kv.restore(exact, model), kv.restore(found, model))
    report = fidelity(model, *caches, ids[: TURNS[-1]], ids[TURNS[-1] :])
    assert report.kl_nats < codec.promise_of("transparent").kl_nats.bound


def test_a_prefix_at_the_same_quality_is_taken_whatever_its_last_bits(
    store: Store, bundled: tuple[Any, Any], ids: torch.Tensor
) -> None:
    model = bundled[0]
    one, other = store.session("one", create=True), store.session("other", create=True)
    one.append(kv.capture(model, ids[:96]), quality="high")
    other.append(kv.capture(model, ids[:130]), quality="high")
    assert other.turns()[0].segment == one.turns()[0].segment
    third = store.session("third", create=True)
    third.append(kv.capture(model, ids[:130]), quality="usable")
    assert len(third) == 1


def test_tokens_alone_are_computed_again(store: Store) -> None:
    model, ids = tiny_model(), random_sessions(1, 60)[0]
    whole = kv.capture(model, ids)
    session = store.session("talk", create=True)
    session.append_tokens(ids[:20], whole)
    session.append_tokens(ids[:30])
    session.append(whole, lossless=True)
    session.append_tokens(torch.cat([ids, ids[:4]]))
    with pytest.raises(InputError, match="ids alone"):
        session.snapshot()
    found = session.snapshot(model=model)
    assert found.tokens == 64
    for layer, true in zip(found.layers, kv.capture(model, found.token_ids).layers, strict=True):
        assert torch.allclose(layer.keys, true.keys, atol=1e-4)


def test_another_model_is_refused(store: Store) -> None:
    session = store.session("talk", create=True)
    session.append(kv.capture(tiny_model(), [1, 2, 3]), lossless=True)
    with pytest.raises(MismatchError, match="weights"):
        session.resume(tiny_model(1))


# -- a model that saves as it talks


def test_a_model_that_talks_is_remembered_by_the_next_process(bundled: tuple[Any, Any], place: Path) -> None:
    model, tokenizer = bundled
    pieces: list[str] = []
    talk = kv.Session(model, tokenizer, store=place, name="talk", lossless=True)
    answers = [talk.say(text, max_new_tokens=8, on_text=pieces.append) for text in ("Hello!", "How are you?")]
    assert "".join(pieces) == "".join(answers)
    ids = talk.token_ids
    kinds = [entry.kind for entry in talk.stored]
    assert kinds == ["append", "checkpoint"] * 2
    talk.store.close()
    again = kv.Session(model, tokenizer, store=place, name="talk", lossless=True)
    assert again.token_ids == ids
    whole = kv.Session(model, tokenizer, store=place, name="whole", lossless=True)
    for text in ("Hello!", "How are you?"):
        whole.say(text, max_new_tokens=8)
    assert whole.token_ids == ids
    assert again.say("And now?", max_new_tokens=8) == whole.say("And now?", max_new_tokens=8)
    again.rewind(turns=2)
    assert again.say("How are you?", max_new_tokens=8) == answers[1]
    assert all(session.verify().ok for session in again.store)
    assert len(again.stored.turns()[0].segment) == 64
    name = cache_name(model)
    longer = torch.tensor([[*again.token_ids, 5]])
    resumed = again.stored.resume(model, tokenizer)
    assert model.generate(longer, **{name: resumed.cache}, max_new_tokens=2).shape[1] == len(longer[0]) + 2
    again.store.close()


def test_turns_below_the_restore_floor_are_token_ids_alone(bundled: tuple[Any, Any], store: Store) -> None:
    model, tokenizer = bundled
    talk = kv.Session(model, tokenizer, store=store, name="talk", floor=1000)
    talk.say("Hello!", max_new_tokens=4)
    talk.floor = 1
    talk.say("How are you?", max_new_tokens=4)
    assert [entry.kind for entry in talk.stored.turns()] == ["tokens", "append"]
    assert talk.stored.entry(0).context["said"]["why"] == "restore floor"
    again = kv.Session(model, tokenizer, store=store, name="talk", floor=True)
    assert again.token_ids == talk.token_ids
    again.say("And now?", max_new_tokens=4)  # both ways are measured, once
    assert len(store.settings["floors"]) == 1
    assert talk.stored.verify().ok
    with pytest.raises(InputError, match=r"identical bits"):
        kv.Session(model, tokenizer, store=store, name="talk", floor=True, lossless=True)


def test_surprises_get_checkpoints_of_their_own(bundled: tuple[Any, Any], store: Store) -> None:
    model, tokenizer = bundled
    talk = kv.Session(model, tokenizer, store=store, name="talk", lossless=True, surprises=True)
    talk.say("I like apples. I like apples. I like apples. I like apples. zebra I like apples.", max_new_tokens=4)
    said = [entry.context["said"]["why"] for entry in talk.stored if entry.kind == "checkpoint"]
    assert said[-1] == "turn"
    peaks = [3.0] * 20 + [30.0] + [2.5] * 10
    assert peaks_of(torch.tensor(peaks, dtype=torch.float64), 100) == [(120, 30.0)]
    assert peaks_of(torch.tensor([1.0, 99.0]), 0) == []


def test_a_conversation_that_its_tokens_do_not_tell_goes_on_in_a_store(store: Store) -> None:
    tokenizer = tokenizer_of("mistral")  # its system's words move to the last turn of the user
    model = build(LlamaConfig(**{**GROUPED, "vocab_size": len(tokenizer), "max_position_embeddings": 512}))
    said = [("system", "Be brief."), ("user", "Hello?"), ("assistant", "Yes.")]
    messages = [{"role": role, "content": content} for role, content in said]
    ids = layout_ids(tokenizer, Dialogue(tuple(messages)))
    snapshot = with_dialogue(kv.capture(model, ids, tokenizer=tokenizer), tokenizer, Dialogue(tuple(messages)))
    assert snapshot.origin.conversation is not None
    assert part_of(snapshot, 0, 5).origin.conversation is None
    store.session("talk", create=True).append(snapshot, lossless=True)
    for text in ("And now?", "More?"):
        talk = kv.Session(model, tokenizer, store=store, name="talk", lossless=True)
        messages.append({"role": "user", "content": text})
        wanted = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
        answer = talk.say(text, max_new_tokens=4)
        assert talk.told
        assert talk.token_ids[: len(wanted)] == list(wanted)
        messages.append({"role": "assistant", "content": tokenizer.decode(talk.token_ids[len(wanted) :])})
        assert answer in messages[-1]["content"]
