"""A second reader of `.kvz` files, written from docs/format.md alone.

It imports nothing of the package, so what both understand the same way stands in the page. Whatever a file must not be
raises `Refused`.
"""

from __future__ import annotations

import hashlib
import json
import lzma
import re
import struct
import zlib
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import zstandard

Array = npt.NDArray[Any]
MAGIC = b"\x89KVZ\r\n\x1a\n"
MOST_HEADER_BYTES = 1_048_576
FIELDS = {
    "codec",
    "codec_fingerprint",
    "model",
    "model_name",
    "raw_bytes",
    "sections",
    "settings",
    "tokens",
}
DICTIONARY = (
    b'"unlike":true,"stored":"int8","certificate":{"kl_nats":0.00,"max_kl_nats":0.0,'
    b'"tail_tokens":"shapes":[["plan":"recompute_layers":["known",32,\x01],["exact",,\x01],["offsets",,'
    b'\x01]"settings":{"size_ratio":"quality":"usable","high","rate":{"codec":"lossless","codec_fingerprint":"",'
    b'"model":{"config":\x02,"rope":\x02,"tokenizer":null,"weights":\x02},"model_name":"","raw_bytes":,'
    b'"sections":[["tokens",,\x01],["origin",,\x01],["positions",,\x01],["cache",,\x01],["codes",,\x01],["scales",,\x01]],'
    b'"settings":{},"tokens":{"codec":"int8","codec":"tinyvae","codec_fingerprint":\x04,"model":{"config":\x02,"rope":\x02,'
    b'"tokenizer":\x02,"weights":\x02},"model_name":"","raw_bytes":,"sections":[["tokens",,\x01],["origin",32,\x01],'
    b'["latents.1",["latents.0",,\x01]],"settings":{"quality":"transparent","rate":},"tokens":1024}'
)
NUMBERS = {"float32": 4, "float16": 2, "bfloat16": 2}


class Refused(ValueError):
    """A file is not what the page says."""


def must(truth: object, what: str) -> None:
    if not truth:
        raise Refused(what)


def blake(data: bytes, size: int = 32, key: bytes = b"") -> bytes:
    return hashlib.blake2b(data, digest_size=size, key=key).digest()


def no_twins(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    must(len(dict(pairs)) == len(pairs), "a key twice")
    return dict(pairs)


def refuse_constant(name: str) -> None:
    raise Refused(name)


def parse(data: bytes) -> Any:
    try:
        return json.loads(data.decode(), object_pairs_hook=no_twins, parse_constant=refuse_constant)
    except UnicodeDecodeError as error:
        raise Refused("no UTF-8") from error


def canonical(value: Any) -> bytes:
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()


# -- the container


@dataclass
class Kvz:
    version: int
    header: dict[str, Any]
    sections: dict[str, bytes]

    @property
    def tokens(self) -> int:
        return int(self.header["tokens"])


def read_kvz(data: bytes) -> Kvz:
    must(data[:8] == MAGIC, "magic")
    must(len(data) >= 16, "length")
    version, size = struct.unpack_from("<II", data, 8)
    must(version in (1, 2), "version")
    must(size <= MOST_HEADER_BYTES and 48 + size <= len(data), "length of the header")
    packed, at = data[16 : 16 + size], 48 + size
    must(hashlib.sha256(data[: 16 + size]).digest() == data[16 + size : at], "checksum of the header")
    header = parse(unpacked(packed) if version == 2 else packed)
    must(set(header) == FIELDS, "fields")
    sections, digits = dict[str, bytes](), 16 if version == 2 else 32
    for name, count, checksum in header["sections"]:
        must(name and name not in sections and 0 <= count <= len(data) - at, "section")
        sections[name] = data[at : at + count]
        must(hashlib.sha256(sections[name]).hexdigest()[:digits] == checksum, f"checksum of {name}")
        at += count
    must(at == len(data), "end")
    return Kvz(version, header, sections)


def unpacked(packed: bytes) -> bytes:
    stream = zlib.decompressobj(-15, zdict=DICTIONARY)
    text = stream.decompress(packed, MOST_HEADER_BYTES + 1)
    must(stream.eof and len(text) <= MOST_HEADER_BYTES, "stream of the header")
    hashes, at = stream.unused_data, 0
    parts = []
    for piece in re.split(rb"([\x01-\x04])", text):
        if len(piece) == 1 and piece[0] in (1, 2, 3, 4):
            count = 8 * piece[0]
            parts.append(b'"' + hashes[at : at + count].hex().encode() + b'"')
            at += count
        else:
            parts.append(piece)
    must(at == len(hashes), "hashes")
    found = b"".join(parts)
    must(len(found) <= MOST_HEADER_BYTES, "length of the text")
    return found


# -- sections of every session


def token_ids(kvz: Kvz) -> Array:
    data, count = kvz.sections["tokens"], kvz.tokens
    kind, packed = data[0], data[1:]
    width = kind - 16 if kind > 16 else kind
    must(1 <= width <= 8, "width of ids")
    if not packed:
        raw = b""
    elif kind > 16:
        lp = (width & -width).bit_length() - 1
        how = {"id": lzma.FILTER_LZMA1, "dict_size": 1 << 20, "lc": 0, "pb": 0, "lp": lp}
        stream = lzma.LZMADecompressor(lzma.FORMAT_RAW, filters=[how])
        raw = stream.decompress(packed, width * count + 1)
        must(stream.eof and not stream.unused_data, "end of the ids")
    else:
        raw = unzstd(packed, width * count)
    must(len(raw) == width * count, "number of ids")
    wide = np.zeros((count, 8), np.uint8)
    wide[:, :width] = np.frombuffer(raw, np.uint8).reshape(count, width)
    return wide.view("<i8")[:, 0]


def unzstd(data: bytes, size: int) -> bytes:
    must(zstandard.frame_content_size(data) == size, "size of a frame")
    stream = zstandard.ZstdDecompressor().decompressobj()
    found = stream.decompress(data)
    must(stream.eof and not stream.unused_data and len(found) == size, "frame")
    return found


def inflated(data: bytes, most: int, dictionary: bytes | None = None) -> bytes:
    stream = zlib.decompressobj(15, zdict=dictionary) if dictionary else zlib.decompressobj(15)
    found = stream.decompress(data, most + 1)
    must(stream.eof and not stream.unused_data and len(found) <= most, "zlib stream")
    return found


def origin_of(kvz: Kvz, dictionary: bytes | None = None) -> dict[str, Any]:
    """`dictionary` is the canonical JSON of `origin` in the codec's config.json."""
    found: dict[str, Any] = parse(inflated(kvz.sections["origin"], 4 << 20, dictionary))
    told = {part: digest and digest[:32] for part, digest in found["fingerprint"].items()}
    must(told == kvz.header["model"], "fingerprint")
    return found


def positions_of(kvz: Kvz, layers: int) -> list[list[int]]:
    if "positions" not in kvz.sections:
        must(kvz.version == 2, "positions are missing")
        return [list(range(kvz.tokens))] * layers
    return positions(kvz.sections["positions"], layers)


def positions(data: bytes, layers: int) -> list[list[int]]:
    says = parse(inflated(data, 64 << 20))
    must(set(says) == {"layers", "lists"} and len(says["layers"]) == layers, "layers of positions")
    must(list(dict.fromkeys(says["layers"])) == list(range(len(says["lists"]))), "order of lists")
    lists = [places(one) for one in says["lists"]]
    return [lists[index] for index in says["layers"]]


def places(value: Any) -> list[int]:
    found: list[int] = []
    if isinstance(value, str):
        must(not value.endswith("0"), "end of a bitmap")
        bits = "".join(f"{int(digit, 16):04b}" for digit in value)
        return [index for index, bit in enumerate(bits) if bit == "1"]
    for start, count in value:
        must(count >= 1 and (not found or start > found[-1]), "runs")
        found += range(start, start + count)
    return found


# -- codecs


def lossless(kvz: Kvz, origin: dict[str, Any]) -> list[tuple[Array, Array]]:
    """Keys and values of each layer, [heads, tokens, size], as their bits: u16 or u32."""
    must(set(kvz.sections) - {"positions", "exact"} == {"tokens", "origin", "cache"}, "sections")
    held = [len(one) for one in positions_of(kvz, len(origin["layer_kinds"]))]
    return planes(kvz.sections["cache"], held, NUMBERS[origin["dtype"]], int(kvz.header["raw_bytes"]))


def exact(kvz: Kvz, origin: dict[str, Any]) -> tuple[list[list[int]], list[tuple[Array, Array]]]:
    """Positions, keys and values of the tokens that stand beside the codec's."""
    data = kvz.sections["exact"]
    [length] = struct.unpack_from("<I", data)
    held = positions(data[4 : 4 + length], len(origin["layer_kinds"]))
    return held, planes(data[4 + length :], [len(one) for one in held], NUMBERS[origin["dtype"]])


def planes(data: bytes, held: list[int], width: int, raw_bytes: int | None = None) -> list[tuple[Array, Array]]:
    [layers] = struct.unpack_from("<I", data)
    must(layers == len(held), "layers")
    shapes = [struct.unpack_from("<3H", data, 4 + 6 * layer) for layer in range(layers)]
    numbers = sum(count * heads * (keys + values) for count, (heads, keys, values) in zip(held, shapes, strict=True))
    must(raw_bytes in (None, 2 * numbers), "raw bytes")
    at, found = 4 + 6 * layers, []
    for count, (heads, keys, values) in zip(held, shapes, strict=True):
        tensors = []
        for size in (keys, values):
            raw = np.zeros((count * heads * size, width), np.uint8)
            for plane in range(width):
                [length] = struct.unpack_from("<Q", data, at)
                frame, at = data[at + 8 : at + 8 + length], at + 8 + length
                if length:
                    raw[:, plane] = np.frombuffer(unzstd(frame, len(raw)), np.uint8)
                else:
                    must(not len(raw), "plane without a frame")
            bits = raw.view(f"<u{width}").reshape(count, heads, size)
            tensors.append(bits.transpose(1, 0, 2))
        found.append((tensors[0], tensors[1]))
    must(at == len(data), "end of the planes")
    return found


def int8(kvz: Kvz, origin: dict[str, Any]) -> list[tuple[Array, Array]]:
    """Keys and values of each layer, [heads, tokens, size], float64, before they are rounded to the origin's dtype."""
    must(set(kvz.sections) - {"positions", "exact"} == {"tokens", "origin", "codes", "scales"}, "sections")
    shapes = [shape for count, *shape in kvz.header["settings"]["shapes"] for _ in range(count)]
    held = [len(one) for one in positions_of(kvz, len(origin["layer_kinds"]))]
    must(len(shapes) == len(held), "layers")
    codes, scales = np.frombuffer(kvz.sections["codes"], np.int8), kvz.sections["scales"]
    must(2 * len(codes) == kvz.header["raw_bytes"] and -128 not in codes, "codes")
    at, place, found = 0, 0, []
    for (heads, keys, values), count in zip(shapes, held, strict=True):
        tensors = []
        for shape, rows in (((heads, keys, count), heads * keys), ((heads, count, values), heads * count)):
            width = scales[place]
            must(width in (2, 4), "width of scales")
            scale = np.frombuffer(scales, f"<f{width}", rows, place + 1).astype(np.float64)
            must(np.isfinite(scale).all() and not np.signbit(scale).any(), "scales")
            place += 1 + width * rows
            total = heads * shape[1] * shape[2]
            tensors.append(codes[at : at + total].reshape(shape) * scale.reshape(*shape[:2], 1))
            at += total
        found.append((tensors[0].transpose(0, 2, 1), tensors[1]))
    must(at == len(codes) and place == len(scales), "end of the scales")
    return found
