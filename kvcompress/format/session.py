"""The sections that every codec needs: which tokens, from which model, at which positions.

```
"tokens"     token ids, compressed: see `kvcompress/format/token_ids.py`
"origin"     where the cache comes from: canonical JSON under zlib, which may lean on the codec's own origin
"positions"  for each layer the positions that it holds: canonical JSON under zlib; left out where every layer holds all
```
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from kvcompress.errors import FormatError, InputError
from kvcompress.format.container import HASH_CHARACTERS, Encoded
from kvcompress.format.json_section import MAX_TOKENS, pack_origin, pack_positions, unpack_origin, unpack_positions
from kvcompress.format.token_ids import pack_tokens, unpack_tokens
from kvcompress.snapshot import KVSnapshot, Origin

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
    sections = {
        "tokens": pack_tokens(snapshot.token_ids),
        "origin": pack_origin(snapshot.origin.to_json(), preset.origin),
    }
    if any(len(layer.positions) != snapshot.tokens for layer in snapshot.layers):
        sections["positions"] = pack_positions([layer.positions.tolist() for layer in snapshot.layers])
    return sections


def read_session_sections(
    sections: Mapping[str, bytes], preset: Preset = NOTHING, most_tokens: int = MAX_TOKENS
) -> tuple[Tensor, Origin, list[Tensor]]:
    """Read the sections "tokens", "origin" and "positions"; the inverse of `session_sections`.

    Args:
        sections: They and any others.
        preset: What the codec knows beforehand.
        most_tokens: More are not decompressed.

    Returns:
        token_ids [N] int64, the origin, and for each layer its positions [T] int64, each below N.

    Raises:
        MismatchError: The sections lean on the preset of another codec.
        FormatError: A section is missing or damaged, or they contradict each other.
        InputError: The origin lacks a field.
    """
    for name in ("tokens", "origin"):
        if name not in sections:
            raise FormatError(f"the section {name!r} is missing")
    token_ids = unpack_tokens(sections["tokens"], most_tokens)
    origin = Origin.from_json(unpack_origin(sections["origin"], preset.origin))
    if "positions" not in sections:
        return token_ids, origin, [torch.arange(len(token_ids))] * len(origin.layer_kinds)
    positions = _read_positions(sections["positions"], len(token_ids))
    if len(positions) != len(origin.layer_kinds):
        raise FormatError(f"positions of {len(positions)} layers do not fit an origin of {len(origin.layer_kinds)}")
    return token_ids, origin, positions


def _read_positions(section: bytes, tokens: int) -> list[Tensor]:
    """Return for each layer its positions [T] int64; layers that share a list share a tensor."""
    tensors: dict[int, Tensor] = {}
    positions = []
    for layer in unpack_positions(section, max_tokens=tokens):
        if layer and layer[-1] >= tokens:
            raise FormatError(f"the section 'positions' names a position beyond the {tokens} tokens")
        if id(layer) not in tensors:
            tensors[id(layer)] = torch.tensor(layer, dtype=torch.int64)
        positions.append(tensors[id(layer)])
    return positions


def read_session(encoded: Encoded, preset: Preset = NOTHING) -> tuple[Tensor, Origin, list[Tensor]]:
    """Read the session's sections and check that the header says the same about tokens and model as they do.

    Returns:
        As `read_session_sections`.

    Raises:
        MismatchError: The sections lean on the preset of another codec.
        FormatError: A section is missing or damaged, or contradicts another or the header.
        InputError: The origin lacks a field, or the file goes on from another one.
    """
    if SEGMENT in encoded.settings:
        raise InputError("the file is a segment of a stored session", "Read it with `kvcompress store resume`")
    token_ids, origin, positions = read_session_sections(encoded.sections, preset, encoded.tokens)
    if encoded.tokens != len(token_ids):
        raise FormatError(f"the header counts {encoded.tokens} tokens, the section 'tokens' {len(token_ids)}")
    parts = asdict(origin.fingerprint)
    if _short(parts) != _short(encoded.model):
        raise FormatError("the header and the section 'origin' name different models")
    return token_ids, origin, positions


def _short(parts: Mapping[str, str | None]) -> dict[str, str | None]:
    return {part: None if digest is None else str(digest)[:HASH_CHARACTERS] for part, digest in parts.items()}
