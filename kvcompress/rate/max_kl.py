"""KL-constrained search: encode at several QPs, resume from each, keep the smallest file within the bound.

```
session     0 ............ c ....... N           the last T = N - c tokens are held back
exact       cache of [0, c), fed c .. N-1  ──┐
decoded     cache of [0, c), fed c .. N-1  ──┴─► mean KL(exact || decoded) <= bound?
```
The file holds the whole session; only what is measured is cut. Attention is causal, so cache entries before c do not
change when the tail is removed, and the tail is text that really followed.

KL falls with the QP, but not at every step: neighbouring QPs round other latents. So bisection only finds the
place; then the coarser neighbours run as well, until `NEIGHBOURS` of them in a row break the bound, and of all QPs
that ran and kept it the smallest file wins. Where no QP keeps it, or none in a file of few bytes, QPs with a
residual (`kvcompress.codec.residual`) run in the same way; where none of these does in less than a byte a value, int8
runs, and last the lossless codec.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property

from torch import Tensor

from kvcompress.codec.analysis import HIGHEST_QP, Analysis
from kvcompress.codec.int8 import Int8Codec
from kvcompress.codec.lossless import LosslessCodec
from kvcompress.codec.residual import RESIDUAL_FINER
from kvcompress.codec.settings import Certificate, CommonSettings, restated
from kvcompress.codec.tinyvae import TinyVAECodec
from kvcompress.errors import InputError, require_positive
from kvcompress.format.container import Encoded, to_bytes
from kvcompress.hf.generation import feed
from kvcompress.hf.restore import restore
from kvcompress.hf.types import CausalLM, Tokenizer
from kvcompress.metrics.fidelity import kl_nats
from kvcompress.snapshot import KVSnapshot, LayerKV

MOST_TAIL_TOKENS = 128
LEAST_TAIL_TOKENS = 16
TAIL_SHARE = 4
"""One token in so many is held back."""

NEIGHBOURS = 8
"""Measured on 128 tokens, KL falls by 3 to 6 % from QP to QP on average, and rises at two of five. On three
sessions of 1,024 tokens and 46 bounds from .0004 to .07 nats, files were larger than the smallest of all QPs by 9 %
on average without neighbours, by 4 % with 4, by 1 % with 8 and with 12."""

VALUES_A_BYTE = 32
"""A file of more than a byte for so many values is so fine that a residual may do better."""

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True, slots=True, eq=False)
class Tail:
    """The held-back end of a session.

    Attributes:
        cut_tokens: Tokens before it.
        continuation: [T] int64, its tokens.
        exact: [T, V] float, predictions from the exact cache of the tokens before it.
    """

    cut_tokens: int
    continuation: Tensor
    exact: Tensor


@dataclass(frozen=True, slots=True, eq=False)
class Candidate:
    """A file, its size and its mean KL on the tail."""

    encoded: Encoded
    file_bytes: int
    kl_nats: float


def tail_tokens(tokens: int) -> int:
    """Return how many tokens of a session are held back: a quarter, at most 128.

    Raises:
        InputError: They would be fewer than 16.
    """
    held_back = min(MOST_TAIL_TOKENS, tokens // TAIL_SHARE)
    if held_back < LEAST_TAIL_TOKENS:
        least = LEAST_TAIL_TOKENS * TAIL_SHARE
        remedy = f"Record at least {least} tokens, or use --quality"
        raise InputError(f"{tokens} tokens are too few to hold {LEAST_TAIL_TOKENS} back and measure on them", remedy)
    return held_back


def cut(snapshot: KVSnapshot, tokens: int) -> KVSnapshot:
    """Return the snapshot as it was after its first `tokens` tokens; positions stay, pruned tokens stay pruned.

    Raises:
        InputError: A sliding window has dropped tokens that it held then.
    """
    for index, (kind, layer) in enumerate(zip(snapshot.origin.layer_kinds, snapshot.layers, strict=True)):
        if kind == "sliding_attention" and len(layer.positions) < snapshot.tokens:
            what = f"layer {index}: its sliding window has moved on, so the cache cannot be cut back to {tokens} tokens"
            raise InputError(what, "Use --quality or --size-ratio")
    if snapshot.origin.next_position != snapshot.tokens:
        what = f"the session goes on at position {snapshot.origin.next_position} after {snapshot.tokens} tokens"
        raise InputError(f"{what}, so it cannot be cut", "Use --quality or --size-ratio")
    layers = tuple(_cut_layer(layer, tokens) for layer in snapshot.layers)
    return KVSnapshot(layers, snapshot.token_ids[:tokens], replace(snapshot.origin, next_position=tokens))


def _cut_layer(layer: LayerKV, tokens: int) -> LayerKV:
    held = int((layer.positions < tokens).sum())
    return LayerKV(layer.keys[:, :held], layer.values[:, :held], layer.positions[:held])


def hold_back(model: CausalLM, snapshot: KVSnapshot, tokenizer: Tokenizer | None = None) -> Tail:
    """Cut the end off a session and let the model go on over it from the exact cache.

    Raises:
        InputError: The session is too short, or cannot be cut.
        MismatchError: Model or tokenizer is not the snapshot's.
    """
    at = snapshot.tokens - tail_tokens(snapshot.tokens)
    continuation = snapshot.token_ids[at:]
    cache = restore(cut(snapshot, at), model, tokenizer=tokenizer)
    return Tail(at, continuation, feed(model, cache, continuation, at))


def tail_kl_nats(model: CausalLM, tail: Tail, decoded: KVSnapshot) -> float:
    """Return the mean KL(exact || decoded) over the tail, in nats."""
    cache = restore(cut(decoded, tail.cut_tokens), model)
    return float(kl_nats(tail.exact, feed(model, cache, tail.continuation, tail.cut_tokens)).mean())


class KLSearch:
    """Codes a session at one QP after the other, each at most once, and resumes from each.

    Args:
        codec: Codec of the model's caches.
        model: The model that recorded the session, in evaluation mode.
        snapshot: The session.
        tail: From `hold_back`, with the same model and session.
        max_kl_nats: The bound on the mean KL over the tail, more than 0.
        progress: Called after each candidate with "QPs", "residuals", "int8" or "lossless", how many ran, how many
            are foreseen.

    Raises:
        InputError: The bound is no positive number.
    """

    def __init__(
        self,
        codec: TinyVAECodec,
        model: CausalLM,
        snapshot: KVSnapshot,
        tail: Tail,
        max_kl_nats: float,
        progress: Progress = lambda stage, done, total: None,
    ) -> None:
        require_positive("a bound on the mean KL (nats)", max_kl_nats, "Ask for one such as 0.01")
        self.codec, self.model, self.snapshot, self.tail = codec, model, snapshot, tail
        self.max_kl_nats, self.progress = max_kl_nats, progress
        self.ran: dict[tuple[int, int | None], Candidate] = {}

    def winner(self) -> Encoded:
        """Return the smallest file found that keeps the bound.

        Its settings hold a `Certificate`: the mean KL as measured (four digits), the bound and the tokens of the tail.

        Raises:
            MismatchError: The codec is not of the snapshot's model.
            InputError: The codec cannot code this session.
        """
        best = self.best_qp()
        if best is None or best.file_bytes > self.snapshot.values_count / VALUES_A_BYTE:
            best = _smaller(best, self.best_qp(RESIDUAL_FINER))
        if best is None or best.file_bytes > self.snapshot.values_count:  # int8 takes a byte a value
            eight = self.eight_bits()
            best = _smaller(best, eight if eight.kl_nats <= self.max_kl_nats else None) or self.lossless()
        return restated(best.encoded, CommonSettings(certificate=self._certificate(best)))

    def best_qp(self, finer: int | None = None) -> Candidate | None:
        """Return the smallest file of those QPs that ran and kept the bound, or None where none did.

        Args:
            finer: How much finer than the latents a residual is; None for files without one.
        """
        low, high = 0, HIGHEST_QP // 2
        while low < high:
            middle = (low + high) // 2
            low, high = (low, middle) if self.keeps(middle, finer) else (middle + 1, high)
        if not self.keeps(low, finer):
            return None
        qp, broken = low - 1, 0
        while qp >= 0 and broken < NEIGHBOURS:
            broken = 0 if self.keeps(qp, finer) else broken + 1
            qp -= 1
        kept = [run for (_, how), run in self.ran.items() if how == finer and run.kl_nats <= self.max_kl_nats]
        return min(kept, key=lambda candidate: candidate.file_bytes)

    def keeps(self, qp: int, finer: int | None = None) -> bool:
        """Tell whether the file of a QP keeps the bound, with a residual so much finer or without."""
        if (qp, finer) not in self.ran:
            residual_qp = None if finer is None else qp + finer
            encoded = self._analysis.encode(qp, residual_qp=residual_qp)
            self.ran[qp, finer] = self._measured(self.codec, encoded)
            ran, foreseen = sum(how == finer for _, how in self.ran), (HIGHEST_QP // 2).bit_length() + NEIGHBOURS
            self.progress("rates" if finer is None else "residuals", ran, max(foreseen, ran))
        return self.ran[qp, finer].kl_nats <= self.max_kl_nats

    def eight_bits(self) -> Candidate:
        """Return the int8 file."""
        found = self._measured(Int8Codec(), Int8Codec().encode(self.snapshot))
        self.progress("int8", 1, 1)
        return found

    def lossless(self) -> Candidate:
        """Return the lossless file, which keeps every bound."""
        found = self._measured(LosslessCodec(), LosslessCodec().encode(self.snapshot))
        self.progress("lossless", 1, 1)
        return found

    @cached_property
    def _analysis(self) -> Analysis:
        return self.codec.analyse(self.snapshot)

    def _measured(self, codec: TinyVAECodec | Int8Codec | LosslessCodec, encoded: Encoded) -> Candidate:
        # What is decoded went through bytes: a file is judged, not an intention.
        kl = tail_kl_nats(self.model, self.tail, codec.decode(encoded))
        return Candidate(encoded, len(to_bytes(encoded)), kl)

    def _certificate(self, best: Candidate) -> Certificate:
        shown = float(f"{best.kl_nats:.4g}")
        return Certificate(
            kl_nats=best.kl_nats if shown > self.max_kl_nats else shown,
            max_kl_nats=self.max_kl_nats,
            tail_tokens=len(self.tail.continuation),
        )


def _smaller(first: Candidate | None, second: Candidate | None) -> Candidate | None:
    """Return the candidate of the smaller file of those there are."""
    return min((one for one in (first, second) if one is not None), key=lambda one: one.file_bytes, default=None)
