"""KVSnapshot: the state of one decoded sequence, validated in one place.

```
KVSnapshot
 ├── token_ids [N]                  every token seen
 ├── layers[i]: keys [H, T, D]      as the model caches them (RoPE applied)
 │              values [H, T, Dv]
 │              positions [T]       original positions; T < N where a window or pruning dropped tokens
 └── origin                         which model, which geometry, where to go on
```
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

import torch
from torch import Tensor

from kvcompress.errors import InputError, MismatchError
from kvcompress.first_calls import settle_kernels

settle_kernels()  # before any tensor is computed

CACHE_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
LAYER_KINDS = ("full_attention", "sliding_attention")


@dataclass(frozen=True, slots=True)
class ModelFingerprint:
    """Content hashes (sha256, hexadecimal) of everything that gives a cache its meaning.

    `tokenizer` is None where no tokenizer was at hand; it is compared only when both sides know it.
    """

    config: str
    weights: str
    rope: str
    tokenizer: str | None = None

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> ModelFingerprint:
        """Rebuild a fingerprint; every part must be text, the tokenizer's may be missing."""
        parts = {field.name: data[field.name] for field in fields(cls) if field.name != "tokenizer"}
        if not all(isinstance(part, str) for part in (*parts.values(), data.get("tokenizer") or "")):
            raise ValueError("a fingerprint is not text")
        return cls(**parts, tokenizer=data.get("tokenizer"))

    def shortened(self, characters: int) -> ModelFingerprint:
        """Return the first characters of each hash, as the header of a file holds them."""
        return ModelFingerprint.from_json({name: part and part[:characters] for name, part in asdict(self).items()})

    def require_match(self, other: ModelFingerprint, *, path: object = None) -> None:
        """Raise `MismatchError` naming the first part in which `other` (found) differs from self (expected)."""
        for field in fields(self):
            mine, theirs = getattr(self, field.name), getattr(other, field.name)
            if mine is not None and theirs is not None and mine != theirs:
                remedy = "Use the model and tokenizer that this cache was recorded with"
                raise MismatchError(f"the model's {field.name}", mine[:16], theirs[:16], remedy, path=path)


@dataclass(frozen=True, slots=True)
class Origin:
    """Where a snapshot comes from and how to go on.

    Attributes:
        fingerprint: Hashes of the model.
        model_type: `config.model_type` of the model.
        model_name: Last component of the path or hub name; a label only.
        config: The model's configuration as JSON, enough to rebuild its rotary embedding without weights.
        dtype: Cache data type: float32, bfloat16 or float16.
        layer_kinds: One of `LAYER_KINDS` for each layer.
        rope_layers: For each layer whether undoing and redoing RoPE was tested to reproduce its keys.
        next_position: Position of the next token to be fed.
        conversation: The messages that the tokens are of, where the tokens alone do not tell them
            (`kvcompress.data.next_turn`); None otherwise.
    """

    fingerprint: ModelFingerprint
    model_type: str
    model_name: str
    config: Mapping[str, Any]
    dtype: str
    layer_kinds: tuple[str, ...]
    rope_layers: tuple[bool, ...]
    next_position: int
    conversation: Mapping[str, Any] | None = None

    def to_json(self) -> dict[str, Any]:
        """Return a JSON-able dictionary; `from_json` is its inverse."""
        found = asdict(self)
        if self.conversation is None:  # left out, so that files without one are what they always were
            del found["conversation"]
        return found

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Origin:
        """Rebuild an origin, raising `InputError` where a field is missing or of the wrong kind."""
        try:
            origin = cls(
                fingerprint=ModelFingerprint.from_json(data["fingerprint"]),
                model_type=str(data["model_type"]),
                model_name=str(data["model_name"]),
                config=dict(data["config"]),
                dtype=str(data["dtype"]),
                layer_kinds=tuple(map(str, data["layer_kinds"])),
                rope_layers=tuple(map(bool, data["rope_layers"])),
                next_position=int(data["next_position"]),
                conversation=dict(data["conversation"]) if data.get("conversation") is not None else None,
            )
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            raise InputError(f"the origin of the snapshot is incomplete ({error})") from error
        if origin.dtype not in CACHE_DTYPES:
            raise InputError(f"unknown cache dtype {origin.dtype!r}", f"Use one of {', '.join(CACHE_DTYPES)}")
        return origin


@dataclass(frozen=True, slots=True, eq=False)
class LayerKV:
    """One layer's cache of one sequence.

    Attributes:
        keys: [H, T, D] float, RoPE applied as the model caches them.
        values: [H, T, Dv] float.
        positions: [T] int64, strictly increasing original positions.
    """

    keys: Tensor
    values: Tensor
    positions: Tensor

    def __repr__(self) -> str:
        return f"LayerKV(keys {tuple(self.keys.shape)}, values {tuple(self.values.shape)})"

    def check(self, index: int, dtype: torch.dtype) -> None:
        """Raise `InputError` on a wrong shape or dtype, on NaN or infinity, or on disordered positions."""
        where = f"layer {index}"
        if self.keys.ndim != 3 or self.values.ndim != 3 or self.keys.shape[:2] != self.values.shape[:2]:
            shapes = f"keys {tuple(self.keys.shape)} and values {tuple(self.values.shape)}"
            raise InputError(f"{where}: {shapes} are not [heads, tokens, size]")
        if self.keys.dtype != dtype or self.values.dtype != dtype:
            raise InputError(f"{where}: dtype {self.keys.dtype}/{self.values.dtype} differs from the origin's {dtype}")
        if self.positions.dtype != torch.int64 or tuple(self.positions.shape) != (self.keys.shape[1],):
            raise InputError(f"{where}: positions must be int64 of shape [{self.keys.shape[1]}]")
        if self.positions.numel() and (self.positions[0] < 0 or bool((self.positions.diff() <= 0).any())):
            raise InputError(f"{where}: positions are not strictly increasing")
        for name, tensor in (("keys", self.keys), ("values", self.values)):
            # A sum is finite only where all it adds is; where it overflows, each value is looked at.
            if not (bool(torch.isfinite(tensor.sum())) or bool(torch.isfinite(tensor).all())):
                remedy = "Record the session again; a model that overflows in this dtype may need float32 or bfloat16"
                raise InputError(f"{where}: {name} contain NaN or infinity", remedy)


@dataclass(frozen=True, slots=True, eq=False)
class KVSnapshot:
    """The complete state of one sequence; validated when built.

    Attributes:
        layers: One `LayerKV` per layer, without a batch axis.
        token_ids: [N] int64, every token seen, dropped ones too.
        origin: Model fingerprint, geometry and the position to go on from.

    Raises:
        InputError: Shapes, dtypes, counts or values are inconsistent, or a value is not finite.
    """

    layers: tuple[LayerKV, ...]
    token_ids: Tensor
    origin: Origin

    def __post_init__(self) -> None:
        """Validate all invariants."""
        counts = {len(self.layers), len(self.origin.layer_kinds), len(self.origin.rope_layers)}
        if len(counts) != 1:
            raise InputError(f"{len(self.layers)} layers do not fit an origin of {len(self.origin.layer_kinds)}")
        if self.token_ids.dtype != torch.int64 or self.token_ids.ndim != 1:
            raise InputError("token_ids must be int64 of shape [tokens]")
        if self.token_ids.numel() and int(self.token_ids.min()) < 0:
            raise InputError("token_ids must not be negative")
        dtype = CACHE_DTYPES[self.origin.dtype]
        for index, layer in enumerate(self.layers):
            layer.check(index, dtype)
            if layer.positions.numel() and int(layer.positions[-1]) >= self.origin.next_position:
                raise InputError(f"layer {index}: a position lies beyond the next position {self.origin.next_position}")

    def __repr__(self) -> str:
        size = f"{self.raw_bytes / 1e6:.1f} MB at 16 bits"
        return f"KVSnapshot({len(self.layers)} layers, {self.tokens:,} tokens, {self.origin.dtype}, {size})"

    @property
    def tokens(self) -> int:
        """Number of tokens seen."""
        return int(self.token_ids.numel())

    @property
    def lacks_tokens(self) -> bool:
        """Whether a layer with full attention holds fewer tokens than were seen."""
        kinds = zip(self.origin.layer_kinds, self.layers, strict=True)
        return any(kind == "full_attention" and len(layer.positions) != self.tokens for kind, layer in kinds)

    @property
    def values_count(self) -> int:
        """Number of cached numbers, keys and values of all layers."""
        return sum(layer.keys.numel() + layer.values.numel() for layer in self.layers)

    @property
    def raw_bytes(self) -> int:
        """Size of the cache at 16 bits a number: the numerator of every size ratio."""
        return 2 * self.values_count
