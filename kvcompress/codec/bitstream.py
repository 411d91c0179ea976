"""Parse the sections of a file into the symbols of each group, before any float is computed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from kvcompress.codec.analysis import OFFSETS, RESIDUAL
from kvcompress.codec.group_code import GroupCode
from kvcompress.codec.memory import decoding_bytes
from kvcompress.codec.other_weights import require_recorded
from kvcompress.codec.outliers import OUTLIERS, Outliers
from kvcompress.codec.recompute import PROBE
from kvcompress.codec.residual import Residual
from kvcompress.codec.settings import TinyVAESettings
from kvcompress.errors import FormatError, InputError
from kvcompress.format.ans import decode_choices, decode_symbols
from kvcompress.format.container import Encoded
from kvcompress.format.session import own_sections, read_session
from kvcompress.snapshot import Origin

if TYPE_CHECKING:
    from kvcompress.codec.tinyvae import TinyVAECodec


def require_sections(codec: TinyVAECodec, encoded: Encoded) -> None:
    """Raise `FormatError` unless a file has the sections of its codec and no others."""
    residual = TinyVAESettings.from_json(encoded.settings).residual_qp is not None
    parts = ["latents", *([RESIDUAL] if residual else [])]
    names = {f"{part}.{group}" for part in parts for group in range(len(codec.groups))}
    names |= {PROBE} if codec.recompute_layers else set()
    odd = names ^ (own_sections(encoded) - {OFFSETS, OUTLIERS})
    if odd:
        raise FormatError(f"the file's sections are not those of its codec: {', '.join(sorted(odd))}")


def read_own_session(codec: TinyVAECodec, encoded: Encoded) -> tuple[Tensor, Origin, list[Tensor]]:
    """Return token ids, origin and positions of a file, as `read_session`, once it is known to be of a codec's model.

    Raises:
        MismatchError: It is of another model, or says of its model what this codec's is not.
        FormatError: A section is missing or damaged, or the file is not one that this codec makes.
        MemoryLimitError: Decoding it would take more memory than the user allows.
    """

    def working_bytes(origin: Origin, held: Sequence[int]) -> int:
        stated = TinyVAESettings.from_json(encoded.settings)
        require_recorded(stated.other_weights, codec.model_fingerprint, codec.preset.origin, origin)
        if len(held) != len(codec.shapes):
            raise FormatError(f"the file holds {len(held)} layers, its codec codes {len(codec.shapes)}")
        counted = 2 * sum(count * shape.channels for count, shape in zip(held, codec.shapes, strict=True))
        if counted != encoded.raw_bytes:
            raise FormatError(f"the header counts {encoded.raw_bytes} raw bytes, the codec's shapes {counted}")
        return decoding_bytes(codec, encoded, held)

    return read_session(encoded, codec.preset, working_bytes)


def read_codes(
    codec: TinyVAECodec, encoded: Encoded, token_ids: Tensor, positions: Sequence[Tensor]
) -> list[GroupCode]:
    """Return what a file holds of each group.

    Args:
        codec: The codec that made it.
        encoded: The file.
        token_ids: [N] int64, as its session's sections say.
        positions: Of each layer [T] int64, likewise.

    Raises:
        FormatError: A section is damaged, or the file is not one that this codec makes.
    """
    stated = TinyVAESettings.from_json(encoded.settings)
    qp, finer = stated.qp, None if stated.residual_qp is None else stated.residual_qp - stated.qp
    codec.require_vocabulary(token_ids, FormatError)
    codes, all_qps = [], _qps(codec, encoded, token_ids, qp)
    lifts = _lifts(encoded, len(token_ids))
    for group, places in enumerate(_places(codec, token_ids, positions)):
        vae, qps, residual = codec.vae(group), all_qps[group][places], None
        lifted = vae.lifts(token_ids, lifts)
        levels = vae.levels(token_ids[places], qps, None if lifted is None else lifted[places])
        symbols = decode_symbols(encoded.sections[f"latents.{group}"], levels.numpy(), codec.bank)
        if finer is not None:
            data, channels = encoded.sections[f"{RESIDUAL}.{group}"], vae.config.channels
            residual = Residual.from_bytes(data, len(places), channels, codec.bank)
        codes.append(GroupCode(places, qps, torch.from_numpy(symbols), levels, residual, finer or 0, lifts))
    return codes


def _lifts(encoded: Encoded, tokens: int) -> Tensor | None:
    """Return the lifts [N] of a file's outliers; None where it has none."""
    if OUTLIERS not in encoded.sections:
        return None
    return Outliers.from_bytes(encoded.sections[OUTLIERS], tokens).spread(tokens)[0]


def _qps(codec: TinyVAECodec, encoded: Encoded, token_ids: Tensor, qp: int) -> list[Tensor]:
    """Return the QP [N] of every token for each group, as the file says."""
    offsets = None
    if OFFSETS in encoded.sections:
        offsets = torch.from_numpy(decode_choices(encoded.sections[OFFSETS], len(token_ids)))
    try:
        qps = [codec.qps(group, token_ids, qp, offsets) for group in range(len(codec.groups))]
    except InputError as error:
        raise FormatError(f"the section {OFFSETS!r}: {error.what}") from error
    if OUTLIERS not in encoded.sections:
        return qps
    finer = Outliers.from_bytes(encoded.sections[OUTLIERS], len(token_ids)).spread(len(token_ids))[1]
    return [of_group + finer for of_group in qps]


def _places(codec: TinyVAECodec, token_ids: Tensor, positions: Sequence[Tensor]) -> list[Tensor]:
    """Return the positions of each group, refusing files that this codec cannot have made."""
    for layers in codec.groups:
        if any(not torch.equal(positions[i], positions[layers[0]]) for i in layers):
            raise FormatError("layers of one group hold different tokens")
    return [positions[layers[0]] for layers in codec.groups]
