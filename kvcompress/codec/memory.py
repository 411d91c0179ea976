"""Memory that decoding needs, computed before decoding from the file's fields and the codec's shapes.

An upper bound, made of what is held at the same time; `tests/codec/test_memory.py` compares it with what was taken.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

from kvcompress.codec.analysis import OFFSETS
from kvcompress.codec.outliers import OUTLIERS
from kvcompress.codec.settings import TinyVAESettings
from kvcompress.format.ans import largest_choice
from kvcompress.format.container import Encoded
from tinyvae.prior import CONTEXTS, MEAN_BLOCK

if TYPE_CHECKING:
    from kvcompress.codec.tinyvae import TinyVAECodec

KEPT_BYTES = 12
"""Of a symbol until the end: itself, its level, the decoded latent."""

SYMBOL_BYTES = 48
"""Of a symbol while its group is decoded: sorted by level, put back, predicted, dequantised."""

CHANNEL_BYTES = 24
"""Of a channel while its layer is made: expected, with the residual, turned, in the cache's type."""

LOOKED_UP_BYTES = 32
"""Of an entry of the token table while the packed rows of a session are looked up."""

MATRIX_BYTES = 16
"""Of an entry of the matrices to channels, which are unpacked once and kept joined with others."""

TOKEN_BYTES = 400
"""Of a token for its places in the order of decoding and its nearest predecessors."""


def decoding_bytes(codec: TinyVAECodec, encoded: Encoded, held: Sequence[int]) -> int:
    """Return the most memory that decoding takes at a time, beside token ids, positions and the decoded cache.

    Args:
        codec: The codec.
        encoded: The file.
        held: How many tokens each layer holds.

    Raises:
        FormatError: The section of offsets is cut, or a setting is of another type.
    """
    tokens, kept, peak = encoded.tokens, 0, 0
    has_residual = TinyVAESettings.from_json(encoded.settings).residual_qp is not None
    for group, layers in enumerate(codec.groups):
        config, count = codec.vae(group).config, held[layers[0]] if layers[0] < len(held) else 0
        symbols = count * _active_rank(codec, encoded, group)
        residual = count * config.channels if has_residual else 0
        kept += KEPT_BYTES * symbols + 2 * KEPT_BYTES * residual
        kept += MATRIX_BYTES * config.channels * (config.rank + config.prior_width)
        widest = max(codec.shapes[index].channels for index in layers)
        known = codec.conditioning[group].channels(codec.shapes)
        units = config.prior_width + 1
        looked_up = tokens * config.prior_rank * (LOOKED_UP_BYTES + 4 * config.prior_taps)
        carried = 4 * (tokens // MEAN_BLOCK + 1) ** 2 if known else 0
        prior = looked_up + 4 * tokens * (6 * units + (2 + CONTEXTS) * known) + 3 * carried
        predicted = count * (4 * config.predictor_width * 8 if config.predictor_width else 0)
        decoding = SYMBOL_BYTES * max(symbols, residual) + predicted
        making = CHANNEL_BYTES * count * widest + 4 * count * (units + symbols // max(count, 1)) + 4 * residual
        peak = max(peak, prior + decoding + making + TOKEN_BYTES * tokens)
    return kept + peak


def _active_rank(codec: TinyVAECodec, encoded: Encoded, group: int) -> int:
    """Return how many leading latents of a group can have symbols, at most."""
    vae = codec.vae(group)
    if OUTLIERS in encoded.sections:
        return vae.config.rank
    qp = TinyVAESettings.from_json(encoded.settings).qp
    qp += (largest_choice(encoded.sections[OFFSETS]) or 0) if OFFSETS in encoded.sections else 0
    of_tokens = int(vae.token_offset.max()) + int(vae.age_offset.max())
    first = (0, 0) if vae.first_place is None else (int(vae.first_place[0]), max(0, int(vae.first_place[1])))
    return vae.active_rank(torch.tensor([qp + max(of_tokens, first[0])]), torch.tensor([first[1]]))
