"""The integers between a snapshot and its file, seen from both sides: as quantised, and as read back from bytes."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

import torch
from torch import Tensor

from kvcompress.channels import group_positions, to_channels
from kvcompress.codec import TinyVAECodec, rope_of
from kvcompress.container import Encoded
from kvcompress.entropy import decode_symbols
from kvcompress.sections import read_session
from kvcompress.snapshot import KVSnapshot
from tinyvae.quantize import step_at


def digest(symbols: Iterable[Tensor]) -> str:
    """Return the sha256 of symbols [T, r] int32, group after group, as little-endian 32-bit integers."""
    found = hashlib.sha256()
    for group in symbols:
        found.update(group.numpy().astype("<i4").tobytes())
    return found.hexdigest()


@torch.inference_mode()
def quantised(codec: TinyVAECodec, snapshot: KVSnapshot, rate: int) -> tuple[list[Tensor], list[Tensor]]:
    """Return what the encoder rounds and what it rounds it to; no bytes are involved.

    Returns:
        For each group symbols [T, r] int32 and latents [T, r] float32 in steps.
    """
    symbols, latents = [], []
    for group, layers in enumerate(codec.groups):
        vae, place = codec.vae(group), group_positions(snapshot, layers)
        expected = vae.prior(snapshot.token_ids)[place]
        exact = vae.analyse(expected, to_channels(snapshot, layers, rope_of(snapshot.origin)))
        symbols.append(vae.quantize(exact, snapshot.token_ids[place], rate)[0])
        latents.append(exact[:, : vae.active_rank(rate)] / step_at(vae.config.reference_step, rate))
    return symbols, latents


@torch.inference_mode()
def read_back(codec: TinyVAECodec, encoded: Encoded) -> list[Tensor]:
    """Return the symbols [T, r] int32 of each group as the entropy decoder reads them from the file's sections.

    Raises:
        FormatError: A section is damaged.
    """
    token_ids, _, positions = read_session(encoded)
    rate, found = int(encoded.settings["rate"]), []
    for group, layers in enumerate(codec.groups):
        vae = codec.vae(group)
        levels = vae.levels(token_ids[positions[layers[0]]], rate)[:, : vae.active_rank(rate)]
        found.append(torch.from_numpy(decode_symbols(encoded.sections[f"latents.{group}"], levels.numpy(), codec.bank)))
    return found
