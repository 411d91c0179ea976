"""Store the token ids and nothing else: decoding is prefilling.

The smallest file there is, exact up to the noise floor of the model's own arithmetic, and the slowest to restore.
"""

from __future__ import annotations

from typing import Any

import torch

from kvcompress.errors import FormatError, InputError
from kvcompress.format.container import Encoded
from kvcompress.format.session import encoded_session, read_session
from kvcompress.hf import capture, fingerprint
from kvcompress.snapshot import KVSnapshot
from kvcompress_eval.baselines.eviction import require_own
from kvcompress_eval.baselines.protocol import Baseline, Calibration


class TokensOnly:
    """Codes a session as its tokens.

    Args:
        model: The model that recorded the sessions, in evaluation mode. Resuming needs it in any case, so it does not
            count as the codec's.
        tokenizer: Its tokenizer, or None.
    """

    name = family = kind = "tokens"
    codec_bytes = 0
    fingerprint = ""

    def __init__(self, model: Any, tokenizer: Any = None) -> None:
        self.model, self.tokenizer = model, tokenizer

    def encode(self, snapshot: KVSnapshot) -> Encoded:
        """Keep what every file says of its session.

        Raises:
            MismatchError: The snapshot comes from another model.
            InputError: It is pruned, so that prefilling would not give it back.
        """
        snapshot.origin.fingerprint.require_match(fingerprint(self.model, self.tokenizer))
        for index, (layer, kind) in enumerate(zip(snapshot.layers, snapshot.origin.layer_kinds, strict=True)):
            held = len(layer.positions)
            whole = torch.arange(snapshot.tokens - held, snapshot.tokens)
            if not torch.equal(layer.positions, whole) or (kind == "full_attention" and held != snapshot.tokens):
                what = f"layer {index} lacks tokens, which prefilling would bring back"
                raise InputError(what, "Give a cache that holds every token")
        return encoded_session(self.kind, self.fingerprint, snapshot, {}, {})

    def decode(self, encoded: Encoded) -> KVSnapshot:
        """Run the model over the tokens.

        Raises:
            MismatchError: Another codec or another model made it.
            FormatError: A section is missing, damaged or unknown, or prefilling gives another cache than the file says.
        """
        require_own(encoded, self.kind, self.fingerprint, ())
        token_ids, origin, positions = read_session(encoded)
        origin.fingerprint.require_match(fingerprint(self.model, self.tokenizer))
        snapshot = capture(self.model, token_ids, tokenizer=self.tokenizer)
        places = [layer.positions for layer in snapshot.layers]
        if len(places) != len(positions) or not all(map(torch.equal, places, positions)):
            raise FormatError("the section 'positions' is not that of a cache prefilled from these tokens")
        return snapshot


def family(calibration: Calibration) -> list[Baseline]:
    """Return the one point."""
    return [TokensOnly(calibration.model, calibration.tokenizer)]
