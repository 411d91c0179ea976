"""KVTC's transform: principal axes of all layers' keys, and of their values, learned from calibration sessions."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass

import torch
from torch import Tensor

from kvcompress.errors import InputError
from kvcompress.hf.channels import LayerShape, from_channels, layer_shapes, to_channels
from kvcompress.hf.rope import rope_of
from kvcompress.snapshot import KVSnapshot, LayerKV, ModelFingerprint, Origin
from kvcompress_eval.baselines.protocol import Calibration

HELD_OUT = 4  # every fourth session measures what the axes of the others leave
MOST_ROWS = 16384
MOST_CHANNELS = 8192  # of keys or of values: the covariance grows with the square
WIDE_CHANNELS = 2048  # above, it is solved in float32 and in place: 5,760 channels then take half a minute and 1 GB


@dataclass(frozen=True, slots=True, eq=False)
class Axes:
    """Mean and principal axes of keys or of values, as stored: bfloat16 numbers held as float32.

    Attributes:
        mean: [C].
        basis: [R, C], largest variance first.
        analysis: [C, R], the pseudo-inverse of `basis`; only an encoder needs it, and it can make it again.
    """

    mean: Tensor
    basis: Tensor
    analysis: Tensor

    def analyse(self, channels: Tensor) -> Tensor:
        """Return latents [T, R] of channels [T, C]."""
        return (channels - self.mean) @ self.analysis

    def synthesise(self, latents: Tensor) -> Tensor:
        """Return channels [T, C] of the leading latents [T, r], r <= R."""
        return torch.addmm(self.mean, latents, self.basis[: latents.shape[1]])


@dataclass(frozen=True, slots=True, eq=False)
class Transform:
    """KVTC's transform of one model: axes of keys and axes of values, all layers together.

    Attributes:
        model: Whose caches it transforms.
        shapes: For each layer its heads and head sizes.
        axes: Of keys and of values.
    """

    model: ModelFingerprint
    shapes: tuple[LayerShape, ...]
    axes: tuple[Axes, Axes]

    def require_compatible(self, snapshot: KVSnapshot) -> None:
        """Raise `MismatchError` or `InputError` where the snapshot is not one that this transform takes."""
        self.model.require_match(snapshot.origin.fingerprint)
        if layer_shapes(snapshot) != self.shapes:
            raise InputError("the cache's layers have another shape than those this codec was fitted to")
        require_joint(snapshot.origin, [layer.positions for layer in snapshot.layers])

    def analyse(self, snapshot: KVSnapshot) -> tuple[Tensor, Tensor]:
        """Return the latents [T, R] of keys and of values."""
        keys, values = split_channels(snapshot)
        return self.axes[0].analyse(keys), self.axes[1].analyse(values)

    def synthesise(self, latents: tuple[Tensor, Tensor], positions: Tensor, origin: Origin) -> tuple[LayerKV, ...]:
        """Return the layers of latents [T, r] of keys and of values at positions [T]."""
        columns = stream_columns(self.shapes)
        channels = torch.empty(len(positions), sum(shape.channels for shape in self.shapes))
        for axes, column, part in zip(self.axes, columns, latents, strict=True):
            channels[:, column] = axes.synthesise(part)
        indices = range(len(self.shapes))
        layers = from_channels(channels, indices, self.shapes, positions, rope_of(origin), origin.dtype)
        return tuple(layers[index] for index in indices)

    def update_digest(self, digest: hashlib._Hash, ranks: tuple[int, int]) -> None:
        """Add model, geometry, means and the leading axes to a digest."""
        geometry = {"model": asdict(self.model), "shapes": [asdict(shape) for shape in self.shapes], "ranks": ranks}
        digest.update(json.dumps(geometry, sort_keys=True).encode())
        for axes, rank in zip(self.axes, ranks, strict=True):
            for tensor in (axes.mean, axes.basis[:rank]):
                digest.update(tensor.bfloat16().contiguous().view(torch.uint8).numpy().tobytes())

    def size_bytes(self, ranks: tuple[int, int]) -> int:
        """Return the bytes of means and leading axes in bfloat16."""
        return sum(2 * axes.mean.numel() * (1 + rank) for axes, rank in zip(self.axes, ranks, strict=True))


def stream_columns(shapes: Sequence[LayerShape]) -> tuple[Tensor, Tensor]:
    """Return which columns of `to_channels` are keys and which are values, int64."""
    is_key = [torch.arange(s.channels) < s.heads * s.key_size for s in shapes]
    flags = torch.cat(is_key)
    return torch.nonzero(flags)[:, 0], torch.nonzero(~flags)[:, 0]


def split_channels(snapshot: KVSnapshot) -> tuple[Tensor, Tensor]:
    """Return keys before RoPE [T, Ck] and values [T, Cv] float32, all layers and heads of a token side by side."""
    channels = to_channels(snapshot, range(len(snapshot.layers)), rope_of(snapshot.origin))
    keys, values = stream_columns(layer_shapes(snapshot))
    return channels[:, keys], channels[:, values]


def require_joint(origin: Origin, positions: Sequence[Tensor]) -> None:
    """Raise `InputError` unless every layer holds the same tokens: KVTC joins them to one vector."""
    for index, (kind, place) in enumerate(zip(origin.layer_kinds, positions, strict=True)):
        if kind != "full_attention":
            what = f"layer {index} has a sliding window, and KVTC joins a token's keys of all layers to one vector"
            raise InputError(what, "Use a model whose layers all see every token")
        if not torch.equal(place, positions[0]):
            what = f"layers 0 and {index} hold different tokens, and KVTC joins a token's keys of all layers"
            raise InputError(what, "Use a cache whose layers hold the same tokens")


@dataclass(slots=True, eq=False)
class _Moments:
    """Sums over calibration rows [T, C], in float64."""

    count: int
    total: Tensor
    outer: Tensor

    def add(self, rows: Tensor) -> None:
        wide = rows.double()
        self.count += len(rows)
        self.total += wide.sum(0)
        self.outer += wide.T @ wide

    def axes(self) -> Axes:
        """Return the principal axes, no more of them than rows can span; the sums are used up."""
        if len(self.total) > WIDE_CHANNELS:
            return self._wide_axes()
        mean = self.total / self.count
        variances, vectors = torch.linalg.eigh(self.outer / self.count - torch.outer(mean, mean))
        spanned = int((variances > 1e-9 * variances[-1]).sum())
        rank = max(1, min(spanned, self.count - 1))
        basis = vectors.flip(1)[:, :rank].T.bfloat16().double()
        analysis = torch.linalg.solve(basis @ basis.T, basis).T
        return Axes(mean.bfloat16().float(), basis.float().contiguous(), analysis.float().contiguous())

    def _wide_axes(self) -> Axes:
        """Return the same of a wide covariance, where time and memory count: sums in float64, the rest in float32."""
        mean = self.total / self.count
        covariance = self.outer.div_(self.count).addr_(mean, mean, alpha=-1).float()
        self.outer = torch.zeros(0)
        variances, vectors = torch.linalg.eigh(covariance)
        spanned = int((variances > 1e-7 * variances[-1]).sum())
        rank = max(1, min(spanned, self.count - 1))
        basis = vectors.flip(1)[:, :rank].T.bfloat16().float().contiguous()
        # The axes are orthonormal but for their rounding, so this system is well conditioned.
        analysis = torch.linalg.solve(basis @ basis.T, basis).T.contiguous()
        return Axes(mean.bfloat16().float(), basis, analysis)


def fit(
    calibration: Calibration, sinks: int = 0, recent: int = 0, most_rows: int = MOST_ROWS
) -> tuple[Transform, tuple[Tensor, Tensor]]:
    """Learn the transform from calibration sessions and return it with latents that it has not seen.

    Every fourth session is kept out of the axes and gives the latents; of fewer than four, all serve both.

    Args:
        calibration: Model and sessions.
        sinks: Tokens to leave out at the start of each session.
        recent: Tokens to leave out at its end.
        most_rows: S is at most that.

    Returns:
        The transform, and latents [S, R] of keys and of values.

    Raises:
        InputError: The sessions leave fewer than two tokens, or the caches are too wide or of layers that differ.
    """
    moments: list[_Moments] = []
    kept: list[list[Tensor]] = [[], []]
    few = len(calibration.sessions) < HELD_OUT
    model, shapes = None, tuple[LayerShape, ...]()
    for number, snapshot in enumerate(calibration.snapshots()):
        require_joint(snapshot.origin, [layer.positions for layer in snapshot.layers])
        streams = split_channels(snapshot)
        if model is None:
            model, shapes = snapshot.origin.fingerprint, layer_shapes(snapshot)
            moments = [_empty_moments(rows.shape[1]) for rows in streams]
        for moment, sample, rows in zip(moments, kept, streams, strict=True):
            inner = rows[sinks : max(sinks, len(rows) - recent)]
            if few or number % HELD_OUT == HELD_OUT - 1:
                sample.append(inner)
            if few or number % HELD_OUT != HELD_OUT - 1:
                moment.add(inner)
    if model is None or moments[0].count < 2 or not sum(map(len, kept[0])):
        remedy = f"Give sessions of more than {sinks + recent + 2} tokens"
        raise InputError("the calibration sessions leave no tokens to learn from", remedy)
    transform = Transform(model, shapes, (moments[0].axes(), moments[1].axes()))
    keys, values = (
        axes.analyse(evenly(torch.cat(rows), most_rows)) for axes, rows in zip(transform.axes, kept, strict=True)
    )
    return transform, (keys, values)


def _empty_moments(channels: int) -> _Moments:
    if channels > MOST_CHANNELS:
        what = f"{channels} channels of all layers together are more than {MOST_CHANNELS}"
        raise InputError(what, "Use a smaller model: this covariance is solved in full")
    return _Moments(0, torch.zeros(channels).double(), torch.zeros(channels, channels).double())


def evenly(rows: Tensor, most: int) -> Tensor:
    """Return at most `most` rows, evenly spaced."""
    if len(rows) <= most:
        return rows
    return rows[torch.linspace(0, len(rows) - 1, most).long()]
