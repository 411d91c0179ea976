"""Write the golden files again, after a change of the format: `python -m tests.format.make_golden`."""

from __future__ import annotations

from pathlib import Path

from kvcompress.container import save
from kvcompress.lossless import LosslessCodec
from kvcompress.raw import save_raw
from tests.format.examples import make_snapshot

GOLDEN = Path(__file__).parent / "golden"

if __name__ == "__main__":
    save(GOLDEN / "lossless.kvz", LosslessCodec().encode(make_snapshot()), force=True)
    save_raw(GOLDEN / "raw.safetensors", make_snapshot(), force=True)
