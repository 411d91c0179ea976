"""A part of a session is restored and the rest computed; short turns are read again where that is sooner."""

from __future__ import annotations

from dataclasses import asdict, replace

import pytest
import torch

import kvcompress as kv
from kvcompress.errors import InputError, MismatchError
from kvcompress.snapshot import KVSnapshot, LayerKV
from kvcompress.store.floor import FLOORS, Floor, append_above, floor_of
from kvcompress.store.partial import restore_part
from kvcompress.store.segment import part_of
from kvcompress.store.session import StoredSession
from kvcompress.store.store import Store
from tests.codec.conftest import random_sessions, tiny_model

MODEL = tiny_model()
IDS = random_sessions(1, 60)[0]
WHOLE = kv.capture(MODEL, IDS)


def marked(snapshot: KVSnapshot) -> KVSnapshot:
    """A cache that differs a little from what the model computes, so that what comes from the store can be told."""
    layers = tuple(LayerKV(one.keys + 1e-3, one.values + 1e-3, one.positions) for one in snapshot.layers)
    return replace(snapshot, layers=layers)


@pytest.fixture
def session(store: Store) -> StoredSession:
    found, cache = store.session("talk", create=True), marked(WHOLE)
    for tokens in (15, 32, 60):
        found.append(part_of(cache, 0, tokens), lossless=True)
    return found


@pytest.mark.parametrize("span", [(0, 20), (10, 40), (33, 60), (40, None), (0, None)])
def test_a_span_of_tokens_comes_from_the_store_and_the_rest_from_the_model(
    session: StoredSession, span: tuple[int, int | None]
) -> None:
    found, cache = restore_part(session, MODEL, tokens=span), marked(WHOLE)
    start, end = span[0], span[1] or 60
    assert found.restored_share == pytest.approx((end - start) / 60)
    assert found.snapshot.tokens == 60
    for stored, computed, layer in zip(cache.layers, WHOLE.layers, found.snapshot.layers, strict=True):
        assert torch.equal(layer.keys[:, start:end], stored.keys[:, start:end])
        assert torch.equal(layer.positions, stored.positions)
        assert torch.allclose(layer.keys[:, :start], computed.keys[:, :start], atol=1e-5)
        assert torch.allclose(layer.keys, computed.keys, atol=0.05)
    assert (found.decoded_bytes > 0) is True


def test_segments_outside_are_not_decoded(session: StoredSession) -> None:
    sizes = [restore_part(session, MODEL, tokens=span).decoded_bytes for span in ((0, 15), (15, 32), (0, 60))]
    assert sizes[0] + sizes[1] < sizes[2]


@pytest.mark.parametrize("span", [(1, None), (0, 1), (0, None)])
def test_a_span_of_layers_comes_from_the_store_and_the_rest_from_the_model(
    session: StoredSession, span: tuple[int, int | None]
) -> None:
    found, cache = restore_part(session, MODEL, layers=span), marked(WHOLE)
    count = len(WHOLE.layers)
    start, end = span[0], span[1] or count
    assert found.to_json()["restored_share"] == pytest.approx((end - start) / count)
    for index, layer in enumerate(found.snapshot.layers):
        expected = cache if start <= index < end else WHOLE
        assert torch.allclose(layer.keys, expected.layers[index].keys, atol=1e-6)


def test_what_is_stored_as_ids_counts_as_computed(session: StoredSession) -> None:
    session.append_tokens(torch.cat([IDS, IDS[:20]]))
    assert restore_part(session, MODEL, tokens=(0, None)).restored_share == pytest.approx(60 / 80)
    assert restore_part(session, MODEL, layers=(0, None)).restored_share == pytest.approx(60 / 80)


def test_spans_that_are_none_and_other_models_are_refused(session: StoredSession) -> None:
    for tokens, layers in ((None, None), ((0, 1), (0, 1)), ((5, 5), None), ((0, 61), None), (None, (0, 99))):
        with pytest.raises(InputError):
            restore_part(session, MODEL, tokens=tokens, layers=layers)
    with pytest.raises(MismatchError):
        restore_part(session, tiny_model(1), tokens=(0, 5))


# -- the floor


def test_what_is_read_sooner_than_restored_is_stored_as_ids_and_the_log_says_so(store: Store) -> None:
    session = store.session("talk", create=True)
    session.append(part_of(WHOLE, 0, 40), lossless=True)
    floor = Floor(read_seconds=0.01, read_token_seconds=0.001, restore_seconds=0.02, restore_token_seconds=0.0001)
    assert floor.is_above(11)
    assert not floor.is_above(12)
    entry = append_above(session, part_of(WHOLE, 0, 51), floor)
    assert entry.kind == "tokens"
    assert entry.context["said"] == {"why": "restore floor", "read_seconds": 0.021, "restore_seconds": 0.0211}
    with pytest.raises(InputError, match="codec"):  # longer ones are coded, and no codec is of this model
        append_above(session, WHOLE, Floor.at(3))
    assert append_above(session, WHOLE, Floor.at(10)).kind == "tokens"
    assert append_above(session, WHOLE, Floor.at(10)).number == 2
    found = session.snapshot(model=MODEL)
    for layer, true in zip(found.layers, WHOLE.layers, strict=True):
        assert torch.allclose(layer.keys, true.keys, atol=1e-4)


def test_the_floor_is_measured_once_for_a_model(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    model, _ = kv.load_model("reference-lm")
    snapshot = kv.capture(model, list(range(3, 40)))
    first = floor_of(store, model, snapshot)
    assert first.restoring(30) > 0
    assert first.reading(30) > 0
    monkeypatch.setattr("kvcompress.store.floor.measured", lambda *_: pytest.fail("measured twice"))
    assert floor_of(store, model, snapshot) == first
    assert asdict(first) in store.settings[FLOORS].values()
    with Store(store.path) as again:
        assert floor_of(again, model, snapshot) == first
