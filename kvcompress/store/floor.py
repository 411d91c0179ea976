"""The restore floor: what a model reads again sooner than it is restored is stored as token ids alone.

```
reading     a + b n seconds for n tokens     one call of the model; a longer past makes it a little slower
restoring   c + d n seconds for n tokens     opening a segment, decoding it, filling the cache
```
Both lines are measured once for a model, a quality and a machine, with two lengths, and kept in the store. A short turn
is read sooner wherever a segment costs more to open than a call of the model; the log then says `restore floor` and
what was expected of both ways.
"""

from __future__ import annotations

import platform
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from torch import Tensor

from kvcompress.errors import InputError
from kvcompress.format.strict_json import canonical_json
from kvcompress.hf import capture, restore
from kvcompress.hf.families import new_cache
from kvcompress.hf.generation import feed
from kvcompress.hf.types import CausalLM
from kvcompress.snapshot import KVSnapshot
from kvcompress.store.assembly import assemble
from kvcompress.store.log import Entry
from kvcompress.store.segment import Coding, encode_part, read_part
from kvcompress.store.settings import FLOORS, settings_of

if TYPE_CHECKING:
    from kvcompress.store.session import StoredSession
    from kvcompress.store.store import Store

SHORT_TOKENS, LONG_TOKENS = 16, 128
REPEATS = 3


@dataclass(frozen=True, slots=True)
class Floor:
    """What reading and restoring cost.

    Attributes:
        read_seconds: Of a call of the model, whatever it reads.
        read_token_seconds: Of each token beside.
        restore_seconds: Of a segment, whatever it holds.
        restore_token_seconds: Of each token beside.
    """

    read_seconds: float
    read_token_seconds: float
    restore_seconds: float
    restore_token_seconds: float

    @classmethod
    def at(cls, tokens: int) -> Floor:
        """Return the floor under which fewer than `tokens` tokens are read again, whatever a machine costs."""
        return cls(0.0, 1.0, max(tokens - 0.5, 0.0), 0.0)

    def reading(self, tokens: int) -> float:
        """Return the seconds that a model needs to read so many tokens."""
        return self.read_seconds + self.read_token_seconds * tokens

    def restoring(self, tokens: int) -> float:
        """Return the seconds that a segment of so many tokens needs."""
        return self.restore_seconds + self.restore_token_seconds * tokens

    def is_above(self, tokens: int) -> bool:
        """Tell whether so many tokens are read again sooner than restored."""
        return self.reading(tokens) < self.restoring(tokens)


def append_above(session: StoredSession, snapshot: KVSnapshot, floor: Floor, *, quality: str | None = None) -> Entry:
    """Append what a snapshot adds, as token ids alone where the floor says so; as `StoredSession.append`."""
    new = snapshot.tokens - session.tokens
    if new <= 0 or not floor.is_above(new):
        return session.append(snapshot, quality=quality)
    spent = {"read_seconds": round(floor.reading(new), 6), "restore_seconds": round(floor.restoring(new), 6)}
    return session.append_tokens(snapshot.token_ids, snapshot, said={"why": "restore floor", **spent})


def floor_of(store: Store, model: CausalLM, snapshot: KVSnapshot, *, quality: str | None = None) -> Floor:
    """Return the floor of a model on this machine, measured where the store does not know it yet.

    Args:
        store: The store, which keeps what is measured.
        model: The model that recorded the snapshot.
        snapshot: Its tokens are read and restored; two at least.
        quality: At which segments are coded.

    Raises:
        InputError: The snapshot is too short, or the codec does not know the quality.
    """
    key = f"{platform.node()}/{snapshot.origin.fingerprint.weights[:16]}/{snapshot.origin.dtype}/{quality or ''}"
    known = store.settings.get(FLOORS, {})
    if key in known:
        return Floor(**known[key])
    found = measured(store, model, snapshot.token_ids, quality)
    with store.database.write() as tables:
        settings = settings_of(tables)
        settings[FLOORS] = settings.get(FLOORS, {}) | {key: asdict(found)}
        tables.execute("UPDATE store SET settings = ?", (canonical_json(settings).decode(),))
    return found


def measured(store: Store, model: CausalLM, token_ids: Tensor, quality: str | None = None) -> Floor:
    """Measure both ways with a short and a long piece of a session [N] int64."""
    if len(token_ids) < 2:
        raise InputError("a session of one token measures nothing", "Measure with a longer one")
    long = min(LONG_TOKENS, len(token_ids))
    short = min(SHORT_TOKENS, long // 2)
    read, restored = [], []
    for count in (short, long):
        ids = token_ids[:count]
        whole = capture(model, ids)
        part = encode_part(whole, 0, "", Coding(quality), store.codecs)

        def reading(ids: Tensor = ids) -> None:
            feed(model, new_cache(model), ids, 0, last_only=True)

        def restoring(part: bytes = part) -> None:
            restore(assemble([read_part(part)], store.codecs), model, copy=False)

        read.append(_seconds(reading))
        restored.append(_seconds(restoring))
    return Floor(*_line(short, long, read), *_line(short, long, restored))


def _seconds(work: Callable[[], Any]) -> float:
    """Return the shortest of a few runs, the first one not counted: it loads what stays loaded."""
    work()
    found = []
    for _ in range(REPEATS):
        start = time.perf_counter()
        work()
        found.append(time.perf_counter() - start)
    return min(found)


def _line(short: int, long: int, seconds: list[float]) -> tuple[float, float]:
    """Return what is spent whatever the length, and for each token."""
    slope = max((seconds[1] - seconds[0]) / (long - short), 0.0)
    return max(seconds[0] - slope * short, 0.0), slope
