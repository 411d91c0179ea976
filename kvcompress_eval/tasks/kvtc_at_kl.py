"""KVTC at the KL of each of a codec's qualities: fitted to a harvest, its ratio read off where both lose as much.

```
shards that fit ──► KVTC's axes and tables ──► a curve of KL over ratios ──┐
shards that fit nothing ───────────────────────┴──► our KL, word by word ──┴──► the ratio of each word
```
The form is the strongest of `kvcompress_eval.baselines.kvtc_ideal`: ideal entropy coding, the first token raw.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from kvcompress.data.shards import CALIBRATION, Shards
from kvcompress.errors import InputError
from kvcompress.format.container import Encoded, from_bytes, to_bytes
from kvcompress.hf import capture, restore
from kvcompress.hf.channels import layer_shapes
from kvcompress.hf.generation import feed
from kvcompress.snapshot import KVSnapshot
from kvcompress_eval.baselines.kvtc import WIDE_ROWS
from kvcompress_eval.baselines.kvtc_ideal import KvtcIdeal, Tables
from kvcompress_eval.baselines.kvtc_transform import MOST_ROWS, WIDE_CHANNELS, Transform, fit
from kvcompress_eval.baselines.shards import ShardCalibration
from kvcompress_eval.real_model.equal_kl import ratio_at
from kvcompress_eval.real_model.kvtc import fingerprint
from kvcompress_eval.suite.damage import NEAR_TOKENS, damage
from kvcompress_eval.suite.rows import digest
from kvcompress_eval.tasks.candidates import KVTC, Candidate

RATES = (4.0, 5.7, 8.0, 11.3, 16.0, 22.6, 32.0, 45.0, 64.0, 90.5)
SINKS = 1
Say = Callable[[str, int, int], None]


def require_harvest(directory: Path, sessions: int) -> tuple[Shards, list[int]]:
    """Return the sessions of a harvest that fit nothing, and which of them the KL is taken on.

    Raises:
        InputError: There is no harvest, or no session of it fits nothing.
    """
    shards = Shards(directory).part(CALIBRATION)
    if not len(shards):
        remedy = "Harvest again with a larger --calibration-share"
        raise InputError("no session of the harvest is kept from fitting", remedy, path=directory)
    return shards, list(range(min(sessions, len(shards))))


class KvtcAtKl:
    """KVTC for one model, at the KL of a codec's qualities.

    Args:
        model: The model.
        tokenizer: Its tokenizer.
        directory: Of its harvest.
        fit_sessions: Fitted to, at most.
        kl_sessions: The KL is taken on so many of those that fit nothing.
        tokens: Of each session; what follows them, up to 128 tokens, is what the KL is over.
        say: Called with what is being done, done, total.
    """

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        directory: Path,
        fit_sessions: int,
        kl_sessions: int,
        tokens: int,
        say: Say,
    ) -> None:
        self.model, self.tokenizer, self.directory, self.say = model, tokenizer, directory, say
        self.fit_sessions, self.tokens = fit_sessions, tokens
        self.shards, self.numbers = require_harvest(directory, kl_sessions)
        self._subjects: list[tuple[KVSnapshot, Tensor, Tensor]] = []

    def identity(self, ours: Candidate) -> str:
        """Return what rows of KVTC at the KL of a quality are known by, before anything is fitted."""
        fitted = fingerprint(self.directory, self.fit_sessions, self.tokens)
        on = digest([self.shards.token_ids(number)[: self.tokens] for number in self.numbers])
        return hashlib.sha256(f"{fitted} {on} {ours.fingerprint} {ours.quality}".encode()).hexdigest()

    def candidates(self, ours: Sequence[Candidate]) -> tuple[dict[str, Candidate], dict[str, dict[str, Any]]]:
        """Return KVTC at the KL of each of our qualities, by quality, and what was found on the way.

        A quality whose KL lies off KVTC's curve by more than a factor of 2 has no candidate.
        """
        transform, tables = self._fitted()
        baselines = {rate: KvtcIdeal(transform, tables, rate, SINKS) for rate in RATES}
        total, curve = len(baselines) + len(ours), list[list[float]]()
        for done, (rate, baseline) in enumerate(baselines.items(), 1):
            curve.append([self._kl_nats(baseline.encode, baseline.decode), rate])
            self.say("KVTC at our KL", done, total)
        found, matches = dict[str, Candidate](), dict[str, dict[str, Any]]()
        for done, one in enumerate(ours, len(baselines) + 1):
            assert one.encode is not None
            assert one.decode is not None
            kl = self._kl_nats(one.encode, one.decode)
            rate = ratio_at([(at, size) for at, size in curve if at > 0], kl) if kl > 0 else float("nan")
            matches[one.quality] = {"kl_nats": kl, "aimed_ratio": rate if rate == rate else None, "curve": curve}
            if rate == rate:
                baseline = KvtcIdeal(transform, tables, rate, SINKS)
                found[one.quality] = named(one.quality, self.identity(one), baseline.encode, baseline.decode)
            self.say("KVTC at our KL", done, total)
        return found, matches

    def _fitted(self) -> tuple[Transform, Tables]:
        calibration = ShardCalibration.of(self.directory, self.fit_sessions, self.tokens)
        self.say(f"fitting KVTC to {len(calibration.shards)} sessions", 0, 1)
        wide = sum(shape.channels for shape in layer_shapes(self.shards.snapshot(0))) > 2 * WIDE_CHANNELS
        transform, latents = fit(calibration, SINKS, most_rows=WIDE_ROWS if wide else MOST_ROWS)
        return transform, Tables(torch.cat(latents, 1))

    @torch.inference_mode()
    def _kl_nats(self, encode: Callable[[KVSnapshot], Encoded], decode: Callable[[Encoded], KVSnapshot]) -> float:
        """Return the mean KL of a codec over the sessions that fit nothing."""
        kls = []
        for snapshot, following, exact in self._prepared():
            decoded = decode(from_bytes(to_bytes(encode(snapshot))))
            logits = feed(self.model, restore(decoded, self.model), following, snapshot.tokens)
            kls.append(float(damage(exact, logits).kl_nats.mean()))
        return sum(kls) / len(kls)

    def _prepared(self) -> list[tuple[KVSnapshot, Tensor, Tensor]]:
        """Return of each session its exact cache, what followed, and what the model says of that."""
        for number in self.numbers[len(self._subjects) :]:
            ids = self.shards.session(number)
            tokens = min(self.tokens, len(ids) - NEAR_TOKENS)
            snapshot, following = (
                capture(self.model, ids[:tokens], tokenizer=self.tokenizer),
                ids[tokens : tokens + NEAR_TOKENS],
            )
            logits = feed(self.model, restore(snapshot, self.model), following, tokens)
            self._subjects.append((snapshot, following, torch.log_softmax(logits.float(), -1)))
        return self._subjects


def named(
    quality: str,
    fingerprint: str,
    encode: Callable[[KVSnapshot], Encoded] | None = None,
    decode: Callable[[Encoded], KVSnapshot] | None = None,
) -> Candidate:
    """Return KVTC as it stands in tables."""
    return Candidate(f"KVTC, {quality}", KVTC, quality, fingerprint, encode, decode)
