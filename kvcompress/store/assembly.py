"""Segments in order back to a snapshot: each decoded by its codec, what is stored as ids alone computed by a model."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace

import torch
from torch import Tensor

from kvcompress.api.codecs import LoadedCodecs
from kvcompress.errors import FormatError, InputError
from kvcompress.format.container import Encoded
from kvcompress.format.json_section import unpack_origin
from kvcompress.format.origin import origin_of_json
from kvcompress.format.positions import pack_positions, unpack_positions
from kvcompress.format.session import SEGMENT
from kvcompress.format.zstd_frame import zstd_pack
from kvcompress.hf.partial_prefill import Recompute
from kvcompress.snapshot import KVSnapshot, LayerKV, Origin
from kvcompress.store.segment import Part, held_since

Grow = Callable[[KVSnapshot | None, Tensor], KVSnapshot]
"""Called with a snapshot (None for the empty session) and all token ids [N]; runs a model over those it lacks."""


def assemble(
    parts: Iterable[Part], codecs: LoadedCodecs, recompute: Recompute | None = None, grow: Grow | None = None
) -> KVSnapshot:
    """Return the snapshot of segments in order, the first of them first.

    Args:
        parts: The segments of a session.
        codecs: Where codecs are taken from.
        recompute: The model, for files whose first layers it recomputes.
        grow: The model, for segments of token ids alone.

    Raises:
        FormatError: The segments do not follow each other.
        InputError: There is none, or a model is needed.
    """
    built = _Built()
    for part in parts:
        if part.start != len(built.token_ids):
            raise FormatError(f"a segment starts at token {part.start}, the one before ends at {len(built.token_ids)}")
        built.ids.append(part.token_ids)
        if part.is_tokens_only:
            built.note(part)
            continue
        if built.lacking:
            built.grow(grow, part.start)
        built.add(part, layers_of(part, built.token_ids, codecs, recompute))
    if built.origin is None:
        raise InputError("the session holds no tokens", "Append to it first")
    if built.lacking:
        built.grow(grow, len(built.token_ids))
    return built.snapshot(len(built.token_ids))


class _Built:
    """A session as far as it was read."""

    def __init__(self) -> None:
        self.ids: list[Tensor] = []
        self.pieces: list[list[LayerKV]] = []
        self.first: tuple[int, ...] = ()
        self.origin: Origin | None = None
        self.lacking = False

    @property
    def token_ids(self) -> Tensor:
        """All ids [N] int64."""
        if len(self.ids) != 1:
            self.ids = [torch.cat(self.ids) if self.ids else torch.empty(0, dtype=torch.int64)]
        return self.ids[0]

    def note(self, part: Part) -> None:
        """Take a segment whose keys and values are lacking."""
        self.origin = origin_of_json(unpack_origin(part.encoded.sections.get("origin", b"")))
        self.lacking = True

    def add(self, part: Part, snapshot: KVSnapshot) -> None:
        """Take the layers that a segment adds."""
        if self.pieces and len(snapshot.layers) != len(self.pieces):
            raise FormatError(f"a segment has {len(snapshot.layers)} layers, the ones before {len(self.pieces)}")
        self.pieces = self.pieces or [[] for _ in snapshot.layers]
        for pieces, layer in zip(self.pieces, snapshot.layers, strict=True):
            pieces.append(layer)
        self.first, self.origin = part.first, snapshot.origin

    def grow(self, grow: Grow | None, end: int) -> None:
        """Let the model compute what is lacking of the first `end` tokens."""
        if grow is None:
            raise InputError("some tokens of this session are stored as ids alone", "Give the model, which reads them")
        done = sum(len(piece.positions) for piece in self.pieces[0]) if self.pieces else 0
        before = self.snapshot(self._covered) if done else None
        found = grow(before, self.token_ids[:end])
        said = None if self.origin is None else self.origin.conversation
        self.origin = replace(found.origin, conversation=said)
        self.pieces, self.first = [[layer] for layer in found.layers], ()
        self.lacking = False

    @property
    def _covered(self) -> int:
        return max(int(pieces[-1].positions[-1]) + 1 for pieces in self.pieces if len(pieces[-1].positions))

    def snapshot(self, tokens: int) -> KVSnapshot:
        """Return the first `tokens` tokens, windows moved on."""
        assert self.origin is not None
        first = self.first or (0,) * len(self.pieces)
        if len(first) != len(self.pieces):
            raise FormatError(f"a segment names {len(first)} layers and has {len(self.pieces)}")
        layers = tuple(_joined(pieces, place) for pieces, place in zip(self.pieces, first, strict=True))
        return KVSnapshot(layers, self.token_ids[:tokens], replace(self.origin, next_position=tokens))


def _joined(pieces: list[LayerKV], first: int) -> LayerKV:
    """Return the layer of pieces one after another, without what lies before `first`."""
    pieces = [kept for piece in pieces if len((kept := held_since(piece, first)).positions)] or pieces[-1:]
    if len(pieces) == 1:
        return pieces[0]
    if len({(piece.keys.shape[::2], piece.values.shape[::2]) for piece in pieces}) != 1:
        raise FormatError("segments of one session have layers of different shapes")
    keys, values = (torch.cat([getattr(piece, name) for piece in pieces], 1) for name in ("keys", "values"))
    return LayerKV(keys, values, torch.cat([piece.positions for piece in pieces]))


def _places(encoded: Encoded, codecs: LoadedCodecs) -> list[list[int]]:
    """Return for each layer the positions that a segment holds, from its first token on; all where none are listed."""
    if "positions" in encoded.sections:
        return unpack_positions(encoded.sections["positions"], max_tokens=encoded.tokens)
    return [list(range(encoded.tokens))] * codecs.layers(encoded)


def layers_of(part: Part, token_ids: Tensor, codecs: LoadedCodecs, recompute: Recompute | None) -> KVSnapshot:
    """Return what a segment decodes to: its layers at their true positions, all ids [N] up to its end.

    Raises:
        FormatError: It is damaged.
    """
    settings = {name: value for name, value in part.encoded.settings.items() if name != SEGMENT}
    encoded, start = replace(part.encoded, settings=settings), part.start
    if start and encoded.codec_fingerprint:
        tokens = bytes([8]) + zstd_pack(token_ids.numpy().astype("<i8").tobytes(), 1)
        sections = {**encoded.sections, "tokens": tokens}
        sections["positions"] = pack_positions(
            [[start + place for place in layer] for layer in _places(encoded, codecs)]
        )
        return codecs.decode(replace(encoded, tokens=len(token_ids), sections=sections), recompute)
    found = codecs.decode(encoded, recompute)
    layers = tuple(LayerKV(layer.keys, layer.values, layer.positions + start) for layer in found.layers)
    return KVSnapshot(layers, token_ids, found.origin)
