"""CacheGen: differences to anchor tokens in layer-tiered bins, entropy-coded with tables profiled offline.

Y. Liu, H. Li, Y. Cheng, S. Ray, Y. Huang, Q. Zhang, K. Du, J. Yao, S. Lu, G. Ananthanarayanan, M. Maire, H. Hoffmann,
A. Holtzman, J. Jiang, "CacheGen: KV Cache Compression and Streaming for Fast Large Language Model Serving", SIGCOMM
2024, arXiv 2310.07240. Of every 10 tokens the first is the anchor, quantised to 8 bits; the others are coded as their
difference to it (here to the decoded anchor, so that errors do not add up). Early layers get finer bins. Every layer
and channel has frequency tables of its own, one for anchors and one for differences, counted once on calibration
sessions.

Bins and scaling are those of the authors' code in LMCache: 32 bins for the keys of the first 10 of 32 layers and the
values of the first 2, 16 elsewhere, here as fractions of the layers; a token's vector over all channels of a layer is
scaled by its largest magnitude, kept in float16. That code codes the vectors themselves instead of differences, so it
is a second family here, "cachegen-lmcache"; with the tables profiled offline, where the code puts those of every chunk
into the file. Quality levels multiply the number of bins.

What differs: asymmetric numeral systems instead of an arithmetic coder, at the same length; a channel's counts are
smoothed by those of all channels.

```
symbols    the coder's 32-bit words; tensor by tensor, in it channel by channel, in it the anchors, then the others
scales     [T] of each tensor: keys and values of each layer in turn
```
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import constriction
import numpy as np
import numpy.typing as npt

from kvcompress.errors import FormatError, InputError
from kvcompress.format.container import Encoded
from kvcompress.format.strict_json import canonical_json
from kvcompress.snapshot import KVSnapshot, ModelFingerprint
from kvcompress_eval.baselines.bitpacking import (
    Reals,
    Scales,
    pack_scales,
    read_scales,
    rounded_up,
    scale_type,
    section_reader,
)
from kvcompress_eval.baselines.protocol import Baseline, Calibration
from kvcompress_eval.baselines.raw16 import as_reals, cache_tensors, closed, opened, rebuilt

Ints = npt.NDArray[np.int32]
Counts = npt.NDArray[np.int64]
Table = npt.NDArray[np.uint16]

GROUP_TOKENS = 10
ANCHOR_MOST = 127
QUALITIES = (0.25, 0.5, 1, 2, 4)
FINE_BINS, COARSE_BINS = 32, 16
FINE_KEYS, FINE_VALUES = 10 / 32, 2 / 32  # the share of layers, from the first, with fine bins
TABLE_TOTAL = 1 << 16
POOLED_COUNTS = 16  # how many tokens' worth of trust the histogram of all channels gets


@dataclass(frozen=True, slots=True, eq=False)
class Quantized:
    """One tensor as symbols.

    Attributes:
        anchors: [A, channels] int32 in -127..127.
        others: [T - A, channels] int32 in -most..most, where `most` follows from the number of bins.
        scales: [T] float16 or float32, the step of each token, in the order of the tokens.
    """

    anchors: Ints
    others: Ints
    scales: Scales


def tensor_bins(layers: int, quality: float) -> list[int]:
    """Return the number of bins of each tensor, keys and values of each layer in turn."""
    bins = []
    for layer in range(layers):
        for share in (FINE_KEYS, FINE_VALUES):
            fine = layer < max(1, round(share * layers))
            bins.append(int(quality * (FINE_BINS if fine else COARSE_BINS)))
    return bins


def most_of(bins: int) -> int:
    """Return the largest symbol: a number of bins, one of them around zero, is rounded down to an odd one."""
    return bins // 2 - 1


def anchor_mask(tokens: int, group_tokens: int) -> npt.NDArray[np.bool_]:
    """Return which of [tokens] are anchors; none with groups of 0 tokens."""
    return np.arange(tokens) % group_tokens == 0 if group_tokens else np.zeros(tokens, dtype=bool)


def quantize(numbers: Reals, most: int, group_tokens: int) -> Quantized:
    """Quantise [T, channels], token by token.

    Args:
        numbers: [T, channels].
        most: Largest symbol of what is no anchor.
        group_tokens: Tokens that share an anchor, or 0.
    """
    dtype = scale_type(2 * numbers)  # a difference is at most twice as large as any number
    is_anchor = anchor_mask(len(numbers), group_tokens)
    steps = np.zeros(len(numbers), dtype=dtype)
    anchors, steps[is_anchor] = _quantize_rows(numbers[is_anchor], ANCHOR_MOST, dtype)
    decoded = anchors * steps[is_anchor].astype(np.float64)[:, None]
    rest = numbers[~is_anchor] - _predictions(decoded, is_anchor, group_tokens)
    others, steps[~is_anchor] = _quantize_rows(rest, most, dtype)
    return Quantized(anchors, others, steps)


def dequantize(anchors: Ints, others: Ints, steps: Reals, group_tokens: int) -> Reals:
    """Return the numbers [T, channels] of symbols and steps [T]."""
    is_anchor = anchor_mask(len(steps), group_tokens)
    numbers = np.zeros((len(steps), anchors.shape[1]))
    numbers[is_anchor] = decoded = anchors * steps[is_anchor][:, None]
    numbers[~is_anchor] = others * steps[~is_anchor][:, None] + _predictions(decoded, is_anchor, group_tokens)
    return numbers


def integer_tables(counts: Counts) -> Table:
    """Return tables [channels, symbols] that sum to 65,536 a channel and give every symbol at least 1.

    A channel's own counts are joined by those of all channels with the weight of 16 tokens, so that a symbol which a
    channel happened not to show is not taken for impossible.
    """
    channels, size = counts.shape
    pooled = counts.sum(0) + 1 / size
    weights = counts + POOLED_COUNTS * pooled / pooled.sum()
    table: Counts = 1 + np.floor(weights / weights.sum(1, keepdims=True) * (TABLE_TOTAL - size)).astype(np.int64)
    table[np.arange(channels), table.argmax(1)] += TABLE_TOTAL - table.sum(1)
    return table.astype(np.uint16)


class Profile:
    """Counts the symbols of calibration caches for one setting.

    Args:
        quality: Multiplies the number of bins.
        group_tokens: Tokens that share an anchor, or 0.
    """

    def __init__(self, quality: float, group_tokens: int) -> None:
        self.quality, self.group_tokens = quality, group_tokens
        self.counts: list[tuple[Counts, Counts]] = []

    def add(self, snapshot: KVSnapshot) -> None:
        """Count one cache."""
        bins = tensor_bins(len(snapshot.layers), self.quality)
        for index, (tensor, wide) in enumerate(zip(cache_tensors(snapshot), bins, strict=True)):
            numbers, most = _rows(as_reals(tensor)), most_of(wide)
            found = quantize(numbers, most, self.group_tokens)
            pair = (_histogram(found.anchors, ANCHOR_MOST), _histogram(found.others, most))
            if index < len(self.counts):
                pair = (pair[0] + self.counts[index][0], pair[1] + self.counts[index][1])
                self.counts[index] = pair
            else:
                self.counts.append(pair)

    def tables(self) -> list[tuple[Table, Table]]:
        """Return the tables for anchors and others of each tensor; without anchors that table is empty."""
        none = np.zeros((0, 0), dtype=np.uint16)
        return [
            (integer_tables(anchors) if self.group_tokens else none, integer_tables(others))
            for anchors, others in self.counts
        ]


class CacheGen:
    """CacheGen at one quality level, with the tables of one model.

    Args:
        name: Name of the point.
        family: Name of its curve.
        profile: The settings and what was counted under them.
        model: Fingerprint of the model that was profiled.
    """

    kind = "cachegen"

    def __init__(self, name: str, family: str, profile: Profile, model: ModelFingerprint) -> None:
        self.name, self.family, self.model = name, family, model
        self.group_tokens, self.tables = profile.group_tokens, profile.tables()
        self.most = [most_of(bins) for bins in tensor_bins(len(self.tables) // 2, profile.quality)]
        self.settings: Mapping[str, Any] = {"group_tokens": profile.group_tokens, "quality": profile.quality}
        self.codec_bytes = sum(table.nbytes for pair in self.tables for table in pair)
        digest = hashlib.sha256(canonical_json([self.kind, self.settings, asdict(model)]))
        for table in (table for pair in self.tables for table in pair):
            digest.update(repr(table.shape).encode() + table.astype("<u2").tobytes())
        self._fingerprint = digest.hexdigest()

    @property
    def fingerprint(self) -> str:
        """sha256 over settings, model and tables."""
        return self._fingerprint

    def encode(self, snapshot: KVSnapshot) -> Encoded:
        """Code a snapshot.

        Raises:
            MismatchError: It comes from another model than the one that was profiled.
            InputError: Its layers have other shapes.
        """
        self.model.require_match(snapshot.origin.fingerprint)
        tensors = cache_tensors(snapshot)
        if [tensor.shape[0] * tensor.shape[2] for tensor in tensors] != self._channels():
            raise InputError("the cache's layers have another shape than those whose symbols were counted")
        parts = [
            quantize(_rows(as_reals(tensor)), most, self.group_tokens)
            for tensor, most in zip(tensors, self.most, strict=True)
        ]
        coder = constriction.stream.stack.AnsCoder()
        for tensor, kind, channel in reversed(self._order([len(part.scales) for part in parts])):
            symbols = (parts[tensor].anchors, parts[tensor].others)[kind][:, channel]
            zero = (ANCHOR_MOST, self.most[tensor])[kind]
            coder.encode_reverse(symbols + np.int32(zero), _model(self.tables[tensor][kind][channel]))
        words = coder.get_compressed().astype("<u4").tobytes()
        scales = b"".join(pack_scales(part.scales) for part in parts)
        return closed(self, snapshot, {"symbols": words, "scales": scales})

    def decode(self, encoded: Encoded) -> KVSnapshot:
        """Return the snapshot.

        Raises:
            MismatchError: Another codec, other tables or other settings made the file.
            FormatError: It is damaged.
        """
        session = opened(self, encoded, ["symbols", "scales"])
        if [heads * size for heads, _, size in session.shapes] != self._channels():
            raise FormatError("the file's shapes are not those of its codec")
        scales = section_reader(encoded.sections, "scales")
        steps = [read_scales(scales, (tokens,)) for _, tokens, _ in session.shapes]
        scales.require_end()
        symbols = self._decode_symbols(encoded.sections["symbols"], [len(part) for part in steps])
        parts = []
        for (anchors, others), part, (heads, tokens, size) in zip(symbols, steps, session.shapes, strict=True):
            numbers = dequantize(anchors, others, part, self.group_tokens)
            parts.append(numbers.reshape(tokens, heads, size).transpose(1, 0, 2))
        return rebuilt(session, parts)

    def _channels(self) -> list[int]:
        return [len(others) for _, others in self.tables]

    def _order(self, tokens: Sequence[int]) -> list[tuple[int, int, int]]:
        """Return (tensor, 0 for anchors or 1 for others, channel) of every run of symbols, in the order of decoding.

        Args:
            tokens: Number of tokens of each tensor.
        """
        runs = []
        for tensor, (count, channels) in enumerate(zip(tokens, self._channels(), strict=True)):
            anchors = int(anchor_mask(count, self.group_tokens).sum())
            kinds = [kind for kind, rows in enumerate((anchors, count - anchors)) if rows]
            runs += [(tensor, kind, channel) for channel in range(channels) for kind in kinds]
        return runs

    def _decode_symbols(self, data: bytes, tokens: Sequence[int]) -> list[tuple[Ints, Ints]]:
        """Return anchors [A, channels] and others [T - A, channels] of each tensor."""
        if len(data) % 4:
            raise FormatError("the symbol stream is cut", offset=len(data))
        found = []
        for count, channels in zip(tokens, self._channels(), strict=True):
            anchors = int(anchor_mask(count, self.group_tokens).sum())
            found.append((np.zeros((anchors, channels), np.int32), np.zeros((count - anchors, channels), np.int32)))
        try:
            coder = constriction.stream.stack.AnsCoder(np.frombuffer(data, "<u4").astype(np.uint32))
            for tensor, kind, channel in self._order(tokens):
                rows, zero = found[tensor][kind], (ANCHOR_MOST, self.most[tensor])[kind]
                rows[:, channel] = coder.decode(_model(self.tables[tensor][kind][channel]), len(rows)) - zero
        except (ValueError, AssertionError) as error:
            raise FormatError("the symbol stream does not decode", offset=0) from error
        if not coder.is_empty():
            raise FormatError("the symbol stream holds more than its symbols", offset=len(data))
        return found


def family(calibration: Calibration) -> list[Baseline]:
    """Profile the calibration sessions and return every quality level, with anchors and as in LMCache.

    Raises:
        InputError: There is no calibration session.
    """
    profiles = {("cachegen", quality): Profile(quality, GROUP_TOKENS) for quality in QUALITIES}
    profiles |= {("cachegen-lmcache", quality): Profile(quality, 0) for quality in QUALITIES}
    model = None
    for snapshot in calibration.snapshots():
        model = snapshot.origin.fingerprint
        for profile in profiles.values():
            profile.add(snapshot)
    if model is None:
        raise InputError("there is no calibration session to count symbols in", "Give at least one")
    return [CacheGen(f"{curve}-x{quality:g}", curve, found, model) for (curve, quality), found in profiles.items()]


def _quantize_rows(rows: Reals, most: int, dtype: npt.DTypeLike) -> tuple[Ints, Scales]:
    """Return symbols of rows [n, channels] and the step of each row [n], rounded up so that nothing is clipped."""
    steps = rounded_up(np.abs(rows).max(1, initial=0.0) / most, dtype)
    divisor = np.where(steps > 0, steps, 1).astype(np.float64)[:, None]
    return np.clip(np.rint(rows / divisor), -most, most).astype(np.int32), steps


def _predictions(decoded: Reals, is_anchor: npt.NDArray[np.bool_], group_tokens: int) -> Reals | float:
    """Return for every token that is no anchor [T - A, channels] its decoded anchor; 0 where there are none."""
    if not group_tokens:
        return 0.0
    predictions: Reals = np.repeat(decoded, group_tokens, axis=0)[: len(is_anchor)][~is_anchor]
    return predictions


def _rows(numbers: Reals) -> Reals:
    """Return [H, T, D] as [T, H * D]."""
    heads, tokens, size = numbers.shape
    return numbers.transpose(1, 0, 2).reshape(tokens, heads * size)


def _histogram(symbols: Ints, most: int) -> Counts:
    """Count symbols [n, channels] in -most..most: [channels, 2 * most + 1]."""
    channels, size = symbols.shape[1], 2 * most + 1
    flat = symbols + most + np.arange(channels) * size
    return np.bincount(flat.ravel(), minlength=channels * size).reshape(channels, size)


def _model(table: Table) -> constriction.stream.model.Categorical:
    """Return the coder's model of a table; its counts sum to a power of two, so the division is exact."""
    return constriction.stream.model.Categorical(table.astype(np.float64) / TABLE_TOTAL, perfect=False)
