"""The raw 16-bit cache under zstd: what a general compressor makes of it (the same bits as `raw16` come back).

The bytes go in as `raw16` stores them. The project's own lossless codec, which sorts them into planes first, is the
better way to use zstd; this is the plain one.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from kvcompress.errors import FormatError
from kvcompress.format.container import Encoded
from kvcompress.format.zstd_frame import zstd_pack, zstd_unpack
from kvcompress.snapshot import KVSnapshot
from kvcompress_eval.baselines.protocol import Baseline, Calibration
from kvcompress_eval.baselines.raw16 import closed, from_raw_words, opened, raw_words, stored_dtype, stored_in

LEVELS = (3, 19)  # the default, and the highest ordinary one


class Zstd:
    """Codes the raw 16-bit cache as one zstd frame.

    Args:
        level: Effort of the compressor, 1 to 22.
    """

    family = kind = "zstd"
    fingerprint = ""
    codec_bytes = 0

    def __init__(self, level: int) -> None:
        self.level, self.name = level, f"zstd-{level}"
        self.settings: Mapping[str, Any] = {"level": level}

    def encode(self, snapshot: KVSnapshot) -> Encoded:
        """Code a snapshot."""
        dtype = stored_dtype(snapshot)
        return closed(self, snapshot, {"cache": zstd_pack(raw_words(snapshot, dtype), self.level)}, stored=dtype)

    def decode(self, encoded: Encoded) -> KVSnapshot:
        """Return the snapshot, the identical bits for a 16-bit cache.

        Raises:
            MismatchError: Another codec made the file.
            FormatError: It is damaged.
        """
        session = opened(self, encoded, ["cache"])
        data = zstd_unpack(encoded.sections["cache"], encoded.raw_bytes, "the section 'cache'")
        if len(data) != encoded.raw_bytes:
            raise FormatError(f"the section 'cache' holds {len(data)} bytes instead of {encoded.raw_bytes}")
        return from_raw_words(data, session, stored_in(encoded, session.origin))


def family(calibration: Calibration) -> list[Baseline]:
    """Return a point for each level; nothing is learnt from the calibration sessions."""
    return [Zstd(level) for level in LEVELS]
