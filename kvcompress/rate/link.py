"""Storage against computation: choose the codec with the lowest time to first token over a given link.

```
time to the first token = file bytes over the link + seconds to restore (decode, recompute, build the cache)
```
More layers recomputed make the file smaller and restoring slower; which weighs more depends on link and machine.
Sending token ids alone and prefilling again is the end of the trade-off.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from kvcompress.codec.protocol import Codec
from kvcompress.codec.registry import WITHOUT_WEIGHTS
from kvcompress.codec.tinyvae import TinyVAECodec
from kvcompress.errors import require_positive
from kvcompress.format.container import Encoded, from_bytes, to_bytes
from kvcompress.format.session import encoded_session
from kvcompress.hf.restore import restore
from kvcompress.hf.types import CausalLM
from kvcompress.metrics.timing import median_seconds, prefill
from kvcompress.snapshot import KVSnapshot

BITS_PER_MEGABIT = 1e6
REPEATS = 3


@dataclass(frozen=True, slots=True)
class RestoreOption:
    """One way to restore a session.

    Attributes:
        recompute_layers: m; None stands for prefilling from token ids alone.
        file_bytes: What goes over the link.
        transfer_seconds: That, over the link's speed.
        restore_seconds: Measured on this machine, median.
    """

    recompute_layers: int | None
    file_bytes: int
    transfer_seconds: float
    restore_seconds: float

    @property
    def total_seconds(self) -> float:
        """Seconds until the model can say its next token."""
        return self.transfer_seconds + self.restore_seconds

    def to_json(self) -> dict[str, Any]:
        """Return a JSON-able dictionary."""
        return {**asdict(self), "total_seconds": self.total_seconds}


@dataclass(frozen=True, slots=True, eq=False)
class Choice:
    """What the trade-off found: the file to keep, how every m did, and prefilling beside them."""

    encoded: Encoded
    options: tuple[RestoreOption, ...]
    chosen: RestoreOption
    prefill: RestoreOption


def choose(
    model: CausalLM,
    codecs: Sequence[TinyVAECodec],
    snapshot: KVSnapshot,
    encode: Callable[[TinyVAECodec], Encoded],
    megabits_per_second: float,
) -> Choice:
    """Code a session with each codec, time restoring it, and return the one with the lowest time to first token.

    Args:
        model: The model that recorded the session, in evaluation mode.
        codecs: Each with its `recompute` set.
        snapshot: The session.
        encode: Codes it as the user asked for.
        megabits_per_second: Speed of the link.

    Raises:
        InputError: The link's speed is no positive number, or a codec cannot code the session.
    """
    require_positive("a link's speed in Mbit/s", megabits_per_second, "Give its speed, such as 100")
    files = {codec.recompute_layers: encode(codec) for codec in codecs}
    options = []
    for codec in codecs:
        data = to_bytes(files[codec.recompute_layers])
        seconds = restore_seconds(model, decoder_of(files[codec.recompute_layers], codec), data)
        options.append(_option(codec.recompute_layers, len(data), megabits_per_second, seconds))
    chosen = min(options, key=lambda option: option.total_seconds)
    prefill = _option(None, tokens_only(snapshot, codecs), megabits_per_second, prefill_seconds(model, snapshot))
    assert chosen.recompute_layers is not None
    return Choice(files[chosen.recompute_layers], tuple(options), chosen, prefill)


def _option(layers: int | None, file_bytes: int, megabits_per_second: float, seconds: float) -> RestoreOption:
    return RestoreOption(layers, file_bytes, 8 * file_bytes / (megabits_per_second * BITS_PER_MEGABIT), seconds)


def decoder_of(encoded: Encoded, codec: TinyVAECodec) -> Codec:
    """Return what decodes a file asked of a codec: it, or the codec that an out-of-distribution session went to."""
    weightless: Mapping[str, Codec] = {kind.kind: kind() for kind in WITHOUT_WEIGHTS}
    return weightless.get(encoded.codec, codec)


def restore_seconds(model: CausalLM, codec: Codec, data: bytes) -> float:
    """Return the median seconds from a file in memory to a cache: parse, verify, decode, recompute, build."""
    return median_seconds(lambda: restore(codec.decode(from_bytes(data)), model, copy=False), REPEATS)


def prefill_seconds(model: CausalLM, snapshot: KVSnapshot) -> float:
    """Return the median seconds of running the whole model over the session's tokens."""
    if not snapshot.tokens:
        return 0.0
    return median_seconds(lambda: prefill(model, snapshot.token_ids), REPEATS)


def tokens_only(snapshot: KVSnapshot, codecs: Iterable[TinyVAECodec]) -> int:
    """Return the bytes of a file that holds what every file says of a session and nothing else.

    Args:
        snapshot: The session.
        codecs: What one of them knows of every session, that file need not repeat either.
    """
    presets = [codec.preset for codec in codecs]
    return min(len(to_bytes(encoded_session("tokens", "", snapshot, {}, {}, preset))) for preset in presets)


def prefill_note(choice: Choice) -> str | None:
    """Say in one line that token ids alone would be sooner back; None where they would not."""
    if choice.prefill.total_seconds >= choice.chosen.total_seconds:
        return None
    told = f"sending the token ids alone and prefilling takes {choice.prefill.total_seconds:.3f} s"
    return f"{told}, the best file {choice.chosen.total_seconds:.3f} s: over this link the cache is not worth storing"
