"""TurboQuant: a random rotation, then the best scalar quantiser for what a rotated vector must look like.

A. Zandieh, M. Daliri, M. Hadian, V. Mirrokni, "TurboQuant: Online Vector Quantization with Near-optimal Distortion
Rate", arXiv 2504.19874. Each head's key or value of a token is split into its length, kept in float16, and a unit
vector. After a random rotation every coordinate of that has the same known density whatever the data were, so one
fixed Lloyd-Max quantiser serves all coordinates, with nothing to fit and nothing to store.

The density is the exact one of a coordinate of a random unit vector, a shifted Beta. The Gaussian N(0, 1/d) is its
limit for large d: at d = 128 the best levels have nearly the same distortion, at the head sizes of small models (8 to
32) the true density is narrower and the exact levels are better.

What differs from the paper: the stored length is that of the vector divided by that of its quantised direction, so that
a decoded vector is exactly as long as it was. The centroids of Lloyd-Max shrink a vector, which flattens attention;
without this correction, which public implementations make as well, the KL of a resumed session of the bundled model was
about 2.5 times as high at 2 and at 4 bits, in the mean over six rotations. Every head of every tensor has a rotation
of its own: with one for all, as the paper writes it, the mean over seeds was no better and a single seed could be three
times as bad as the others. The second stage for unbiased inner products, one bit a coordinate of a random projection
(QJL), is left out, as in the implementations that found it to hurt: this is the paper's quantiser for least squared
error. Bits are whole numbers; the paper's 2.5 and 3.5 bits mix two of them over the channels.

```
codes      keys [H, T, D], values [H, T, Dv] of each layer, packed
scales     lengths [H, T] of each of them
```
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from typing import Any

import numpy as np

from kvcompress.format.container import Encoded
from kvcompress.snapshot import KVSnapshot
from kvcompress_eval.baselines.bitpacking import (
    Codes,
    Reals,
    Scales,
    nearest,
    pack_bits,
    pack_scales,
    read_codes,
    read_scales,
    scale_type,
    section_reader,
)
from kvcompress_eval.baselines.lloyd_max import sphere_levels
from kvcompress_eval.baselines.protocol import Baseline, Calibration
from kvcompress_eval.baselines.raw16 import as_reals, cache_tensors, closed, opened, rebuilt

BITS = (1, 2, 3, 4)
SEED = 0


@lru_cache(maxsize=256)
def rotations(tensor: int, heads: int, size: int) -> Reals:
    """Return the fixed random rotations [heads, size, size] of a tensor, uniform over all orthogonal matrices.

    The factor Q of a Gaussian matrix is uniform once the signs of R's diagonal have been moved into it (F. Mezzadri,
    "How to generate random matrices from the classical compact groups", 2007).

    Args:
        tensor: Which tensor of the cache; keys and values of each layer in turn.
        heads: Number of heads.
        size: Head size.
    """
    gaussian = np.random.default_rng([SEED, tensor]).standard_normal((heads, size, size))
    orthogonal, upper = np.linalg.qr(gaussian)
    signs = np.where(np.diagonal(upper, axis1=-2, axis2=-1) < 0, -1.0, 1.0)
    turned: Reals = orthogonal * signs[:, None, :]
    turned.setflags(write=False)
    return turned


def quantize_directions(vectors: Reals, turned: Reals, bits: int) -> tuple[Codes, Scales]:
    """Quantise the directions of vectors.

    Args:
        vectors: [H, T, d].
        turned: [H, d, d], the rotation of each head.
        bits: Bits a coordinate.

    Returns:
        Codes [H, T, d] uint8, and lengths [H, T], float16 or, where one is beyond that, float32; a vector of zeros has
        length 0.
    """
    levels = np.array(sphere_levels(vectors.shape[-1], bits))
    norms = np.linalg.norm(vectors, axis=-1)
    rotated = vectors / np.where(norms > 0, norms, 1.0)[..., None] @ turned.swapaxes(-1, -2)
    codes = np.searchsorted((levels[1:] + levels[:-1]) / 2, rotated).astype(np.uint8)
    lengths = norms / np.linalg.norm(levels[codes], axis=-1)
    return codes, nearest(lengths, scale_type(lengths))


def dequantize_directions(codes: Codes, lengths: Reals, turned: Reals, bits: int) -> Reals:
    """Return the vectors [H, T, d] of codes [H, T, d] and lengths [H, T]."""
    levels = np.array(sphere_levels(codes.shape[-1], bits))
    vectors: Reals = lengths[..., None] * (levels[codes] @ turned)
    return vectors


class TurboQuant:
    """TurboQuant at one number of bits, the same for keys and values.

    Args:
        bits: Bits a coordinate, 1 to 8.
    """

    family = kind = "turboquant"
    fingerprint = ""
    codec_bytes = 0  # rotation and levels follow from the settings alone

    def __init__(self, bits: int) -> None:
        self.bits, self.name = bits, f"turboquant-{bits}bit"
        self.settings: Mapping[str, Any] = {"bits": bits, "seed": SEED}

    def encode(self, snapshot: KVSnapshot) -> Encoded:
        """Quantise a snapshot."""
        codes, scales = [], []
        for index, tensor in enumerate(cache_tensors(snapshot)):
            turned = rotations(index, tensor.shape[0], tensor.shape[2])
            found, lengths = quantize_directions(as_reals(tensor), turned, self.bits)
            codes.append(pack_bits(found, self.bits))
            scales.append(pack_scales(lengths))
        return closed(self, snapshot, {"codes": b"".join(codes), "scales": b"".join(scales)})

    def decode(self, encoded: Encoded) -> KVSnapshot:
        """Return the snapshot.

        Raises:
            MismatchError: Another codec or other settings made the file.
            FormatError: It is damaged.
        """
        session = opened(self, encoded, ["codes", "scales"])
        codes, scales = (section_reader(encoded.sections, name) for name in ("codes", "scales"))
        parts = []
        for index, shape in enumerate(session.shapes):
            turned, lengths = rotations(index, shape[0], shape[2]), read_scales(scales, shape[:2])
            parts.append(dequantize_directions(read_codes(codes, shape, self.bits), lengths, turned, self.bits))
        codes.require_end()
        scales.require_end()
        return rebuilt(session, parts)


def family(calibration: Calibration) -> list[Baseline]:
    """Return 1 to 4 bits; nothing is learnt from the calibration sessions."""
    return [TurboQuant(bits) for bits in BITS]
