"""Losses of sessions at settings: cut each session in two, store the first part, resume over the second.

A trial is a cache and what really followed. The model is resumed over the latter from the exact cache and from what a
setting makes of it, and the two predictions are compared. Memory holds one session at a time: caches come from disk,
the exact predictions lie in temporary files, and a session is analysed once for all settings that are tried on it.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from kvcompress.codec.analysis import Analysis
from kvcompress.codec.int8 import Int8Codec
from kvcompress.codec.out_of_distribution import figures_of
from kvcompress.codec.promise import INT8, LOSSLESS, Setting
from kvcompress.codec.tinyvae import TinyVAECodec
from kvcompress.errors import InputError
from kvcompress.fit.ledger import Facts, Ledger, Losses, token_digest
from kvcompress.format.container import Encoded, to_bytes
from kvcompress.format.raw_snapshot import load_raw, save_raw
from kvcompress.hf.capture import capture
from kvcompress.hf.generation import feed
from kvcompress.hf.restore import restore
from kvcompress.hf.types import CausalLM, Tokenizer
from kvcompress.metrics.fidelity import MIN_CONTINUATION_TOKENS, SHORT_CONTEXT_TOKENS, short_context_logits
from kvcompress.snapshot import KVSnapshot

CONTINUATION_TOKENS = 128
"""Tokens over which a quality is verified: losses are largest right after a session is resumed. SmolLM2-135M loses half
as much over 512 as over the first 128."""

WORTH_STRIDE = 8
"""What the context is worth is measured at every eighth token: each needs a pass over a window of its own."""

ROWS = 32
"""Rows of logits compared at a time; a vocabulary of 50,000 then stays in the processor's cache."""


class TrialSource(Protocol):
    """One session cut in two."""

    @property
    def snapshot(self) -> KVSnapshot:
        """The cache of the first part; read or captured anew at each call."""
        ...

    @property
    def continuation(self) -> Tensor:
        """Token ids [T] int64 that followed."""
        ...


@dataclass(frozen=True, slots=True, eq=False)
class SessionTrial:
    """A session whose cache is captured when it is first asked for, and then kept in a temporary file.

    Attributes:
        model: The model.
        tokenizer: Enters the fingerprint if given.
        token_ids: [N] int64, before the continuation.
        continuation: [T] int64.
        directory: Where caches lie, shared by the trials of a run and removed with the last of them.
    """

    model: CausalLM
    tokenizer: Tokenizer | None
    token_ids: Tensor
    continuation: Tensor
    directory: tempfile.TemporaryDirectory[str] = field(repr=False)

    @property
    def snapshot(self) -> KVSnapshot:
        """The cache of the first part."""
        place = Path(self.directory.name) / f"{token_digest([self.token_ids])}.safetensors"
        if not place.exists():
            save_raw(place, capture(self.model, self.token_ids, tokenizer=self.tokenizer))
        return load_raw(place)


def trials_from_sessions(
    model: CausalLM,
    sessions: Sequence[Tensor],
    tokenizer: Tokenizer | None = None,
    continuation_tokens: int = CONTINUATION_TOKENS,
) -> list[SessionTrial]:
    """Cut sessions before their last `continuation_tokens` tokens, or in the middle where they are shorter than two.

    Args:
        model: A causal language model in evaluation mode.
        sessions: Token ids [N] int64 of each.
        tokenizer: Enters the fingerprint if given.
        continuation_tokens: Tokens that stand for the future.
    """
    directory = tempfile.TemporaryDirectory(prefix="kvcompress-trials-")
    cuts = [len(ids) - min(continuation_tokens, len(ids) // 2) for ids in sessions]
    return [
        SessionTrial(model, tokenizer, ids[:cut], ids[cut:], directory) for ids, cut in zip(sessions, cuts, strict=True)
    ]


class Bench:
    """Measures sessions at settings, each pair once.

    Args:
        model: The model, in evaluation mode.
        codec: The codec.
        trials: The sessions.
        resume_file: See `Ledger`.

    Raises:
        MismatchError: A cache is not of the codec's model, or the model is another.
        InputError: Logits are no numbers.
    """

    def __init__(
        self, model: CausalLM, codec: TinyVAECodec, trials: Sequence[TrialSource], resume_file: Path | None = None
    ) -> None:
        self.model, self.codec, self.trials = model, codec, list(trials)
        key = f"{codec.fingerprint} {token_digest([trial.continuation for trial in self.trials])}"
        self.ledger = Ledger(resume_file, key)
        self._exact = tempfile.TemporaryDirectory(prefix="kvcompress-exact-")

    @torch.inference_mode()
    def measure(self, session: int, settings: Sequence[Setting]) -> None:
        """Measure what is not in the ledger yet of one session."""
        missing = [setting for setting in settings if (session, setting) not in self.ledger.losses]
        if not missing and session in self.ledger.facts:
            return
        snapshot, continuation = self.trials[session].snapshot, self.trials[session].continuation
        exact = self._exact_log_odds(session, snapshot, continuation)
        analysis: Analysis | None = None
        for setting in missing:
            if setting.qp is not None and analysis is None:
                analysis = self.codec.analyse(snapshot)
            decoded, file = stored_as(snapshot, setting, analysis)
            bits, error, ratio = 0.0, 0.0, 0.0
            if file is not None:
                ratio = snapshot.raw_bytes / len(to_bytes(file))
            if file is not None and setting.qp is not None:
                bits, error = figures_of(snapshot, decoded, file)
            cache = restore(decoded, self.model, copy=setting.kind == LOSSLESS)
            kl, top1 = compared(exact, feed(self.model, cache, continuation, snapshot.tokens))
            self.ledger.add(session, setting, Losses(kl, 1 - top1, bits, error, ratio))

    def _exact_log_odds(self, session: int, snapshot: KVSnapshot, continuation: Tensor) -> Tensor:
        """Return log-probabilities [T, V] float32 from the exact cache, from their file where they are known."""
        place = Path(self._exact.name) / f"{session}.npy"
        if place.exists():
            return torch.from_numpy(np.load(place))
        logits = feed(self.model, restore(snapshot, self.model), continuation, snapshot.tokens)
        exact = torch.log_softmax(logits.float(), -1).cpu()
        np.save(place, exact.numpy())
        if session not in self.ledger.facts:
            worth = context_worth(self.model, snapshot.token_ids, continuation, exact)
            opening = int(snapshot.token_ids[0]) if snapshot.tokens else None
            self.ledger.add_facts(session, Facts(worth, snapshot.tokens, len(continuation), opening))
        return exact


def stored_as(snapshot: KVSnapshot, setting: Setting, analysis: Analysis | None) -> tuple[KVSnapshot, Encoded | None]:
    """Return what comes back of a cache that is stored in a setting, and the file; None of a lossless one.

    Args:
        snapshot: The exact cache.
        setting: How it is stored.
        analysis: Of this cache by the codec; not needed without a QP.
    """
    if setting.kind == LOSSLESS:
        return snapshot, None
    if setting.kind == INT8:
        eight = Int8Codec().encode(snapshot)
        return Int8Codec().decode(eight), eight
    assert setting.qp is not None
    assert analysis is not None
    return analysis.tried(setting.qp, residual_qp=setting.residual_qp)


def context_worth(model: CausalLM, token_ids: Tensor, continuation: Tensor, exact: Tensor) -> float:
    """Return what the context beyond the last 32 tokens is worth in nats: the mean over every eighth position.

    Args:
        model: The model.
        token_ids: [N] int64, the session.
        continuation: [T] int64.
        exact: [T, V] float32 log-probabilities with the whole context.
    """
    short = short_context_logits(model, token_ids, continuation, SHORT_CONTEXT_TOKENS, every=WORTH_STRIDE)
    return compared(exact[::WORTH_STRIDE], short)[0]


def compared(exact: Tensor, logits: Tensor) -> tuple[float, float]:
    """Return mean KL(exact || decoded) in nats and the share of positions with the same most likely token.

    In float32, for speed. Of probabilities p and q the KL is summed as p (d + exp(-d) - 1) with d = log(p / q), which
    adds q - p, nothing in sum, to each term: terms are positive and of second order in d, so rounding of p, q and of
    what they are normalised by leaves nothing. It is within 1e-6 nats of the KL in float64.

    Args:
        exact: [T, V] float32 log-probabilities.
        logits: [T, V] float.

    Raises:
        InputError: Logits are NaN or infinite.
    """
    total, same = 0.0, 0
    for true, rows in zip(torch.split(exact, ROWS), torch.split(logits, ROWS), strict=True):
        found = torch.log_softmax(rows.float().cpu(), -1)
        apart = true - found
        terms = true.exp() * (apart + torch.expm1(-apart))
        # What cannot happen on the exact side counts as much as the other side believes in it.
        total += float(torch.where(true < -80, found.exp(), terms).sum(dtype=torch.float64))
        same += int((true.argmax(-1) == found.argmax(-1)).sum())
    if not total < float("inf"):
        raise InputError("logits contain NaN or infinity", "A model that overflows may need float32")
    return max(total, 0.0) / len(exact), same / len(exact)


def is_usable(trial: TrialSource) -> bool:
    """Tell whether enough followed for a session to be measured on."""
    return len(trial.continuation) >= MIN_CONTINUATION_TOKENS
