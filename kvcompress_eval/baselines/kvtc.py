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
from dataclasses import asdict

import torch
from torch import Tensor

from kvcompress.errors import FormatError
from kvcompress.format.container import Encoded
from kvcompress.format.session import encoded_session, read_session
from kvcompress.hf.channels import layer_shapes
from kvcompress.snapshot import KVSnapshot, LayerKV
from kvcompress_eval.baselines.eviction import pack_kept, require_own, select, unpack_kept
from kvcompress_eval.baselines.kvtc_allocation import (
    Block,
    block_bytes,
    block_unit,
    measured_distortions,
    pack_block,
    solve,
    split_budget,
    unpack_block,
)
from kvcompress_eval.baselines.kvtc_transform import WIDE_CHANNELS, Transform, evenly, fit, require_joint
from kvcompress_eval.baselines.protocol import Baseline, Calibration
from kvcompress_eval.baselines.raw16 import stored_dtype, stored_in

SINK_TOKENS, RECENT_TOKENS = 4, 128
TARGETS = (4, 8, 16, 32, 64)
"""Size ratios of the tokens between sinks and recent ones, before DEFLATE."""

DEFLATE_LEVEL = 9
SAMPLED_TOKENS = 128

WIDE_TARGETS = (8, 16, 32)
WIDE_ROWS = 2048
"""Tokens that spreads are measured on, of a wide cache: 11,520 latents of them take 94 MB."""

WIDE_SINKS = 1
"""A wide cache is a real model's, whose first token has massive activations: these would take axes of their own."""

MOST_BLOCK_RANK = 3072
"""Components of a wide cache that may get bits: at its QPs hardly any beyond them would get some."""


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
        self.transform.require_compatible(snapshot)
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


def family(calibration: Calibration) -> list[Baseline]:
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
    baselines: list[Kvtc] = []
    for target in targets:
        chosen = split_budget(keys, values, 16 * channels // target)
        plans = tuple(
            tuple((b, block_unit(part[:, b.start : b.start + b.size])) for b in blocks if b.bits)
            for blocks, part in zip(chosen, samples, strict=True)
        )
        baselines.append(Kvtc(transform, target, (plans[0], plans[1])))
    return baselines
