"""Segments that continue others: coded for the ages that their tokens will have, and still good right after."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from statistics import fmean
from typing import Any

import pytest
import torch

import kvcompress as kv
from kvcompress.api.codecs import LoadedCodecs
from kvcompress.codec.promise import LATENTS, QUALITIES, RESIDUAL, Setting
from kvcompress.codec.quality import continued, encode_at_quality
from kvcompress.codec.tinyvae import TinyVAECodec
from kvcompress.data.sessions import read_sessions, session_token_ids
from kvcompress.format.container import to_bytes
from kvcompress.format.positions import pack_positions
from kvcompress.metrics.fidelity import fidelity
from kvcompress.snapshot import KVSnapshot
from kvcompress.store.assembly import assemble
from kvcompress.store.objects import content_digest
from kvcompress.store.segment import Coding, encode_part, part_of, read_part

TOKENS, LENGTH, AFTER = 384, 64, 64
EXAMPLES = Path(__file__).parents[2] / "examples" / "sessions.jsonl"


@pytest.fixture(scope="module")
def bundled() -> tuple[Any, Any]:
    return kv.load_model("reference-lm")


@pytest.fixture(scope="module")
def codec() -> TinyVAECodec:
    found = kv.load_codec()
    assert isinstance(found, TinyVAECodec)
    return found


@pytest.fixture(scope="module")
def ids(bundled: tuple[Any, Any]) -> torch.Tensor:
    session = list(read_sessions(EXAMPLES))[1]
    return torch.tensor(session_token_ids(session, bundled[1])[: TOKENS + AFTER])


@pytest.fixture(scope="module")
def exact(bundled: tuple[Any, Any], ids: torch.Tensor) -> KVSnapshot:
    return kv.capture(bundled[0], ids[:TOKENS])


def segments(exact: KVSnapshot, quality: str) -> list[bytes]:
    """A session in segments of one length."""
    found, parent, codecs = list[bytes](), "", LoadedCodecs()
    for end in range(LENGTH, exact.tokens + 1, LENGTH):
        found.append(encode_part(part_of(exact, 0, end), end - LENGTH, parent, Coding(quality), codecs))
        parent = content_digest(found[-1])
    return found


@pytest.mark.parametrize("quality", ["transparent", "high"])
def test_a_word_is_kept_right_after_every_append(
    bundled: tuple[Any, Any], codec: TinyVAECodec, exact: KVSnapshot, ids: torch.Tensor, quality: str
) -> None:
    """On average, as at once: a bound is one of the mean."""
    model, codecs, bound = bundled[0], LoadedCodecs(), codec.promise_of(quality).kl_nats.bound
    parts, lost = [read_part(data) for data in segments(exact, quality)], list[float]()
    for count in range(2, len(parts) + 1):
        end = count * LENGTH
        at_once = codec.decode(codec.encode(part_of(exact, 0, end), quality=quality))
        for found in (assemble(parts[:count], codecs), at_once):
            caches = (kv.restore(part_of(exact, 0, end), model), kv.restore(found, model))
            lost.append(fidelity(model, *caches, ids[:end], ids[end : end + AFTER]).kl_nats)
    ours, theirs = fmean(lost[::2]), fmean(lost[1::2])
    assert ours < bound
    assert ours < 1.5 * theirs


def test_only_what_continues_is_coded_coarser(codec: TinyVAECodec, exact: KVSnapshot) -> None:
    parts = [read_part(data) for data in segments(exact, "transparent")]
    word = codec.promise_of("transparent").qp
    rates = [part.encoded.settings["rate"] for part in parts]
    assert rates[0] == word
    assert rates[1:] == sorted(rates[1:], reverse=True), "the longer the past, the less the newest tokens stand out"
    assert max(rates[1:]) < rates[0]
    assert [part.encoded.settings.get("quality") for part in parts] == ["transparent"] * len(parts)


def test_segments_take_less_than_at_the_word_s_own_rate(codec: TinyVAECodec, exact: KVSnapshot) -> None:
    cut, word = part_of(exact, TOKENS - LENGTH), codec.promise_of("high")
    assert word.qp is not None
    ours = to_bytes(encode_at_quality(codec, cut, "high", TOKENS - LENGTH))
    assert len(ours) < 0.75 * len(to_bytes(codec.encode(cut, word.qp)))


def test_a_setting_is_moved_whole_and_never_below_the_coarsest(codec: TinyVAECodec) -> None:
    moved = continued(codec, Setting(RESIDUAL, 100, 112), 512, 544)
    assert moved.qp is not None
    assert moved.kind == RESIDUAL
    assert 100 - moved.qp == 112 - (moved.residual_qp or 0) > 0
    assert continued(codec, Setting(LATENTS, 3), 512, 544) == Setting(LATENTS, 0)
    for same in (Setting(LATENTS, 63), Setting("int8"), Setting("lossless")):
        assert continued(codec, same, 0, 544) == same
    assert continued(codec, Setting("int8"), 512, 544) == Setting("int8")


def test_ordinary_turns_are_not_taken_for_unlike_at_coarse_steps(exact: KVSnapshot) -> None:
    for data in segments(exact, "usable"):
        settings = read_part(data).encoded.settings
        assert not settings.get("unlike"), settings["segment"]


def test_a_turn_of_noise_is_stored_finer(bundled: tuple[Any, Any], codec: TinyVAECodec, ids: torch.Tensor) -> None:
    noise = torch.randint(8, len(bundled[1]), (128,), generator=torch.Generator().manual_seed(1))
    whole = kv.capture(bundled[0], torch.cat([ids[:128], noise]))
    for quality in QUALITIES:
        encoded = encode_at_quality(codec, part_of(whole, 128), quality, 128)
        assert encoded.settings.get("unlike"), quality


def test_positions_are_listed_only_where_a_layer_lacks_a_token(exact: KVSnapshot) -> None:
    data = segments(exact, "high")[1]
    part, codecs = read_part(data), LoadedCodecs()
    assert set(part.encoded.sections) == {"tokens", "origin", "latents.0"}
    first = read_part(segments(exact, "high")[0])
    listed = pack_positions([list(range(LENGTH))] * len(exact.layers))
    earlier = replace(part.encoded, sections={**part.encoded.sections, "positions": listed})
    as_before = read_part(to_bytes(earlier))
    found, before = (assemble([first, one], codecs) for one in (part, as_before))
    for ours, theirs in zip(found.layers, before.layers, strict=True):
        assert torch.equal(ours.keys, theirs.keys)
        assert torch.equal(ours.positions, theirs.positions)
