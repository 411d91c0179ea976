"""Remove the rotary position embedding (RoPE) from cached keys and apply it again, without the model's weights.

A codec predicts keys better before RoPE, a cache holds them after it. The rotation itself is not written down here: it
is the model family's own `apply_rotary_pos_emb`, called with the sine negated for the way back, so half, interleaved
and partial layouts need no cases of their own.

```
config JSON ──► rotary module ──► cos, sin [T, R] ──► undo: rotate(keys, cos/s², -sin/s²)     s = attention scaling
                                                      redo: rotate(keys, cos, sin)
```
"""

from __future__ import annotations

import functools
import inspect
import json
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoConfig, PreTrainedConfig
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING

from kvcompress.errors import InputError
from kvcompress.hf.rope_length import is_steady
from kvcompress.snapshot import Origin

Rotation = Callable[[Tensor, Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]
ROTATION_NAME = "apply_rotary_pos_emb"
ANGLE_ENTRIES = 4  # full and sliding layers, each with two frequency sets, alternate without recomputing
MAX_HEAD_SIZE = 1 << 16  # a configuration read from a file must not make us allocate at will


@dataclass(frozen=True, slots=True)
class _Angles:
    """Cosine and sine of one set of positions, as [1, T, R] float32, for both directions."""

    layer_type: str | None
    positions: Tensor
    redo: tuple[Tensor, Tensor]
    undo: tuple[Tensor, Tensor]


class RopeAdapter:
    """Undo and redo the rotation of one model's keys.

    Differentiable in the keys; the angles are constants. Layers that do not rotate pass through.

    Args:
        rotary: The family's rotary embedding with its frequencies, or None for a family without one.
        rotation: The family's `apply_rotary_pos_emb`, or None.
        layer_types: Entry of `config.layer_types` for each layer, None where the family does not tell them apart.
        rope_layers: For each layer whether its keys are rotated.
    """

    def __init__(
        self,
        rotary: nn.Module | None,
        rotation: Rotation | None,
        layer_types: tuple[str | None, ...],
        rope_layers: tuple[bool, ...],
    ) -> None:
        """Keep the parts; see the class for the arguments."""
        self.rope_layers = rope_layers
        self._rotary, self._rotation, self._layer_types = rotary, rotation, layer_types
        self._typed = rotary is not None and "layer_type" in inspect.signature(rotary.forward).parameters
        self._angles: tuple[_Angles, ...] = ()
        self._widths: dict[tuple[int, int], int] = {}

    def undo(self, layer: int, keys: Tensor, positions: Tensor) -> Tensor:
        """Return the keys as they were before RoPE.

        Args:
            layer: Index of the layer.
            keys: [H, T, D] float, as cached.
            positions: [T] int64, original positions.

        Returns:
            [H, T, D] float32; shares memory with `keys` where a float32 layer passes through.

        Raises:
            InputError: The layer does not exist or the keys do not fit the rotary embedding.
        """
        return self._turn(layer, keys, positions, undo=True)

    def redo(self, layer: int, keys: Tensor, positions: Tensor) -> Tensor:
        """Return the keys with RoPE applied: the inverse of `undo`, with the same arguments and errors."""
        return self._turn(layer, keys, positions, undo=False)

    def _turn(self, layer: int, keys: Tensor, positions: Tensor, *, undo: bool) -> Tensor:
        if not 0 <= layer < len(self.rope_layers):
            raise InputError(f"layer {layer} does not exist in a model of {len(self.rope_layers)} layers")
        keys = keys.to(torch.float32)
        if not self.rope_layers[layer] or keys.numel() == 0:
            return keys
        if keys.ndim != 3 or tuple(positions.shape) != (keys.shape[1],):
            what = f"layer {layer}: keys {tuple(keys.shape)} and positions {tuple(positions.shape)} do not fit"
            raise InputError(what)
        angles = self._angles_of(layer, positions, keys.device)
        cos, sin = angles.undo if undo else angles.redo
        size, width = keys.shape[2], self._width(keys.shape[2], cos.shape[2])
        if width == size:
            return self._rotate(keys, cos, sin)
        return torch.cat([self._rotate(keys[..., :width], cos, sin), keys[..., width:]], dim=-1)

    def _rotate(self, keys: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        assert self._rotation is not None
        batch = keys[None]
        return self._rotation(batch[:, :0], batch, cos, sin)[1][0]  # no query heads: only the keys cost time

    def _angles_of(self, layer: int, positions: Tensor, device: torch.device) -> _Angles:
        """Look the angles up, or compute them once for all layers that share positions and frequencies."""
        kind = self._layer_types[layer] if self._typed else None
        here = positions.to(device)
        for known in self._angles:
            if known.layer_type == kind and known.positions.device == device and torch.equal(known.positions, here):
                return known
        fresh = self._compute_angles(kind, here)
        self._angles = (fresh, *self._angles[: ANGLE_ENTRIES - 1])
        return fresh

    def _compute_angles(self, kind: str | None, positions: Tensor) -> _Angles:
        # Ordinary tensors even under inference_mode: they outlive the call and may meet autograd later.
        with torch.inference_mode(False), torch.no_grad():
            own = positions.detach().clone()
            cos, sin = self._evaluate(own.cpu()[None], kind)
            squared = self._evaluate(torch.zeros(1, 1, dtype=torch.int64), kind)[0].max().item() ** 2
            redo = cos.to(own.device), sin.to(own.device)
            undo = (redo[0] / squared if squared != 1 else redo[0]), redo[1] / -squared
            return _Angles(kind, own, redo, undo)

    def _evaluate(self, positions: Tensor, kind: str | None) -> tuple[Tensor, Tensor]:
        """Return cosine and sine, each [1, T, R] float32, always computed on the CPU so that devices agree."""
        assert self._rotary is not None
        like = torch.empty(0, dtype=torch.float32)
        angles = self._rotary(like, positions, kind) if kind is not None else self._rotary(like, positions)
        if not isinstance(angles, tuple):
            raise InputError(f"{type(self._rotary).__name__} does not give a cosine and a sine")
        return angles

    def _width(self, size: int, angle_size: int) -> int:
        """Return how many leading dimensions of a key of `size` rotate.

        Nothing is left of a rotated dimension when cosine and sine are zero. Some families slice the keys before they
        call their rotation, which then refuses the whole key: there the angles tell the width.
        """
        assert self._rotation is not None
        known = self._widths.get((size, angle_size))
        if known is not None:
            return known
        zero = torch.zeros(1, 1, angle_size, dtype=torch.float32)
        for width in (size, angle_size):
            key = torch.ones(1, 1, 1, width, dtype=torch.float32)
            try:
                live = self._rotation(key, key, zero, zero)[1].flatten() == 0
            except RuntimeError:
                continue
            count = int(live.sum())
            if count and live.shape[0] == width <= size and bool(live[:count].all()):
                return self._widths.setdefault((size, angle_size), count)
        raise InputError(f"keys of size {size} do not fit a rotary embedding of size {angle_size}")


def rope_of(origin: Origin) -> RopeAdapter:
    """Return the rotary embedding of the model an origin names."""
    return rope_from_config(origin.config, origin.rope_layers)


def rope_from_config(config: Mapping[str, Any], rope_layers: tuple[bool, ...]) -> RopeAdapter:
    """Build the adapter of a model from its configuration alone.

    Args:
        config: The model's configuration as in `Origin.config`.
        rope_layers: For each layer whether its keys are to be turned.

    Raises:
        InputError: The configuration is not understood, or a layer is to be turned that this package cannot turn.
    """
    return _cached_adapter(_canonical(config), tuple(bool(layer) for layer in rope_layers))


def rotatable_layers(config: Mapping[str, Any], layers: int) -> tuple[bool, ...]:
    """Return for each of `layers` whether its keys could be turned, going by the configuration.

    Frequencies that change with the length of the session (dynamic, longrope) cannot: a cache may hold both kinds.
    """
    parsed = parse_config(_canonical(config))
    if rotary_parts(parsed) is None:
        return (False,) * layers
    return tuple(_steady(parsed, kind) for kind in _layer_types(parsed, layers))


@functools.lru_cache(maxsize=8)
def _cached_adapter(text: str, rope_layers: tuple[bool, ...]) -> RopeAdapter:
    if not any(rope_layers):
        return RopeAdapter(None, None, (None,) * len(rope_layers), rope_layers)
    config = parse_config(text)
    parts, kinds = rotary_parts(config), _layer_types(config, len(rope_layers))
    if parts is None:
        raise InputError(f"model type {config.model_type!r} has no rotary embedding to undo", "The file may be damaged")
    for layer, (wanted, kind) in enumerate(zip(rope_layers, kinds, strict=True)):
        if wanted and not _steady(config, kind):
            what = f"layer {layer}: rope type {_rope_type(config, kind)!r} depends on the length and cannot be undone"
            raise InputError(what, "Record the session again with this version")
    return RopeAdapter(*parts, kinds, rope_layers)


def _canonical(config: Mapping[str, Any]) -> str:
    try:
        return json.dumps(dict(config), sort_keys=True)
    except (TypeError, ValueError) as error:
        raise InputError(f"the model configuration is not JSON ({error})") from error


@functools.lru_cache(maxsize=8)
def parse_config(text: str) -> PreTrainedConfig:
    """Return the text decoder's configuration object for a configuration given as JSON text."""
    try:
        fields = json.loads(text)
        config = AutoConfig.for_model(fields.pop("model_type"), **fields).get_text_config(decoder=True)
        config.allow_global_per_layer_attribute_access = True  # where layers differ, one of their sizes is enough here
        heads = max(int(getattr(config, "num_attention_heads", None) or 1), 1)
        size = getattr(config, "head_dim", None) or (getattr(config, "hidden_size", None) or heads) // heads
    except Exception as error:  # the constructors of some hundred families raise whatever they like
        reason = str(error).partition("\n")[0]
        what = f"the model configuration is not understood ({type(error).__name__}: {reason})"
        raise InputError(what, "Check the model type and the installed version of transformers") from error
    if not isinstance(size, int) or not 0 < size <= MAX_HEAD_SIZE:
        raise InputError(f"a head size of {size} is out of range", "The file may be damaged")
    return config


def rotary_parts(config: PreTrainedConfig) -> tuple[nn.Module, Rotation] | None:
    """Return a fresh rotary embedding on the CPU and the family's rotation, or None where there is no such pair."""
    if type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING:
        return None
    module = sys.modules[MODEL_FOR_CAUSAL_LM_MAPPING[type(config)].__module__]
    classes: list[Any] = [
        item
        for name, item in vars(module).items()
        if name.endswith("RotaryEmbedding") and inspect.isclass(item) and item.__module__ == module.__name__
    ]
    rotation = getattr(module, ROTATION_NAME, None)
    if len(classes) != 1 or rotation is None:
        return None
    try:
        with torch.inference_mode(False), torch.device("cpu"):
            return classes[0](config=config), _of_pairs(rotation)
    except Exception as error:  # as above: a configuration from a file meets code that trusts it
        raise InputError(f"the rotary embedding cannot be built ({type(error).__name__}: {error})") from error


def turns_one(rotation: Callable[..., Any]) -> bool:
    """Return whether a family's rotation takes one tensor, queries or keys, and not both."""
    return list(inspect.signature(rotation).parameters)[1:2] == ["cos"]


def _of_pairs(rotation: Callable[..., Any]) -> Rotation:
    """Return a rotation of queries and keys, whichever way the family spells it."""
    if not turns_one(rotation):
        return rotation
    return lambda queries, keys, cos, sin: (queries, rotation(keys, cos, sin))


def _layer_types(config: PreTrainedConfig, layers: int) -> tuple[str | None, ...]:
    kinds = getattr(config, "layer_types", None)
    return tuple(kinds) if kinds is not None and len(kinds) == layers else (None,) * layers


def _rope_type(config: PreTrainedConfig, kind: str | None) -> str | None:
    """Return the rope type of a layer of this kind, None where such a layer does not rotate."""
    rope: Any = getattr(config, "rope_parameters", None)
    if isinstance(rope, Mapping) and kind in rope:
        rope = rope[kind]
    return str(rope.get("rope_type", "default")) if isinstance(rope, Mapping) else None


def _steady(config: PreTrainedConfig, kind: str | None) -> bool:
    name = _rope_type(config, kind)
    return name is not None and is_steady(name)
