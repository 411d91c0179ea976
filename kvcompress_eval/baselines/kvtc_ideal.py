"""The strongest form of KVTC's transform: one step for all components, and entropy coding close to the ideal.

Keys and values have the axes of `kvcompress_eval.baselines.kvtc`, learned from all tokens of the calibration sessions.
What the paper (Staniszewski and Lancucki, arXiv 2511.01815) does after that is replaced by what rate-distortion theory
asks for:

- one quantisation step for all components of keys and values, which is reverse water-filling, with a dead zone and
  centroids; components far below the water level are not coded;
- a static table for every component, of the spread measured on sessions that the axes have not seen, under asymmetric
  numeral systems;
- nothing raw: sinks and recent tokens are coded like all others. On a model with massive activations at its sinks that
  is no advantage, so the first tokens can be had raw, as the paper has four of them.

There is no model of the tokens, no context and no weight for what the model's output cares about.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from kvcompress.format.ans import TableBank, decode_symbols, encode_symbols
from kvcompress.format.container import Encoded
from kvcompress.format.session import encoded_session, read_session
from kvcompress.snapshot import KVSnapshot, LayerKV
from kvcompress_eval.baselines.eviction import pack_kept, require_own, select, unpack_kept
from kvcompress_eval.baselines.kvtc import WIDE_SINKS, fitted, is_wide
from kvcompress_eval.baselines.kvtc_transform import Transform, fit, require_joint
from kvcompress_eval.baselines.protocol import Baseline, Calibration
from kvcompress_eval.baselines.raw16 import stored_dtype, stored_in
from tinyvae.quantize import LEVELS, LEVELS_PER_OCTAVE, LOWEST_SCALE_LOG2, dequantize, quantize
from tinyvae.tables import build_tables

SIZE_RATIOS = (4.0, 5.7, 8.0, 11.3, 16.0, 22.6, 32.0, 45.0, 64.0, 90.5)
"""Aimed at: the step is the one whose calibrated rate is 16 bits over this."""

RATES = (5.7, 8.0, 11.3, 16.0, 22.6, 32.0, 45.0, 64.0)
FEW_RATES = (5.7, 11.3, 22.6, 45.0)
"""The same for a wide cache with the first token raw, and without."""

TABLE_SAMPLES = 400_000


class Tables:
    """What the latents of unseen sessions look like: the spread of each, and one shape for all.

    Args:
        latents: [S, R] float32.
    """

    def __init__(self, latents: Tensor) -> None:
        self.deviations = latents.square().mean(0).sqrt().clamp(min=1e-12)
        pooled = (latents / self.deviations).flatten()
        pick = torch.randperm(len(pooled), generator=torch.Generator().manual_seed(0))[:TABLE_SAMPLES]
        counts, offsets, self.centroids = build_tables(pooled[pick])
        self.bank = TableBank(counts.numpy(), offsets.numpy())
        self.level_bits = torch.tensor([self._entropy_bits(level) for level in range(LEVELS)] + [0.0])

    def levels(self, step: float) -> Tensor:
        """Return the level [R] int32 of each latent at a step; -1 where it is not coded."""
        octaves = torch.log2(self.deviations / step) - LOWEST_SCALE_LOG2
        return (LEVELS_PER_OCTAVE * octaves).round().clamp(-1, LEVELS - 1).int()

    def token_bits(self, step: float) -> float:
        """Return the calibrated rate of a token at a step."""
        return float(self.level_bits[self.levels(step).long()].sum())

    def step_for(self, token_bits: float) -> float:
        """Return the step of a rate, by bisection."""
        low, high = float(self.deviations.min()) / 256, float(self.deviations.max()) * 256
        for _ in range(60):
            middle = (low * high) ** 0.5
            low, high = (middle, high) if self.token_bits(middle) > token_bits else (low, middle)
        return high

    def _entropy_bits(self, level: int) -> float:
        counts = self.bank.counts[self.bank.offsets[level] : self.bank.offsets[level + 1]].astype(np.float64)
        share = counts / counts.sum()
        return float(-(share * np.log2(share)).sum())


class KvtcIdeal:
    """One step of the ideal form.

    Args:
        transform: Fitted on all tokens.
        tables: Of its latents, those of keys and then those of values.
        size_ratio: Aimed at, raw tokens not counted.
        sinks: Tokens at the start that are stored raw; transform and tables were then fitted without them.
    """

    kind = "kvtc-ideal"

    def __init__(self, transform: Transform, tables: Tables, size_ratio: float, sinks: int = 0) -> None:
        self.transform, self.tables, self.sinks = transform, tables, sinks
        self.family = f"kvtc-ideal-sink{sinks}" if sinks else "kvtc-ideal"
        self.name = f"{self.family}-{size_ratio:g}x"
        channels = sum(shape.channels for shape in transform.shapes)
        self.step = tables.step_for(16 * channels / size_ratio)
        levels = tables.levels(self.step)
        self.coded = torch.nonzero(levels >= 0)[:, 0]
        self.levels = levels[self.coded]
        used = sorted(set(self.levels.tolist()))
        keys = transform.axes[0].basis.shape[0]
        coded_keys = int((self.coded < keys).sum())
        coded_values = len(self.coded) - coded_keys
        # Each coded axis with its level in a byte; of each table in use its counts at 2 bytes and two centroids at 4.
        entries = sum(int(tables.bank.offsets[level + 1] - tables.bank.offsets[level]) for level in used)
        self.codec_bytes = transform.size_bytes((coded_keys, coded_values)) + len(self.coded) + 2 * entries
        self.codec_bytes += 8 * len(used)
        self._fingerprint = self._digest()

    @property
    def fingerprint(self) -> str:
        """sha256 over step, levels, tables, centroids, geometry, means and axes."""
        return self._fingerprint

    def _digest(self) -> str:
        raw = [self.sinks] if self.sinks else []
        digest = hashlib.sha256(json.dumps([self.step, self.coded.tolist(), self.levels.tolist(), *raw]).encode())
        for array in (self.tables.bank.counts, self.tables.bank.offsets, self.tables.centroids.numpy()):
            digest.update(np.ascontiguousarray(array).tobytes())
        keys, values = (axes.basis.shape[0] for axes in self.transform.axes)
        self.transform.update_digest(digest, (keys, values))
        return digest.hexdigest()

    def symbols(self, snapshot: KVSnapshot) -> Tensor:
        """Return the symbols [T, coded] int32 of a snapshot."""
        latents = torch.cat(self.transform.analyse(snapshot), 1)[:, self.coded]
        return quantize(latents, self.step, self.levels)

    @torch.inference_mode()
    def encode(self, snapshot: KVSnapshot) -> Encoded:
        """Code a snapshot.

        Raises:
            MismatchError: The snapshot comes from another model.
            InputError: It has another geometry, or its layers hold different tokens.
        """
        self.transform.require_compatible(snapshot)
        symbols = self.symbols(snapshot)[self.sinks :]
        own = {"latents": encode_symbols(symbols.numpy(), self._all_levels(len(symbols)), self.tables.bank)}
        settings: dict[str, Any] = {"step": self.step}
        if self.sinks:
            settings["stored"] = stored_dtype(snapshot)
            first = torch.arange(min(self.sinks, len(snapshot.layers[0].positions)))
            own["window"] = pack_kept([select(layer, first) for layer in snapshot.layers], settings["stored"])
        return encoded_session(self.kind, self.fingerprint, snapshot, settings, own)

    @torch.inference_mode()
    def decode(self, encoded: Encoded) -> KVSnapshot:
        """Return the snapshot of an encoded one.

        Raises:
            MismatchError: It was made by another codec or for another model.
            FormatError: A section is missing, cut or inconsistent.
        """
        require_own(encoded, self.kind, self.fingerprint, ("latents", *(("window",) if self.sinks else ())))
        token_ids, origin, positions = read_session(encoded)
        self.transform.model.require_match(origin.fingerprint)
        require_joint(origin, positions)
        place, keys = positions[0][self.sinks :], self.transform.axes[0].basis.shape[0]
        tokens = len(place)
        levels = self._all_levels(tokens)
        symbols = torch.from_numpy(decode_symbols(encoded.sections["latents"], levels, self.tables.bank))
        latents = torch.zeros(tokens, len(self.tables.deviations))
        steps = torch.full((tokens, 1), self.step)
        latents[:, self.coded] = dequantize(symbols, steps, torch.from_numpy(levels), self.tables.centroids)
        layers = self.transform.synthesise((latents[:, :keys], latents[:, keys:]), place, origin)
        if self.sinks:
            shapes, first = self.transform.shapes, positions[0][: self.sinks]
            window = encoded.sections["window"], stored_in(encoded, origin), shapes, [first] * len(shapes), origin.dtype
            layers = tuple(_joined(*pair) for pair in zip(unpack_kept(*window), layers, strict=True))
        return KVSnapshot(layers, token_ids, origin)

    def _all_levels(self, tokens: int) -> np.ndarray:
        return self.levels[None].expand(tokens, -1).contiguous().numpy()


def _joined(first: LayerKV, rest: LayerKV) -> LayerKV:
    """Return the tokens of two stretches of a layer, one after the other."""
    pairs = ((first.keys, rest.keys), (first.values, rest.values))
    keys, values = (torch.cat(pair, 1) for pair in pairs)
    return LayerKV(keys, values, torch.cat([first.positions, rest.positions]))


def family(calibration: Calibration) -> list[Baseline]:
    """Return the points of the curve, half an octave of the size ratio apart.

    Of a wide cache the first token is raw, and unless little is to be fitted there is a second curve without that.
    """
    if is_wide(calibration):
        forms = [(WIDE_SINKS, RATES)] if calibration.few else [(WIDE_SINKS, RATES), (0, FEW_RATES)]
        return [point for sinks, rates in forms for point in curve(*fitted(calibration, sinks), rates, sinks)]
    return list(curve(*fit(calibration), SIZE_RATIOS))


def curve(
    transform: Transform, latents: tuple[Tensor, Tensor], size_ratios: Sequence[float], sinks: int = 0
) -> list[Baseline]:
    """Return the points of a fitted transform; see `KvtcIdeal`.

    Args:
        transform: From `fit`.
        latents: From `fit`.
        size_ratios: Aimed at.
        sinks: Tokens that it was fitted without and that are stored raw.
    """
    tables = Tables(torch.cat(latents, 1))
    return [KvtcIdeal(transform, tables, size_ratio, sinks) for size_ratio in size_ratios]
