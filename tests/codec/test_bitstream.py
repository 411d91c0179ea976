"""What decides how bits are read is in the fingerprint: code that reads them in another way refuses the file."""

from __future__ import annotations

import copy
from types import ModuleType
from typing import Any

import pytest
import torch

from kvcompress.codec.tinyvae import TinyVAECodec
from kvcompress.errors import MismatchError
from kvcompress.snapshot import KVSnapshot
from tinyvae import neighbours, offsets, predictor, prior, quantize, tables, transform, weights
from tinyvae.bitstream import FIRST, bitstream_digest, bitstream_marker

CHANGES: list[tuple[ModuleType, str, Any]] = [
    (neighbours, "SPANS", (slice(0, None, 4), slice(1, None, 2), slice(2, None, 4))),
    (neighbours, "MATCHES", 4),
    (neighbours, "_nearest", lambda keys, known, rows: torch.full((len(rows),), len(keys)).numpy()),
    (offsets, "_EDGES", offsets._EDGES + 1),
    (offsets, "AGES", 25),
    (offsets, "PRIOR_ONLY", -639),
    (quantize, "LEVELS", 161),
    (quantize, "LEVELS_PER_OCTAVE", 8),
    (quantize, "LOWEST_SCALE_LOG2", -3.0),
    (tables, "TABLE_TOTAL", 1 << 15),
    (tables, "table_length", lambda level: 2 * tables.largest_symbol(level) + 4),
    (prior, "BLOCK_TAPS", 7),
    (prior, "REACHES_TOKENS", (4, 33)),
    (prior, "PAST_DIRECTIONS", 63),
    (prior, "BELOW_LAGS", 3),
    (prior, "SHARP_COLUMNS", 17),
    (prior, "SHARP_UNITS", 33),
    (transform, "SHARP_LATENTS", 65),
    (predictor, "SOURCE_LATENTS", 47),
    (predictor, "EXPECTED_LATENTS", 97),
    (predictor, "PREDICTED_LATENTS", 193),
    (predictor, "LOWEST_TOLD", -49),
    (predictor, "HIGHEST_TOLD", 121),
    (weights, "REACHES", {3: (1.0,), **weights.REACHES}),
]


def test_the_first_version_is_what_it_was() -> None:
    assert bitstream_digest() == FIRST
    assert bitstream_marker() is None


@pytest.mark.parametrize(("module", "name", "value"), CHANGES, ids=[name for _, name, _ in CHANGES])
def test_whatever_reads_bits_in_another_way_is_another_codec(
    codec: TinyVAECodec,
    snapshot: KVSnapshot,
    monkeypatch: pytest.MonkeyPatch,
    module: ModuleType,
    name: str,
    value: Any,
) -> None:
    encoded = codec.encode(snapshot, 60)
    monkeypatch.setattr(module, name, value)
    changed = copy.deepcopy(codec)
    changed._fingerprint = None
    assert changed.fingerprint != codec.fingerprint
    with pytest.raises(MismatchError, match="codec"):
        changed.decode(encoded)
