"""The sections that every codec writes: token ids, origin of the cache, positions.

```
"tokens"     token ids, compressed: see `kvcompress/format/token_ids.py`
"origin"     where the cache comes from: canonical JSON under zlib, which may lean on the codec's own origin
"positions"  for each layer the positions that it holds: canonical JSON under zlib; left out where every layer holds all
```
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from kvcompress.errors import FormatError, InputError
from kvcompress.format.container import HASH_CHARACTERS, Encoded
from kvcompress.format.json_section import MAX_TOKENS, pack_origin, unpack_origin
from kvcompress.format.limits import require_memory
from kvcompress.format.origin import origin_of_json, require_vocabulary
from kvcompress.format.positions import Positions, pack_positions, read_positions
from kvcompress.format.token_ids import pack_tokens, unpack_tokens
from kvcompress.snapshot import CACHE_DTYPES, KVSnapshot, Origin

SESSION_SECTIONS = ("tokens", "origin", "positions")
SEGMENT = "segment"
"""Setting of a file that goes on from another one: only with it does it mean anything."""


@dataclass(frozen=True, slots=True)
class Preset:
    """What a codec knows of every session before it reads a file, so that files need not repeat it.

    Attributes:
        origin: Canonical JSON of an origin, the dictionary of the section "origin"; empty for none.
    """

    origin: bytes = b""


NOTHING = Preset()

DecodingBytes = Callable[[Origin, Sequence[int]], int]

TOKEN_BYTES = 48
"""Memory of a token id while it is read: as coded, in 8 bytes, as a tensor, and what is made of it."""

MOST_TOKENS_A_BYTE = 32768
"""That a byte of the section "tokens" can hold: a zstd block of 4 bytes gives 128 KiB; LZMA gets a fifth of it."""

POSITION_BYTES = 16
"""Memory of a position of a layer."""


def encoded_session(
    kind: str,
    fingerprint: str,
    snapshot: KVSnapshot,
    settings: Mapping[str, Any],
    own: Mapping[str, bytes],
    preset: Preset = NOTHING,
) -> Encoded:
    """Return what a codec makes of a snapshot: what every codec says of the session, then its own sections.

    Args:
        kind: The codec's kind.
        fingerprint: The codec's fingerprint, "" for a codec without weights.
        snapshot: What was coded.
        settings: The codec's settings, JSON-able.
        own: The codec's own sections, in file order.
        preset: What the codec knows beforehand; reading takes the same.

    Raises:
        InputError: As `session_sections`.
    """
    return Encoded(
        codec=kind,
        codec_fingerprint=fingerprint,
        model=asdict(snapshot.origin.fingerprint),
        model_name=snapshot.origin.model_name,
        tokens=snapshot.tokens,
        raw_bytes=snapshot.raw_bytes,
        settings=dict(settings),
        sections={**session_sections(snapshot, preset), **own},
    )


def own_sections(encoded: Encoded) -> set[str]:
    """Return the names of the sections that are not the session's but its codec's own."""
    return set(encoded.sections) - set(SESSION_SECTIONS)


def session_sections(snapshot: KVSnapshot, preset: Preset = NOTHING) -> dict[str, bytes]:
    """Return the sections "tokens" and "origin" of a snapshot, and "positions" where a layer lacks a token.

    Raises:
        InputError: A layer holds a position without a token, or the session is too long for the format.
    """
    if snapshot.tokens > MAX_TOKENS:
        raise InputError(f"{snapshot.tokens} tokens are more than the format's {MAX_TOKENS}")
    for index, layer in enumerate(snapshot.layers):
        if layer.positions.numel() and int(layer.positions[-1]) >= snapshot.tokens:
            raise InputError(f"layer {index}: a position lies beyond the {snapshot.tokens} tokens")
    require_vocabulary(snapshot.token_ids, snapshot.origin.config, InputError)
    sections = {
        "tokens": pack_tokens(snapshot.token_ids),
        "origin": pack_origin(snapshot.origin.to_json(), preset.origin),
    }
    if any(len(layer.positions) != snapshot.tokens for layer in snapshot.layers):
        sections["positions"] = pack_positions([layer.positions.tolist() for layer in snapshot.layers])
    return sections


def read_session(
    encoded: Encoded, preset: Preset = NOTHING, decoding_bytes: DecodingBytes | None = None
) -> tuple[Tensor, Origin, list[Tensor]]:
    """Read the session's sections and check that the header says the same about tokens and model as they do.

    Args:
        encoded: What the file holds.
        preset: What the codec knows beforehand.
        decoding_bytes: Tells how much memory the codec needs to decode, given the origin and how many tokens each layer
            holds. It is compared with the user's limit before positions are built.

    Returns:
        token_ids [N] int64, the origin, and for each layer its positions [T] int64, each below N.

    Raises:
        MismatchError: The sections lean on the preset of another codec.
        FormatError: A section is missing or damaged, or contradicts another or the header.
        InputError: The file goes on from another one.
        MemoryLimitError: It would take more memory than the user allows.
    """
    if SEGMENT in encoded.settings:
        raise InputError("the file is a segment of a stored session", "Read it with `kvcompress store resume`")
    for name in ("tokens", "origin"):
        if name not in encoded.sections:
            raise FormatError(f"the section {name!r} is missing")
    origin = origin_of_json(unpack_origin(encoded.sections["origin"], preset.origin))
    if _short(asdict(origin.fingerprint)) != _short(encoded.model):
        raise FormatError("the header and the section 'origin' name different models")
    layers, base_bytes = len(origin.layer_kinds), sum(map(len, encoded.sections.values()))
    base_bytes += encoded.tokens * TOKEN_BYTES + encoded.raw_bytes // 2 * CACHE_DTYPES[origin.dtype].itemsize
    if encoded.tokens > MOST_TOKENS_A_BYTE * len(encoded.sections["tokens"]):
        raise FormatError(f"the header counts {encoded.tokens} tokens, more than the section 'tokens' can hold")
    doing = f"decoding {encoded.tokens:,} tokens"
    require_memory(base_bytes, doing)
    token_ids = unpack_tokens(encoded.sections["tokens"], encoded.tokens)
    if encoded.tokens != len(token_ids):
        raise FormatError(f"the header counts {encoded.tokens} tokens, the section 'tokens' {len(token_ids)}")
    require_vocabulary(token_ids, origin.config)
    listed = _read_positions(encoded, layers)
    held = [encoded.tokens] * layers if listed is None else listed.held
    base_bytes += sum(held) * POSITION_BYTES
    require_memory(base_bytes + (decoding_bytes(origin, held) if decoding_bytes else 0), doing)
    if listed is None:
        return token_ids, origin, [torch.arange(len(token_ids))] * layers
    return token_ids, origin, position_tensors(listed)


def _read_positions(encoded: Encoded, layers: int) -> Positions | None:
    """Return what the section "positions" declares, None where there is none; it is not built yet."""
    if "positions" not in encoded.sections:
        return None
    listed = read_positions(encoded.sections["positions"], encoded.tokens, layers)
    if len(listed.layers) != layers:
        raise FormatError(f"positions of {len(listed.layers)} layers do not fit an origin of {layers}")
    if max(listed.ends, default=0) > encoded.tokens:
        raise FormatError(f"the section 'positions' names a position beyond the {encoded.tokens} tokens")
    return listed


def position_tensors(listed: Positions) -> list[Tensor]:
    """Return for each layer its positions [T] int64; layers that share a list share a tensor."""
    tensors: dict[int, Tensor] = {}
    for index, built in zip(listed.layers, listed.build(), strict=True):
        if index not in tensors:
            tensors[index] = torch.frombuffer(built, dtype=torch.int64) if built else torch.zeros(0, dtype=torch.int64)
    return [tensors[index] for index in listed.layers]


def _short(parts: Mapping[str, str | None]) -> dict[str, str | None]:
    return {part: None if digest is None else str(digest)[:HASH_CHARACTERS] for part, digest in parts.items()}
