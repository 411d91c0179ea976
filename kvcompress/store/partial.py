"""A part of a stored session: a span of tokens or of layers is restored, and the model computes the rest from the ids.

```
tokens [a, b)     read 0 .. a        restore a .. b      read b .. N      segments outside are not decoded
layers [a, b)     compute 0 .. a     restore a .. b      compute b .. L   where b = L only the first a layers are run
```
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from kvcompress.errors import InputError
from kvcompress.format.json_section import unpack_origin
from kvcompress.format.origin import origin_of_json
from kvcompress.hf import capture, fingerprint, recompute_with
from kvcompress.hf.partial_prefill import first_layers
from kvcompress.hf.types import CausalLM, Tokenizer
from kvcompress.snapshot import CACHE_DTYPES, KVSnapshot, LayerKV
from kvcompress.store.assembly import layers_of
from kvcompress.store.resume import grower
from kvcompress.store.rows import state_of_session
from kvcompress.store.segment import Part, held_since

if TYPE_CHECKING:
    from kvcompress.store.session import StoredSession

Span = tuple[int, int | None]


@dataclass(frozen=True, slots=True, eq=False)
class PartlyRestored:
    """A state of which a part was restored.

    Attributes:
        snapshot: The whole state.
        restored: Tokens times layers that come from the store.
        entries: Tokens times layers in all, those that windows have left out.
        decoded_bytes: Of the segments that were decoded, their headers left out.
    """

    snapshot: KVSnapshot
    restored: int
    entries: int
    decoded_bytes: int

    @property
    def restored_share(self) -> float:
        """Share of the cache that comes from the store."""
        return self.restored / self.entries if self.entries else 0.0

    def to_json(self) -> dict[str, Any]:
        """Return what is told of it, JSON-able."""
        return {
            "restored_share": self.restored_share,
            "recomputed_share": 1 - self.restored_share,
            "decoded_bytes": self.decoded_bytes,
        }


def restore_part(
    session: StoredSession,
    model: CausalLM,
    tokenizer: Tokenizer | None = None,
    *,
    tokens: Span | None = None,
    layers: Span | None = None,
    at: int | str | None = None,
) -> PartlyRestored:
    """Restore a span of tokens or of layers of a state, and compute what is missing.

    Args:
        session: The session.
        model: The model that recorded it, in evaluation mode.
        tokenizer: Compared with the recording one where both are known.
        tokens: [start, end) of the tokens to restore; an end of None is that of the session.
        layers: Or the same of layers.
        at: Name or number of an entry; None for the present state.

    Raises:
        InputError: Neither or both are given, a span is empty or beyond the session, or tokens are asked of a session
            with windows, which hold only the last ones.
        MismatchError: The model is another one.
    """
    if (tokens is None) == (layers is None):
        raise InputError("a part is a span of tokens or of layers", "Name one of them")
    parts, state = list(session.parts(at)), state_of_session(session)
    if not parts:
        raise InputError("the session holds no tokens", "Append to it first")
    origin = session.store.origin(state.origin)
    origin.fingerprint.require_match(fingerprint(model, tokenizer))
    if tokens is not None:
        if set(origin.layer_kinds) != {"full_attention"}:
            raise InputError("layers with a window hold only their last tokens", "Restore a span of layers")
        return _tokens(session, model, tokenizer, parts, _checked(tokens, parts[-1].end, "tokens"))
    assert layers is not None
    return _layers(session, model, tokenizer, parts, _checked(layers, len(origin.layer_kinds), "layers"), at)


def _checked(span: Span, count: int, what: str) -> tuple[int, int]:
    start, end = span[0], count if span[1] is None else span[1]
    if not 0 <= start < end <= count:
        raise InputError(f"{start}:{end} is no span of {count} {what}", f"Give one within 0:{count}")
    return start, end


def _tokens(
    session: StoredSession, model: CausalLM, tokenizer: Tokenizer | None, parts: list[Part], span: tuple[int, int]
) -> PartlyRestored:
    grow, recompute = grower(model, tokenizer), recompute_with(model, tokenizer)
    ids = torch.cat([part.token_ids for part in parts])
    built: KVSnapshot | None = None
    restored = size = 0
    waiting: list[KVSnapshot] = []
    for part in parts:
        start, end = max(part.start, span[0]), min(part.end, span[1])
        if part.is_tokens_only or start >= end:
            continue
        reached = _end(built, waiting)
        if reached < start:
            built, waiting = grow(_joined(built, waiting), ids[:start]), []
        found = layers_of(part, ids[: part.end], session.store.codecs, recompute)
        waiting.append(_cut(found, start, end))
        restored, size = restored + end - start, size + _size(part)
    built = _joined(built, waiting)
    if built is None or built.tokens < len(ids):
        built = grow(built, ids)
    said = origin_of_json(unpack_origin(parts[-1].encoded.sections.get("origin", b""))).conversation
    built = replace(built, origin=replace(built.origin, conversation=said))
    count = len(built.layers)
    return PartlyRestored(built, restored * count, len(ids) * count, size)


def _size(part: Part) -> int:
    """Return the bytes of a segment, its header left out."""
    return sum(map(len, part.encoded.sections.values()))


def _end(built: KVSnapshot | None, waiting: list[KVSnapshot]) -> int:
    """Return how many tokens are there."""
    last = waiting[-1] if waiting else built
    return 0 if last is None else last.tokens


def _cut(snapshot: KVSnapshot, start: int, end: int) -> KVSnapshot:
    """Return the layers of tokens [start, end), with all ids up to there."""
    layers = []
    for layer in snapshot.layers:
        held = held_since(layer, start)
        stop = int(torch.searchsorted(held.positions, end))
        layers.append(LayerKV(held.keys[:, :stop], held.values[:, :stop], held.positions[:stop]))
    return KVSnapshot(tuple(layers), snapshot.token_ids[:end], replace(snapshot.origin, next_position=end))


def _joined(built: KVSnapshot | None, waiting: list[KVSnapshot]) -> KVSnapshot | None:
    """Return the snapshot of pieces one after another."""
    pieces = [piece for piece in (built, *waiting) if piece is not None]
    if len(pieces) < 2:
        return pieces[0] if pieces else None
    layers = []
    for rows in zip(*(piece.layers for piece in pieces), strict=True):
        keys, values = (torch.cat([getattr(row, name) for row in rows], 1) for name in ("keys", "values"))
        layers.append(LayerKV(keys, values, torch.cat([row.positions for row in rows])))
    return KVSnapshot(tuple(layers), pieces[-1].token_ids, pieces[-1].origin)


def _layers(
    session: StoredSession,
    model: CausalLM,
    tokenizer: Tokenizer | None,
    parts: list[Part],
    span: tuple[int, int],
    at: int | str | None,
) -> PartlyRestored:
    recompute = recompute_with(model, tokenizer)
    stored = session.snapshot(at, model=model, tokenizer=tokenizer, recompute=recompute)
    start, end = span
    computed = _computed(model, stored.token_ids, start, end, len(stored.layers))
    target = CACHE_DTYPES[stored.origin.dtype]
    lacking = sum(len(part.token_ids) for part in parts if part.is_tokens_only)
    layers, restored = [], 0
    for index, layer in enumerate(stored.layers):
        if start <= index < end:
            layers.append(layer)
            restored += max(len(layer.positions) - lacking, 0)
            continue
        found = computed[index]
        rows = torch.searchsorted(found.positions, layer.positions)
        layers.append(LayerKV(found.keys[:, rows].to(target), found.values[:, rows].to(target), layer.positions))
    entries = sum(len(layer.positions) for layer in layers)
    size = sum(_size(part) for part in parts if not part.is_tokens_only)
    return PartlyRestored(replace(stored, layers=tuple(layers)), restored, entries, size)


def _computed(model: CausalLM, token_ids: Tensor, start: int, end: int, count: int) -> tuple[LayerKV, ...]:
    """Return at least the layers outside [start, end), running no more of the model than they need."""
    if end < count:
        return capture(model, token_ids).layers
    return first_layers(model, token_ids, max(start - 1, 1))[:start] if start and count > 1 else ()
