"""A digest of the constants, besides a codec's weights, that decide how bits are read.

A file says which codec made it, by the codec's fingerprint over geometry, weights and tables. The order in which tokens
are decoded, the classes of age, the grid of levels and what predictions look at are in the code. Were one of them to
change, the same weights would read the same bits as something else. So they are part of the fingerprint: nothing is
added to it while they are what they were in the first version, and their digest is where they are not.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator

import torch

from tinyvae import neighbours, offsets, predictor, prior, quantize, tables, transform, weights

FIRST = "9c0e84a6a7d23d468fc34ca7fa70c150e57ce94f70a89dfb1f376d61713153fb"
"""Digest of the first version, whose codecs and files stay readable."""

_TRIED_IDS = torch.tensor([(7 * k * k + k // 5) % 23 for k in range(203)])
"""A session whose ids and pairs of ids come again at many distances."""

_LONGEST_AGE = 5000


def bitstream_digest() -> str:
    """Return the digest (sha256, hexadecimal) of how this code reads bits: integers only, so the same everywhere."""
    digest = hashlib.sha256(json.dumps(_constants(), sort_keys=True).encode())
    for part in _behaviour():
        digest.update(part.to(torch.int64).contiguous().numpy().astype("<i8").tobytes())
    return digest.hexdigest()


def bitstream_marker() -> str | None:
    """Return what a codec's fingerprint needs to name of it: nothing for the first version, else the digest."""
    found = bitstream_digest()
    return None if found == FIRST else found


def _constants() -> dict[str, object]:
    return {
        "levels": (quantize.LEVELS, quantize.LEVELS_PER_OCTAVE, quantize.LOWEST_SCALE_LOG2),
        "tables": (tables.TABLE_TOTAL, [tables.table_length(level) for level in range(quantize.LEVELS)]),
        "offsets": (offsets.AGES, offsets.PRIOR_ONLY),
        "phases": (neighbours.CODING_PASSES, neighbours.SOURCES, neighbours.MATCHES),
        "prior": (prior.BLOCK_TAPS, prior.REACHES_TOKENS, prior.PAST_DIRECTIONS, prior.BELOW_LAGS),
        "predictor": (predictor.SOURCE_LATENTS, predictor.EXPECTED_LATENTS, predictor.PREDICTED_LATENTS),
        "told": (predictor.LOWEST_TOLD, predictor.HIGHEST_TOLD),
        "sharp": (prior.SHARP_COLUMNS, prior.SHARP_UNITS, transform.SHARP_LATENTS),
        "weights": sorted(weights.REACHES),
    }


def _behaviour() -> Iterator[torch.Tensor]:
    """Yield what functions make of fixed input: the order of decoding, where each token looks, classes of age."""
    for coding_pass in neighbours.coding_passes(_TRIED_IDS):
        yield from (coding_pass.rows, coding_pass.sources, coding_pass.matches)
    yield offsets.age_classes(_LONGEST_AGE)
