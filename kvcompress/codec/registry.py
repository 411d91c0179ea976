"""Open any file that holds a session: a `.kvz` file through its codec, or a raw snapshot."""

from __future__ import annotations

from pathlib import Path

from kvcompress.codec.at_hand import codec_that_made
from kvcompress.codec.directory import load_codec, load_tinyvae
from kvcompress.codec.exact_tokens import EXACT, WithExact, without_exact
from kvcompress.codec.int8 import Int8Codec
from kvcompress.codec.lossless import LosslessCodec
from kvcompress.codec.protocol import Codec
from kvcompress.codec.settings import TinyVAESettings
from kvcompress.codec.tinyvae import TinyVAECodec
from kvcompress.errors import FormatError, about
from kvcompress.format.container import MAGIC, Encoded, is_tensors, load
from kvcompress.format.default_device import on_cpu
from kvcompress.format.limits import memory_limit
from kvcompress.format.raw_snapshot import load_raw
from kvcompress.format.session import read_session
from kvcompress.hf.fingerprint import config_json, fingerprint
from kvcompress.hf.origin_check import require_same_config
from kvcompress.hf.partial_prefill import Recompute, Recomputing
from kvcompress.snapshot import KVSnapshot, Origin

WITHOUT_WEIGHTS: tuple[type[Int8Codec] | type[LosslessCodec], ...] = (Int8Codec, LosslessCodec)


def codec_of(encoded: Encoded, codec: str | Path | None = None, recompute: Recompute | None = None) -> Codec:
    """Return the codec that an encoded snapshot asks for.

    Args:
        encoded: What a `.kvz` file holds.
        codec: Name, directory or Hub id, for codecs that have weights; None takes the one at hand that made the file.
        recompute: The model, for files whose first layers it recomputes; `kvcompress.hf.recompute_with` makes it.
    """
    if EXACT in encoded.sections:
        return WithExact(codec_of(without_exact(encoded), codec, recompute))
    for weightless in WITHOUT_WEIGHTS:
        if encoded.codec == weightless.kind:
            _require_true(read_session(encoded)[1], recompute)
            return weightless()
    if encoded.codec != TinyVAECodec.kind:
        raise FormatError(f"the file was made by the unknown codec {encoded.codec!r}", "Upgrade kvcompress")
    loaded = _tinyvae_of(encoded, codec)
    loaded.recompute = recompute
    return loaded


def _tinyvae_of(encoded: Encoded, codec: str | Path | None) -> TinyVAECodec:
    stated = TinyVAESettings.from_json(encoded.settings)
    if codec is None:
        return load_tinyvae(codec_that_made(encoded.codec_fingerprint))
    return load_codec(codec, stated.recompute_layers)


@on_cpu
def load_snapshot(
    path: Path,
    codec: str | Path | None = None,
    recompute: Recompute | None = None,
    max_memory: str | int | None = None,
) -> KVSnapshot:
    """Load the snapshot of a `.kvz` file or of a raw snapshot file; errors name the path.

    Args:
        path: The file.
        codec: As for `codec_of`.
        recompute: As for `codec_of`.
        max_memory: The most memory that it may take, "4GB" or a number of bytes; None for the limit in force, see
            `kvcompress.format.limits`.

    Raises:
        MemoryLimitError: The file declares more.
        KVCompressError: It cannot be read, decoded, or not with this codec.
    """
    with memory_limit(max_memory), about(path):
        if is_raw(path):
            snapshot = load_raw(path)
            _require_true(snapshot.origin, recompute)
            return snapshot
        encoded = load(path)
        return codec_of(encoded, codec, recompute).decode(encoded)


def _require_true(origin: Origin, recompute: Recompute | None) -> None:
    """Raise `MismatchError` that names the field in which a file's configuration is not that of the model at hand.

    Without a model nothing is compared here: what is restored from a decoded file is compared then.
    """
    if isinstance(recompute, Recomputing) and fingerprint(recompute.model).config == origin.fingerprint.config:
        require_same_config(config_json(recompute.model), origin)


def is_raw(path: Path) -> bool:
    """Tell whether a file is a raw snapshot by what it holds, or is no `.kvz` file but named like one."""
    if not path.is_file():
        return False
    with path.open("rb") as handle:
        start = handle.read(len(MAGIC) + 1)
    return is_tensors(start) or (path.suffix == ".safetensors" and start[: len(MAGIC)] != MAGIC)
