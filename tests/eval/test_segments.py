"""Bytes of sessions in segments: every one is counted once, by section and by cause."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import kvcompress as kv
from eval.segments.causes import bits_at, sections_of
from eval.segments.run import AFTER_TOKENS, Bench, Row, Settings
from eval.segments.table import tables
from kvcompress.codec.tinyvae import TinyVAECodec
from kvcompress.data.sessions import read_sessions, session_token_ids
from kvcompress.format.container import to_bytes
from kvcompress.hub.bundled import DEFAULT_CODEC

TOKENS = 192
EXAMPLES = Path(__file__).parents[2] / "examples" / "sessions.jsonl"


@pytest.fixture(scope="module")
def ids() -> torch.Tensor:
    session = next(iter(read_sessions(EXAMPLES)))
    return torch.tensor(session_token_ids(session, kv.load_model("reference-lm")[1])[: TOKENS + AFTER_TOKENS])


@pytest.fixture(scope="module")
def rows(ids: torch.Tensor) -> list[Row]:
    settings = Settings(TOKENS, (96,), ("high", "usable"), ends=2)
    return list(Bench(kv.load_model("reference-lm")[0], DEFAULT_CODEC, settings).rows("s", ids))


def test_every_byte_has_one_section_and_one_cause(rows: list[Row]) -> None:
    assert [(row.quality, row.segment_tokens) for row in rows] == [
        (quality, tokens) for quality in ("high", "usable") for tokens in (TOKENS, 96)
    ]
    for once, cut in zip(rows[::2], rows[1::2], strict=True):
        assert once.causes is None
        assert cut.causes is not None
        assert sum(cut.sections.values()) == cut.size_bytes
        assert abs(cut.causes.total - (cut.size_bytes - once.size_bytes)) < 1e-6
        assert cut.segments == 2
        assert [loss.tokens for loss in cut.losses] == [96, TOKENS]


def test_steps_that_are_a_file_s_own_give_its_bits(ids: torch.Tensor) -> None:
    exact, codec = kv.capture(kv.load_model("reference-lm")[0], ids[:TOKENS]), kv.load_codec()
    assert isinstance(codec, TinyVAECodec)
    qp = codec.qp_of("high")
    bits = bits_at(codec, exact, [codec.qps(0, exact.token_ids, qp)], qp)
    assert bits == pytest.approx(sum(codec.token_bits(exact, qp)))
    assert codec.qps(0, exact.token_ids, qp).tolist() != [qp] * TOKENS, "the codec's own steps are back"
    encoded = codec.encode(exact, qp)
    assert sum(sections_of([(encoded, len(to_bytes(encoded)))]).values()) == len(to_bytes(encoded))


def test_tables_show_bytes_causes_and_bounds(rows: list[Row]) -> None:
    text = tables(rows)
    assert "| high | 192 (at once) |" in text
    assert text.count("| usable | 96 |") == 3
    assert "of 0.08" in text
