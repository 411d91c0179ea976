"""What a codec's directory may not hold, though its shapes are right."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch

from kvcompress.codec.directory import load_codec
from kvcompress.codec.tinyvae import TinyVAECodec
from kvcompress.errors import CheckpointError


@pytest.mark.parametrize("poison", [math.nan, math.inf, -math.inf])
def test_weights_that_are_no_numbers_are_refused(codec: TinyVAECodec, poison: float, tmp_path: Path) -> None:
    """Also where no fingerprint is stated, as in older codecs."""
    place, config = tmp_path / "codec", codec.config_json() | {"fitted": {}}
    codec.save_pretrained(place, config=config)
    assert load_codec(place).fingerprint == codec.fingerprint
    name, kept = next((name, one.clone()) for name, one in codec.state_dict().items() if one.is_floating_point())
    try:
        with torch.no_grad():
            codec.state_dict()[name].view(-1)[0] = poison
        codec.save_pretrained(place, config=config)
    finally:
        with torch.no_grad():
            codec.state_dict()[name].copy_(kept)
    with pytest.raises(CheckpointError, match="hold NaN or infinity"):
        load_codec(place)
