"""Layers that a file leaves out, because the model recomputes them from the token ids on restore.

A codec with `recompute_layers` m > 0 codes layers m + 1 and up. Layers 0 to m are *known*: at encode from the snapshot,
at decode from the model, whose first m layers run over the tokens. They predict the coded layers and decide no bit, so
floats that differ in the last place move the reconstruction by as little.

That holds where the snapshot's known layers are what the model computes. They are not in a cache that went on from a
lossy file, or lost tokens on the way. So the file keeps a *probe*, a few of their values, and no reader takes known
layers that differ from it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from kvcompress.errors import FormatError, InputError, IntegrityError
from kvcompress.hf.channels import LayerShape, Rope, layer_channels, rows_of
from kvcompress.hf.partial_prefill import Recompute
from kvcompress.snapshot import KVSnapshot, LayerKV, Origin

PROBE = "known"
"""Section of a file whose first layers are recomputed."""

PROBE_ENTRIES = 16
PROBE_TOLERANCE = 0.1
"""Relative difference up to which recomputed layers are those of the file: bfloat16 kernels differ by .02, a cache that
went on from a transparent file by .2."""

KNOWN_LAYERS = 3
"""Known layers whose keys and values predict."""

_LARGEST_FLOAT16 = 65504.0
_STRIDE = 37


REMEDY = "Use --recompute-layers 0"


def parse_layers(asked: str, layers: Callable[[], int]) -> int:
    """Return how many layers are to be recomputed, given as a number or as a share of a model's layers.

    Args:
        asked: Such as "3" or "10%", the share of a prefill.
        layers: Tells how many layers the model has; called only where a share is given.

    Raises:
        InputError: It is neither.
    """
    text = asked.strip()
    try:
        if text.endswith("%"):
            share = float(text[:-1])
            if not 0 <= share < 100:
                raise ValueError
            return round(share / 100 * layers())
        return int(text)
    except ValueError as error:
        what = f"{asked!r} is neither a number of layers nor a share of them"
        raise InputError(what, "Give one such as 3 or 10%") from error


@dataclass(frozen=True, slots=True)
class ConditioningLayers:
    """What a group of layers is predicted from beside the tokens.

    Attributes:
        layers: Indices of known layers that hold the same tokens; none where nothing is known.
    """

    layers: tuple[int, ...] = ()

    @classmethod
    def of(cls, layer: int, recompute_layers: int, kinds: Sequence[str]) -> ConditioningLayers:
        """Choose for a coded layer the last known ones that hold all its tokens: of its kind, or of full attention.

        Keys and values of one layer are an image of the hidden state that enters it, of fewer dimensions; those of the
        layers before it tell about the others.

        Args:
            layer: Index of the coded layer.
            recompute_layers: m; 0 means that no layer is known.
            kinds: Kind of every layer, as in `Origin.layer_kinds`.
        """
        candidates = range(recompute_layers, -1, -1) if recompute_layers else ()
        chosen = [index for index in candidates if kinds[index] in ("full_attention", kinds[layer])]
        same = [index for index in chosen if kinds[index] == kinds[chosen[0]]]
        return cls(tuple(sorted(same[:KNOWN_LAYERS])))

    @classmethod
    def from_json(cls, group: Mapping[str, Any]) -> ConditioningLayers:
        """Read the field `known` of a codec's group; it is missing where nothing is known."""
        return cls(tuple(group.get("known", ())))

    def to_json(self) -> dict[str, Any]:
        """Return the same field."""
        return {"known": list(self.layers)} if self.layers else {}

    def channels(self, shapes: Sequence[LayerShape]) -> int:
        """Return how many channels the known layers have."""
        return sum(shapes[index].channels for index in self.layers)

    def rows(self, layers: Mapping[int, LayerKV], tokens: int, rope: Rope) -> Tensor | None:
        """Return pre-RoPE keys and values [N, C'] float32, a row a token; zero where the layers do not hold it.

        Args:
            layers: ConditioningLayers layers by index.
            tokens: N, of the session.
            rope: Rotation of the keys.
        """
        if not self.layers:
            return None
        found = layer_channels(layers, self.layers, rope)
        places = layers[self.layers[0]].positions
        if len(places) == tokens:
            return found
        return found.new_zeros(tokens, found.shape[1]).index_copy_(0, places, found)

    def require_cover(self, layers: Mapping[int, LayerKV], positions: Tensor) -> None:
        """Raise `InputError` where a known layer does not hold a token at one of the positions [T]."""
        for index in self.layers:
            held = layers[index].positions
            if not (torch.equal(held, positions) or bool(torch.isin(positions, held).all())):
                raise InputError(f"layer {index} does not hold all tokens of the layers that it predicts", REMEDY)


def recomputed(
    recompute: Recompute | None,
    layers: int,
    token_ids: Tensor,
    origin: Origin,
    positions: Sequence[Tensor],
    sections: Mapping[str, bytes],
) -> dict[int, LayerKV]:
    """Return layers 0 to m as the model computes them, with the tokens that the file's layers hold; none for m = 0.

    Args:
        recompute: The model; None where none was given.
        layers: m.
        token_ids: [N] int64.
        origin: Of the session.
        positions: For each layer of the file [T] int64.
        sections: Of the file; "known" is among them.

    Raises:
        InputError: There is no model.
        IntegrityError: What it computes is not what was recorded.
    """
    if not layers:
        return {}
    if recompute is None:
        what = f"the model recomputes the first {layers + 1} layers of this file"
        raise InputError(what, "Name the model with --model DIR")
    found = recompute(token_ids, layers, origin)
    difference = probe_difference(sections[PROBE], found[-1], positions[layers])
    if not difference <= PROBE_TOLERANCE:
        what = f"layer {layers} as the model computes it differs by {difference:.0%} from the one recorded"
        raise IntegrityError(what, f"Use the precision it was recorded in, {origin.dtype}")
    return {index: restricted(layer, place) for index, (layer, place) in enumerate(zip(found, positions, strict=False))}


def checked_probe(snapshot: KVSnapshot, layers: int, recompute: Recompute | None) -> bytes:
    """Return the section "known" of a snapshot; with a model, only if that will be able to restore it.

    Raises:
        InputError: The snapshot's known layers are not what the model computes from the tokens.
    """
    probe = pack_probe(snapshot.layers[layers])
    if recompute is not None:
        found = recompute(snapshot.token_ids, layers, snapshot.origin)[-1]
        difference = probe_difference(probe, found, snapshot.layers[layers].positions)
        if not difference <= PROBE_TOLERANCE:
            what = f"layer {layers} differs by {difference:.0%} from what the model computes from the tokens"
            raise InputError(f"{what}: the cache went on from a lossy file, or lost tokens on the way", REMEDY)
    return probe


def pack_probe(layer: LayerKV) -> bytes:
    """Return the section "known": values of the last known layer at some positions, as little-endian float16."""
    picked = _picked(layer, layer.positions).clamp(-_LARGEST_FLOAT16, _LARGEST_FLOAT16)
    return picked.numpy().astype("<f2").tobytes()


def probe_difference(probe: bytes, layer: LayerKV, positions: Tensor) -> float:
    """Return how far a layer that holds every position is from a probe: root of the ratio of energies.

    Args:
        probe: The section "known".
        layer: The last known layer, recomputed.
        positions: [T] int64, the positions that the recorded layer held.

    Raises:
        FormatError: The section is of the wrong length.
    """
    expected = min(PROBE_ENTRIES, len(positions))
    if len(probe) != 2 * expected:
        raise FormatError(f"the section {PROBE!r} has {len(probe)} bytes instead of {2 * expected}")
    stored = torch.from_numpy(np.frombuffer(probe, "<f2").astype(np.float32))
    lost = (stored - _picked(layer, positions)).square().sum()
    return float((lost / stored.square().sum().clamp(min=1e-30)).sqrt()) if expected else 0.0


def _picked(layer: LayerKV, positions: Tensor) -> Tensor:
    """Return one value at each of up to 16 positions [T], float32; the layer holds them all."""
    count = min(PROBE_ENTRIES, len(positions))
    index = torch.arange(count)
    places = positions[index * len(positions) // max(count, 1)]
    flat = rows_of(layer.values)
    rows = torch.searchsorted(layer.positions, places)
    return flat[rows, (index * _STRIDE) % flat.shape[1]].float()


def restricted(layer: LayerKV, positions: Tensor) -> LayerKV:
    """Return a layer that holds every position as it is with those of `positions` [T] only."""
    if len(positions) == len(layer.positions):
        return layer
    return LayerKV(layer.keys[:, positions], layer.values[:, positions], positions)
