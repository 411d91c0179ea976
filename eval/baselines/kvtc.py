"""KVTC: principal components of all layers' keys, and of their values, in blocks of 0 to 8 bits, under DEFLATE.

After "KV Cache Transform Coding for Compact Storage in LLM Inference" (Staniszewski and Lancucki, arXiv 2511.01815).

```
                 ┌─ sinks, recent ─────────────────────────────────► 16 bits as they are
layers ──────────┤              ┌─ keys, RoPE undone ─┐
                 └─ the others ─┤                     ├─► - mean ─► principal axes ─► blocks of bits ─► DEFLATE
                                └─ values ────────────┘
```
What differs from the paper, all of it in its favour or for want of a statement there:

- Scale and shift take 8 bits each, the 16 bits a block that the allocation counts. At 16 bits each they would leave a
  quarter more squared error at the same budget.
- An encoder may narrow a block's range where that lowers its squared error.
- One budget is divided between keys and values so that their squared errors add up to the least.
- The covariance is solved exactly instead of by a randomised method; in float32 where it is wide.
- Latents are least-squares coordinates on the axes as they are stored, rounded to bfloat16.
"""

from __future__ import annotations

import hashlib
import json
import zlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass

import torch
from torch import Tensor

from eval.baselines.eviction import pack_kept, require_own, select, unpack_kept
from eval.baselines.kvtc_allocation import (
    Block,
    block_bytes,
    block_unit,
    measured_distortions,
    pack_block,
    solve,
    split_budget,
    unpack_block,
)
from eval.baselines.protocol import Calibration, Rival
from eval.baselines.raw16 import stored_dtype, stored_in
from kvcompress.errors import FormatError, InputError
from kvcompress.format.container import Encoded
from kvcompress.format.session import encoded_session, read_session
from kvcompress.hf.channels import LayerShape, from_channels, layer_shapes, to_channels
from kvcompress.hf.rope import rope_of
from kvcompress.snapshot import KVSnapshot, LayerKV, ModelFingerprint, Origin

SINK_TOKENS, RECENT_TOKENS = 4, 128
TARGETS = (4, 8, 16, 32, 64)
"""Size ratios of the tokens between sinks and recent ones, before DEFLATE."""

DEFLATE_LEVEL = 9
HELD_OUT = 4  # every fourth session measures what the axes of the others leave
SAMPLED_TOKENS = 128
MOST_ROWS = 16384
MOST_CHANNELS = 8192  # of keys or of values: the covariance grows with the square
WIDE_CHANNELS = 2048  # above, it is solved in float32 and in place: 5,760 channels then take half a minute and 1 GB

WIDE_TARGETS = (8, 16, 32)
WIDE_ROWS = 2048
"""Tokens that spreads are measured on, of a wide cache: 11,520 latents of them take 94 MB."""

WIDE_SINKS = 1
"""A wide cache is a real model's, whose first token has massive activations: these would take axes of their own."""

MOST_BLOCK_RANK = 3072
"""Components of a wide cache that may get bits: at its QPs hardly any beyond them would get some."""


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

    def require_partner(self, snapshot: KVSnapshot) -> None:
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


Plan = tuple[tuple[Block, float], ...]
"""The blocks that are stored, each with its unit."""


class Kvtc:
    """One target of KVTC, as published.

    Args:
        transform: Fitted without sinks and recent tokens.
        target: Size ratio between sinks and recent tokens before DEFLATE.
        plans: For keys and for values the blocks that are stored.
    """

    family = "kvtc"
    kind = "kvtc"

    def __init__(self, transform: Transform, target: int, plans: tuple[Plan, Plan]) -> None:
        self.transform, self.target, self.plans = transform, target, plans
        self.name = f"kvtc-{target}x"
        ranks = _rank(plans[0]), _rank(plans[1])
        # A block is known by its size, its bits and its unit: 2, 1 and 4 bytes.
        self.codec_bytes = transform.size_bytes(ranks) + 7 * sum(map(len, plans))
        digest = hashlib.sha256(json.dumps([[[asdict(b), u] for b, u in plan] for plan in plans]).encode())
        transform.update_digest(digest, ranks)
        self._fingerprint = digest.hexdigest()

    @property
    def fingerprint(self) -> str:
        """sha256 over plans, geometry, means and axes."""
        return self._fingerprint

    @torch.inference_mode()
    def encode(self, snapshot: KVSnapshot) -> Encoded:
        """Code a snapshot.

        Raises:
            MismatchError: The snapshot comes from another model.
            InputError: It has another geometry, or its layers hold different tokens.
        """
        self.transform.require_partner(snapshot)
        tokens = len(snapshot.layers[0].positions)
        inner = _inner(tokens)
        window = [select(layer, outer_tokens(tokens)) for layer in snapshot.layers]
        parts: list[bytes] = []
        for latents, plan in zip(self.transform.analyse(snapshot), self.plans, strict=True):
            parts += [pack_block(latents[inner], block, unit) for block, unit in plan]
        stored = stored_dtype(snapshot)
        own = {"window": pack_kept(window, stored), "latents": zlib.compress(b"".join(parts), DEFLATE_LEVEL)}
        settings = {"target": self.target, "stored": stored}
        return encoded_session(self.kind, self.fingerprint, snapshot, settings, own)

    @torch.inference_mode()
    def decode(self, encoded: Encoded) -> KVSnapshot:
        """Return the snapshot of an encoded one.

        Raises:
            MismatchError: It was made by another codec or for another model.
            FormatError: A section is missing, cut or inconsistent.
        """
        require_own(encoded, self.kind, self.fingerprint, ("window", "latents"))
        token_ids, origin, positions = read_session(encoded)
        self.transform.model.require_match(origin.fingerprint)
        require_joint(origin, positions)
        place = positions[0]
        inner, outer = _inner(len(place)), outer_tokens(len(place))
        shapes = self.transform.shapes
        stored, places = stored_in(encoded, origin), [place[outer]] * len(shapes)
        window = unpack_kept(encoded.sections["window"], stored, shapes, places, origin.dtype)
        latents = self._latents(encoded.sections["latents"], inner.stop - inner.start)
        middle = self.transform.synthesise(latents, place[inner], origin)
        layers = tuple(_around(few, many, place) for few, many in zip(window, middle, strict=True))
        return KVSnapshot(layers, token_ids, origin)

    def _latents(self, data: bytes, tokens: int) -> tuple[Tensor, Tensor]:
        """Read the latents [tokens, r] of keys and of values."""
        sizes = [[block_bytes(block, tokens) for block, _ in plan] for plan in self.plans]
        content = _inflate(data, sum(map(sum, sizes)))
        start, found = 0, []
        for plan, lengths in zip(self.plans, sizes, strict=True):
            latents = torch.zeros(tokens, _rank(plan))
            for (block, unit), length in zip(plan, lengths, strict=True):
                columns = slice(block.start, block.start + block.size)
                latents[:, columns] = unpack_block(content[start : start + length], block, unit, tokens)
                start += length
            found.append(latents)
        return found[0], found[1]


def outer_tokens(tokens: int) -> Tensor:
    """Return the indices of sinks and recent tokens, int64."""
    inner = _inner(tokens)
    return torch.cat([torch.arange(inner.start), torch.arange(inner.stop, tokens)])


def _inner(tokens: int) -> slice:
    """Return the tokens between sinks and recent ones."""
    start = min(SINK_TOKENS, tokens)
    return slice(start, max(start, tokens - RECENT_TOKENS))


def _around(outer: LayerKV, inner: LayerKV, positions: Tensor) -> LayerKV:
    """Put sinks and recent tokens around the others."""
    sinks = min(SINK_TOKENS, len(positions))
    keys = torch.cat([outer.keys[:, :sinks], inner.keys, outer.keys[:, sinks:]], 1)
    values = torch.cat([outer.values[:, :sinks], inner.values, outer.values[:, sinks:]], 1)
    return LayerKV(keys, values, positions.clone())


def _rank(plan: Plan) -> int:
    return max((block.start + block.size for block, _ in plan), default=0)


def _inflate(data: bytes, size: int) -> bytes:
    """Return exactly `size` bytes of one DEFLATE stream, and nothing behind it."""
    inflate = zlib.decompressobj()
    try:
        content = inflate.decompress(data, size + 1)
    except zlib.error as error:
        raise FormatError(f"the section 'latents' cannot be decompressed ({error})") from error
    if len(content) != size or not inflate.eof or inflate.unused_data:
        raise FormatError(f"the section 'latents' does not hold the {size} bytes of its blocks")
    return content


def family(calibration: Calibration) -> list[Rival]:
    """Return KVTC at each of its targets; of a wide cache with the axes that the ideal form has as well."""
    if is_wide(calibration):
        return list(at_targets(*fitted(calibration, WIDE_SINKS), WIDE_TARGETS, MOST_BLOCK_RANK))
    return list(at_targets(*fit(calibration, SINK_TOKENS, RECENT_TOKENS)))


def is_wide(calibration: Calibration) -> bool:
    """Tell whether keys and values of all layers have so many channels that time and memory of a fit count."""
    if "wide" not in calibration.fits:
        shapes = layer_shapes(next(calibration.snapshots()))
        calibration.fits["wide"] = sum(shape.channels for shape in shapes) > 2 * WIDE_CHANNELS
    return bool(calibration.fits["wide"])


def fitted(calibration: Calibration, sinks: int) -> tuple[Transform, tuple[Tensor, Tensor]]:
    """Return what `fit` learns of a wide cache without its first tokens; fitted once for all families."""
    name = f"kvtc without {sinks}"
    if name not in calibration.fits:
        calibration.fits[name] = fit(calibration, sinks, most_rows=WIDE_ROWS)
    found: tuple[Transform, tuple[Tensor, Tensor]] = calibration.fits[name]
    return found


def at_targets(
    transform: Transform, latents: tuple[Tensor, Tensor], targets: Sequence[int] = TARGETS, most_rank: int = 1 << 30
) -> list[Kvtc]:
    """Return KVTC at size ratios, its bits allocated by what its blocks lose of latents that it has not seen.

    Args:
        transform: From `fit`.
        latents: From `fit`.
        targets: Size ratios.
        most_rank: Components that may get bits. Time and memory of the allocation go with it and the largest budget.
    """
    channels = sum(shape.channels for shape in transform.shapes)
    most_bits = 16 * channels // min(targets)
    samples = [evenly(part, SAMPLED_TOKENS)[:, :most_rank] for part in latents]
    keys, values = (solve(measured_distortions(sample), most_bits) for sample in samples)
    rivals: list[Kvtc] = []
    for target in targets:
        chosen = split_budget(keys, values, 16 * channels // target)
        plans = tuple(
            tuple((b, block_unit(part[:, b.start : b.start + b.size])) for b in blocks if b.bits)
            for blocks, part in zip(chosen, samples, strict=True)
        )
        rivals.append(Kvtc(transform, target, (plans[0], plans[1])))
    return rivals
