"""Segments: what a turn adds to a session as a `.kvz` file, and segments in order back to a snapshot.

A segment holds the keys and values of tokens [start, end) and the ids of these tokens alone. Its setting `segment` says
where it goes on:

```
start    tokens before it
parent   digest of the segment before it, 64 hexadecimal digits; "" for the first
first    for each layer the first position that it still holds after `end` tokens; left out where all hold all
```
Positions are counted from `start`. Codecs without weights code and decode it so; a learned one is given the ids of the
tokens before, which it predicts from, and the true positions. What was decoded is never coded again: a segment is coded
from the cache as the model left it, which went on from the decoded past.

A learned codec codes tokens near the end of a session finer, and in segments each turn is at the end once. So what
continues others is coded coarser (`kvcompress.codec.quality.continued`): right after an append a session is as good as
one file of it would be, and turns cost more than that file. 24 recorded sessions of 1,024 tokens, the bundled model and
codec, "transparent", mean KL over the 128 tokens after 256, 512, 768 and all tokens:

```
tokens a segment      1,024     256     128      32
bytes a session      42,362  54,060  60,000  74,918
mean KL, nats         .0020   .0020   .0020   .0020
```
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from kvcompress.api.certificates import TOKENS
from kvcompress.api.codecs import LoadedCodecs
from kvcompress.api.options import DEFAULT_QUALITY
from kvcompress.errors import FormatError, InputError
from kvcompress.format.container import HASH_CHARACTERS, Encoded, from_bytes, to_bytes
from kvcompress.format.json_section import MAX_TOKENS
from kvcompress.format.positions import pack_positions
from kvcompress.format.session import SEGMENT, encoded_session
from kvcompress.format.token_ids import pack_tokens, unpack_tokens
from kvcompress.snapshot import CACHE_DTYPES, KVSnapshot, LayerKV, Origin

TOKENS_ONLY = TOKENS
"""Kind of a file that holds no keys and values: the model computes them again."""

PREFIX_BYTES = 16


@dataclass(frozen=True, slots=True)
class Coding:
    """How segments are coded. What is measured on a whole session, plans and bounds, cannot be asked of its parts.

    Attributes:
        quality: "transparent", "high" or "usable".
        lossless: The identical bits instead.
        codec: Name, directory or Hub id; None takes the store's, or the one at hand that fits.

    Raises:
        InputError: Both are asked.
    """

    quality: str | None = None
    lossless: bool = False
    codec: str | Path | None = None

    def __post_init__(self) -> None:
        """Check that one way is named."""
        if self.lossless and self.quality is not None:
            raise InputError("quality and lossless exclude each other", "Name one of them")

    def is_of(self, part: Part, snapshot: KVSnapshot, codecs: LoadedCodecs) -> bool:
        """Tell whether a segment of the same tokens stands for those of a snapshot as well as one of its own would.

        Bits differ between two runs of a model over the same tokens; a quality bounds what that may cost, the
        identical bits are another promise.
        """
        if self.lossless or part.is_tokens_only:
            return False
        ours, theirs = asdict(snapshot.origin.fingerprint), part.encoded.model
        alike = all((theirs.get(name) or "") == (digest or "")[:HASH_CHARACTERS] for name, digest in ours.items())
        fingerprint = codecs.encoder(snapshot, self.codec).fingerprint
        stated = part.encoded.settings.get("quality"), part.encoded.codec_fingerprint
        return alike and stated == (self.quality or DEFAULT_QUALITY, fingerprint)


@dataclass(frozen=True, slots=True, eq=False)
class Part:
    """A segment, read.

    Attributes:
        encoded: The file.
        start: Tokens before it.
        token_ids: [end - start] int64, of the tokens that it adds.
        parent: Digest of the segment before it, "" for the first.
        first: For each layer the first position still held after it; empty where all hold all.
    """

    encoded: Encoded
    start: int
    token_ids: Tensor
    parent: str
    first: tuple[int, ...]

    @property
    def end(self) -> int:
        """Tokens of the session after it."""
        return self.start + len(self.token_ids)

    @property
    def is_tokens_only(self) -> bool:
        """Whether keys and values have to be computed again."""
        return self.encoded.codec == TOKENS_ONLY


def prefix_digest(token_ids: Tensor, key: bytes = b"") -> bytes:
    """Return the BLAKE2b-128 of token ids [N] int64, eight bytes each, little-endian."""
    return prefix_digests(token_ids, {len(token_ids)}, key)[len(token_ids)]


def prefix_digests(token_ids: Tensor, ends: Collection[int], key: bytes = b"") -> dict[int, bytes]:
    """Return the same of the first tokens up to each of some ends, in one pass."""
    data, done, found = token_ids.detach().cpu().contiguous().numpy().astype("<i8"), 0, dict[int, bytes]()
    hashed = hashlib.blake2b(digest_size=PREFIX_BYTES, key=key)
    for end in sorted(ends):
        hashed.update(data[done:end].tobytes())
        done, found[end] = end, hashed.digest()
    return found


def encode_part(snapshot: KVSnapshot, start: int, parent: str, how: Coding, codecs: LoadedCodecs) -> bytes:
    """Return the segment that adds to the tokens before `start` what a snapshot holds beyond them.

    Args:
        snapshot: The whole session, at least as long as `start`.
        start: Tokens that earlier segments hold.
        parent: Digest of the last of these, "" where there is none.
        how: A quality, or lossless.
        codecs: Where the codec is taken from.

    Raises:
        InputError: The codec does not fit, or does not know the quality.
    """
    cut = part_of(snapshot, start)
    settings = {SEGMENT: _statement(snapshot, start, parent)}
    if how.lossless:
        return _packed(codecs.encode(_rebased(cut, start), lossless=True), settings)
    coded = codecs.encode(cut, quality=how.quality, codec=how.codec, start=start)
    return _packed(_shortened(coded, cut, start), settings)


def tokens_part(token_ids: Tensor, start: int, parent: str, origin: Origin) -> bytes:
    """Return the segment of tokens whose keys and values are to be computed again.

    Args:
        token_ids: [N] int64, of the whole session.
        start: Tokens before it.
        parent: As in `encode_part`.
        origin: Of the session.
    """
    nothing = torch.empty(0, 0, 0, dtype=CACHE_DTYPES[origin.dtype])
    empty = (LayerKV(nothing, nothing, torch.empty(0, dtype=torch.int64)),) * len(origin.layer_kinds)
    held = encoded_session(TOKENS_ONLY, "", KVSnapshot(empty, token_ids[start:], origin), {}, {})
    sections = {name: held.sections[name] for name in ("tokens", "origin")}
    return _packed(replace(held, sections=sections), {SEGMENT: {"start": start, "parent": parent}})


def read_part(data: bytes) -> Part:
    """Read a segment.

    Raises:
        FormatError: It is damaged, or no segment.
    """
    encoded = from_bytes(data)
    says = encoded.settings.get(SEGMENT)
    if not isinstance(says, dict) or set(says) - {"start", "parent", "first"}:
        raise FormatError("the file is no segment of a session", "Read it with `kvcompress resume`")
    start, parent, first = says.get("start"), says.get("parent"), says.get("first", [])
    if type(start) is not int or not 0 <= start <= MAX_TOKENS or not isinstance(parent, str):
        raise FormatError("the segment does not say where it goes on")
    if bool(start) != bool(parent) or (parent and (len(parent) != 64 or set(parent) - set("0123456789abcdef"))):
        raise FormatError("the segment names an impossible parent")
    ids = unpack_tokens(encoded.sections.get("tokens", b""), encoded.tokens)
    whole = isinstance(first, list) and all(type(place) is int and 0 <= place <= start + len(ids) for place in first)
    if not whole or len(ids) != encoded.tokens:
        raise FormatError("the segment contradicts itself about its tokens")
    return Part(encoded, start, ids, parent, tuple(first))


def held_since(layer: LayerKV, start: int) -> LayerKV:
    """Return what a layer holds from a position on."""
    index = int(torch.searchsorted(layer.positions, start))
    if not index:
        return layer
    return LayerKV(layer.keys[:, index:], layer.values[:, index:], layer.positions[index:])


def part_of(snapshot: KVSnapshot, start: int, end: int | None = None) -> KVSnapshot:
    """Return a snapshot whose layers hold the positions from `start` on, cut at `end` tokens where that is given.

    A layer with a window has forgotten tokens before its end, so only one that held all of them can be cut there.
    """
    tokens = snapshot.tokens if end is None else end
    layers = []
    for layer in snapshot.layers:
        held = held_since(layer, start)
        stop = int(torch.searchsorted(held.positions, tokens))
        layers.append(LayerKV(held.keys[:, :stop], held.values[:, :stop], held.positions[:stop]))
    origin = snapshot.origin
    if tokens < snapshot.tokens:  # what was said is known of the whole alone
        origin = replace(origin, next_position=tokens, conversation=None)
    return KVSnapshot(tuple(layers), snapshot.token_ids[:tokens], origin)


def _rebased(cut: KVSnapshot, start: int) -> KVSnapshot:
    """Return the same with ids and positions counted from `start`."""
    layers = tuple(LayerKV(layer.keys, layer.values, layer.positions - start) for layer in cut.layers)
    return KVSnapshot(layers, cut.token_ids[start:], cut.origin)


def _shortened(encoded: Encoded, cut: KVSnapshot, start: int) -> Encoded:
    """Return a file of all tokens with the ids and positions of those from `start` on alone."""
    count = cut.tokens - start
    sections = {name: data for name, data in encoded.sections.items() if name != "positions"}
    sections["tokens"] = pack_tokens(cut.token_ids[start:])
    if any(len(layer.positions) != count for layer in cut.layers):
        sections["positions"] = pack_positions([(layer.positions - start).tolist() for layer in cut.layers])
    return replace(encoded, tokens=count, sections=sections)


def _statement(snapshot: KVSnapshot, start: int, parent: str) -> dict[str, Any]:
    first = [int(layer.positions[0]) if len(layer.positions) else snapshot.tokens for layer in snapshot.layers]
    return {"start": start, "parent": parent} | ({"first": first} if any(first) else {})


def _packed(encoded: Encoded, settings: dict[str, Any]) -> bytes:
    return to_bytes(replace(encoded, settings={**encoded.settings, **settings}))
