"""Symbols to a snapshot: the single path for decoding a file and for reconstructing without one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from kvcompress.codec.group_code import GroupCode
from kvcompress.hf.channels import layer_from_channels
from kvcompress.hf.rope import rope_of
from kvcompress.snapshot import KVSnapshot, LayerKV, Origin

if TYPE_CHECKING:
    from kvcompress.codec.tinyvae import TinyVAECodec


def synthesised(
    codec: TinyVAECodec, token_ids: Tensor, origin: Origin, known: Mapping[int, LayerKV], codes: Sequence[GroupCode]
) -> KVSnapshot:
    """Return the snapshot of decoded symbols.

    Args:
        codec: The codec.
        token_ids: [N] int64.
        origin: Of the session.
        known: Layers that the model recomputed, by index.
        codes: Of each group, lower ones first.
    """
    rope, layers, decoded = rope_of(origin), dict(known), list[tuple[Tensor, Tensor]]()
    for group, code in enumerate(codes):
        vae = codec.vae(group)
        rows = codec.conditioning[group].rows(known, len(token_ids), rope)
        context = vae.context(token_ids, rows, code.places, code.lifts)
        below = codec.lower[group].rows(decoded, code.places, len(token_ids))
        context = vae.below(context, below)
        latents = vae.dequantize(code.symbols, context, code.qps, code.levels)
        decoded.append((code.places, context.ordinary(latents)))
        widths = [codec.shapes[index].channels for index in codec.groups[group]]
        left = code.residual_channels(vae)
        lefts = [None] * len(widths) if left is None else torch.split(left, widths, 1)
        parts = zip(codec.groups[group], vae.synthesise_parts(context, latents, widths), lefts, strict=True)
        for index, part, rest in parts:
            whole = part if rest is None else part + rest
            layers[index] = layer_from_channels(whole, index, codec.shapes[index], code.places, rope, origin.dtype)
    return KVSnapshot(tuple(layers[i] for i in range(len(layers))), token_ids, origin)
