"""Whose caches are asked: the exact one, each quality of a codec, KVTC at its KL, and caches with tokens dropped."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from kvcompress.codec.exact_tokens import WithExact
from kvcompress.codec.promise import QUALITIES
from kvcompress.codec.tinyvae import TinyVAECodec
from kvcompress.format.container import Encoded
from kvcompress.prune.session import Asked, SessionPlanner
from kvcompress.snapshot import KVSnapshot
from kvcompress_eval.baselines.eviction import Eviction
from kvcompress_eval.baselines.eviction_sink_recent import SinkRecent
from kvcompress_eval.real_model.measure import our_point

EXACT, OURS, KVTC, PLAN, EVICTION = "exact", "ours", "kvtc", "plan", "eviction"


@dataclass(frozen=True, slots=True, eq=False)
class Candidate:
    """One way to store a context.

    Attributes:
        name: In tables.
        kind: "exact", "ours", "kvtc", "plan" or "eviction".
        quality: The quality word that it stands for or is compared with; "" for none.
        fingerprint: Rows of another are not this one's.
        encode: Codes a snapshot; None for the exact cache, which no file holds.
        decode: Returns the snapshot of a file.
    """

    name: str
    kind: str
    quality: str
    fingerprint: str
    encode: Callable[[KVSnapshot], Encoded] | None = None
    decode: Callable[[Encoded], KVSnapshot] | None = None


def exact() -> Candidate:
    """Return the exact cache."""
    return Candidate(EXACT, EXACT, "", EXACT)


def tiers(codec: TinyVAECodec) -> list[Candidate]:
    """Return the qualities that a codec promises, each encoded as it was verified."""
    points = [our_point("", codec, word) for word in QUALITIES if word in codec.promises]
    return [Candidate(p.name, OURS, p.name, p.fingerprint, p.encode, p.decode) for p in points]


def planned(codec: TinyVAECodec, model: Any, tokenizer: Any, scorer: str, fraction: float) -> Candidate:
    """Return a plan that keeps a fraction of the tokens, coded at the codec's finest quality.

    Args:
        codec: The codec.
        model: The model, which collects the scorer's evidence.
        tokenizer: Its tokenizer, which finds the anchors.
        scorer: Says which tokens stay; see docs/pruning.md.
        fraction: Share of the tokens that stay in memory.
    """
    quality = next(word for word in QUALITIES if word in codec.promises)
    asked = Asked(scorers=(scorer,), quality=quality, keep_fraction=fraction)
    identity = our_point("", codec, quality).fingerprint
    return Candidate(
        f"plan keeps {fraction:.0%}",
        PLAN,
        quality,
        hashlib.sha256(f"{identity} {scorer} {fraction}".encode()).hexdigest(),
        lambda snapshot: SessionPlanner(codec, model, tokenizer, snapshot, asked).run_quickly().encoded,
        WithExact(codec).decode,
    )


def evicted(fraction: float) -> Candidate:
    """Return the control: sinks and the newest tokens at 16 bits, the middle gone (StreamingLLM, arXiv 2309.17453)."""
    baseline = Eviction(SinkRecent(), fraction)
    name = f"newest {fraction:.0%}"
    return Candidate(name, EVICTION, "", f"{baseline.name} {fraction}", baseline.encode, baseline.decode)


def kept_fractions(fractions: Sequence[float]) -> tuple[float, ...]:
    """Return fractions without repetition, largest first."""
    return tuple(sorted(set(fractions), reverse=True))
