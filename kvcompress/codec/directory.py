"""Load a codec's directory: `config.json` and `model.safetensors`, every tensor of them."""

from __future__ import annotations

import io
from contextlib import redirect_stdout
from pathlib import Path

from kvcompress.codec.tinyvae import TinyVAECodec
from kvcompress.errors import CheckpointError


def load_tinyvae(directory: Path) -> TinyVAECodec:
    """Load a codec directory.

    Raises:
        CheckpointError: It is missing, incomplete or damaged.
    """
    for name in ("config.json", "model.safetensors"):
        if not (directory / name).is_file():
            raise CheckpointError(f"no codec here: {name} is missing", "Make one with `kvcompress fit`", path=directory)
    try:
        with redirect_stdout(io.StringIO()):  # the mixin prints, which would spoil --json
            codec = TinyVAECodec.from_pretrained(directory, strict=True)
    except Exception as error:  # the mixin passes on whatever its parsers raise
        raise CheckpointError(f"the codec does not load ({error})", "Fit or fetch it again", path=directory) from error
    stated = codec.fitted.get("fingerprint")
    if stated is not None and stated != codec.fingerprint:
        what = f"the codec is damaged: its digest is {codec.fingerprint[:16]}, its config.json says {str(stated)[:16]}"
        raise CheckpointError(what, "Fit or fetch it again", path=directory)
    return codec.eval()
