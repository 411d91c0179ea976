"""The integers between a snapshot and its file, seen from both sides: as quantised, and as read back from bytes."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

import torch
from torch import Tensor

from kvcompress.codec.settings import TinyVAESettings
from kvcompress.codec.tinyvae import TinyVAECodec
from kvcompress.format.ans import decode_symbols
from kvcompress.format.container import Encoded
from kvcompress.format.session import read_session
from kvcompress.hf.channels import group_positions
from kvcompress.snapshot import KVSnapshot
from tinyvae.neighbours import CodingPass
from tinyvae.quantize import outside_bin, steps_at


def digest(symbols: Iterable[Tensor]) -> str:
    """Return the sha256 of symbols [T, r] int32, group after group, as little-endian 32-bit integers."""
    found = hashlib.sha256()
    for group in symbols:
        found.update(group.numpy().astype("<i4").tobytes())
    return found.hexdigest()


@torch.inference_mode()
def quantised(codec: TinyVAECodec, snapshot: KVSnapshot, qp: int) -> tuple[list[Tensor], list[Tensor]]:
    """Return what the encoder rounds and what it rounds it to; no bytes are involved.

    Returns:
        For each group symbols [T, r] int32 and latents [T, R] float32.
    """
    symbols, latents = [], []
    for group, layers in enumerate(codec.groups):
        place = group_positions(snapshot, layers)
        qps = codec.qps(group, snapshot.token_ids, qp)[place]
        found, context = codec.latents(snapshot, group)
        latents.append(found)
        symbols.append(codec.vae(group).quantize(found, context, qps)[0])
    return symbols, latents


@torch.inference_mode()
def outside_bins(
    codec: TinyVAECodec, group: int, token_ids: Tensor, qps: Tensor, latents: Tensor, symbols: Tensor
) -> Tensor:
    """Return how far each latent lies outside the bin of its symbol, given the symbols decoded before it.

    One symbol that rounding flips changes what is expected of later tokens and so their symbols, rightly. What an
    encoder answers for is each choice on its own.

    Args:
        codec: The codec.
        group: Group of layers.
        token_ids: [T] int64, all of the session, and all in the group's layers.
        qps: [T] int32 QP of each token.
        latents: [T, R] float32 of the reference.
        symbols: [T, r] int32 that another encoder chose.

    Returns:
        [T, r] float32 in steps; 0 inside, and where nothing is coded.
    """
    vae, out = codec.vae(group), torch.zeros(symbols.shape)
    step, levels = steps_at(vae.config.reference_step, qps), vae.levels(token_ids, qps)

    def keep(phase: CodingPass, predicted: Tensor) -> Tensor:
        rest, chosen = latents[phase.rows, : symbols.shape[1]] - predicted, symbols[phase.rows]
        out[phase.rows] = torch.where(levels[phase.rows] < 0, 0.0, outside_bin(rest, chosen, step[phase.rows]))
        return chosen

    vae.reconstruct(vae.context(token_ids), qps, levels, keep)
    return out


@torch.inference_mode()
def read_back(codec: TinyVAECodec, encoded: Encoded) -> list[Tensor]:
    """Return the symbols [T, r] int32 of each group as the entropy decoder reads them from the file's sections.

    Raises:
        FormatError: A section is damaged.
    """
    token_ids, _, positions = read_session(encoded, codec.preset)
    qp, found = TinyVAESettings.from_json(encoded.settings).qp, []
    for group, layers in enumerate(codec.groups):
        place = positions[layers[0]]
        levels = codec.vae(group).levels(token_ids[place], codec.qps(group, token_ids, qp)[place])
        found.append(torch.from_numpy(decode_symbols(encoded.sections[f"latents.{group}"], levels.numpy(), codec.bank)))
    return found
