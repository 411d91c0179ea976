"""Collect the evidence that scorers need: the only place where pruning runs the model.

```
surprise, queries      one reading of the session, 256 tokens at a time, under an observer
window_attention       the last 32 queries; alone it costs these 32 tokens only
reconstruction         the session once more, behind its own cache
sensitivity            a few sampled continuations, one backward pass each
```
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from kvcompress.codec.sensitivity import token_importance
from kvcompress.codec.tinyvae import TinyVAECodec
from kvcompress.errors import InputError
from kvcompress.hf.attention_hook import Observer, Sight
from kvcompress.hf.channels import Rope
from kvcompress.hf.families import new_cache
from kvcompress.hf.fingerprint import fingerprint
from kvcompress.hf.generation import context_limit
from kvcompress.hf.gradients import cache_gradients
from kvcompress.hf.restore import restore
from kvcompress.hf.rope import rope_of
from kvcompress.hf.sampling import CONTINUATIONS, sample_continuations
from kvcompress.hf.types import CausalLM, Tokenizer
from kvcompress.prune.evidence.record import (
    KINDS,
    QUERIES,
    RECONSTRUCTION,
    SENSITIVITY,
    SURPRISE,
    WINDOW_ATTENTION,
    Evidence,
    QueryStatistics,
)
from kvcompress.prune.scorers.attention_mass import WINDOW_TOKENS
from kvcompress.snapshot import KVSnapshot, LayerKV

CHUNK_TOKENS = 256
QUERY_TOKENS = 128
LEAST_PIECE_TOKENS = 16
DRAWS = 2
"""Continuations differ in their gradients, and so do tokens drawn along one; a second draw costs no sampling."""


def collect(
    model: CausalLM,
    snapshot: KVSnapshot,
    needs: Iterable[str],
    *,
    tokenizer: Tokenizer | None = None,
    codec: TinyVAECodec | None = None,
    continuations: Tensor | None = None,
    seed: int = 0,
    known: Evidence | None = None,
) -> Evidence:
    """Return the evidence of one session.

    Args:
        model: The model that recorded the snapshot, in evaluation mode.
        snapshot: The cache, exact and holding every token that its windows let it hold.
        needs: Kinds of evidence, of `kvcompress.prune.evidence.record.KINDS`.
        tokenizer: Compared with the recording one if both are known.
        codec: Its latents are what gradients are taken with respect to; without it keys and values are.
        continuations: [B, T] int64, continuations for the sensitivity; sampled if not given.
        seed: Of sampled continuations and of the tokens drawn along them.
        known: What was collected before; its kinds are not collected again.

    Raises:
        MismatchError: The snapshot comes from another model.
        InputError: A kind is unknown, the snapshot is pruned, or the model does not show what is asked for.
    """
    wanted = set(needs)
    if wanted - set(KINDS):
        raise InputError(f"unknown evidence: {', '.join(sorted(wanted - set(KINDS)))}", f"Known are {', '.join(KINDS)}")
    evidence = known or Evidence(snapshot)
    wanted -= set(evidence.kinds)
    if not wanted:
        return evidence
    snapshot.origin.fingerprint.require_match(fingerprint(model, tokenizer))
    require_whole(snapshot)
    if not snapshot.tokens:
        return _nothing(evidence)
    if wanted & {SURPRISE, QUERIES, WINDOW_ATTENTION}:
        start = 0 if wanted & {SURPRISE} else snapshot.tokens - _window(wanted)
        evidence = read(Observer(model), evidence, max(start, 0))
    if RECONSTRUCTION in wanted:
        evidence = dataclasses.replace(evidence, reconstruction=reread(Observer(model), snapshot))
    if SENSITIVITY in wanted:
        if continuations is None:
            continuations = sample_continuations(model, snapshot, count=CONTINUATIONS, seed=seed)
        evidence = dataclasses.replace(evidence, sensitivity=sensitivity(model, snapshot, continuations, codec, seed))
    return evidence


def _window(wanted: set[str]) -> int:
    return QUERY_TOKENS if QUERIES in wanted else WINDOW_TOKENS


def _nothing(evidence: Evidence) -> Evidence:
    """Return the evidence of a session without tokens."""
    none, layers = (
        torch.zeros(0, dtype=torch.float32),
        tuple(torch.zeros(len(layer.keys), 0, dtype=torch.float32) for layer in evidence.snapshot.layers),
    )
    queries = []
    for layer in evidence.snapshot.layers:
        heads, _, size = layer.keys.shape
        queries.append(
            QueryStatistics(
                torch.zeros(heads, size, dtype=torch.float32), torch.zeros(heads, size, size, dtype=torch.float32), 1.0
            )
        )
    return Evidence(evidence.snapshot, none, layers, tuple(queries), layers, none)


def require_whole(snapshot: KVSnapshot) -> None:
    """Raise `InputError` where tokens were dropped: what the model saw can then not be looked at."""
    for index, (kind, layer) in enumerate(zip(snapshot.origin.layer_kinds, snapshot.layers, strict=True)):
        if kind == "full_attention" and len(layer.positions) != snapshot.tokens:
            what = (
                f"layer {index} holds {len(layer.positions)} of {snapshot.tokens} tokens: the cache is pruned already"
            )
            raise InputError(what, "Give a cache that holds every token")


class _Reading:
    """What is noted of each layer while a session is read.

    Args:
        evidence: Of which session.
    """

    def __init__(self, evidence: Evidence) -> None:
        self.snapshot = evidence.snapshot
        layers = len(self.snapshot.layers)
        self.mass: list[Tensor | None] = [None] * layers
        self.late: list[list[Tensor]] = [[] for _ in range(layers)]
        self.scaling = [1.0] * layers
        self.at = 0

    def see(self, sight: Sight) -> None:
        """Add up the attention of the window's queries, and keep the latest queries."""
        tokens, index = self.snapshot.tokens, sight.layer
        fed = sight.queries.shape[1]
        window = min(fed, self.at + fed - max(tokens - WINDOW_TOKENS, 0))
        if window > 0:
            rows = sight.probabilities[:, -window:].double().sum(1).cpu()
            if self.mass[index] is None:
                self.mass[index] = torch.zeros(len(rows), tokens, dtype=torch.float64)
            total = self.mass[index]
            assert total is not None
            end = self.at + fed
            total[:, end - rows.shape[1] : end] += rows
        late = min(fed, self.at + fed - max(tokens - QUERY_TOKENS, 0))
        if late > 0:
            self.late[index].append(sight.queries[:, -late:].detach().float().cpu())
            self.scaling[index] = sight.scaling

    def statistics(self, rope: Rope) -> tuple[QueryStatistics, ...]:
        """Return the moments of the latest queries of each layer."""
        found = []
        for index, rows in enumerate(self.late):
            queries = torch.cat(rows, 1)
            positions = torch.arange(self.snapshot.tokens - queries.shape[1], self.snapshot.tokens)
            plain = rope.undo(index, queries, positions)
            mean = plain.mean(1)
            centred = plain - mean[:, None]
            covariance = centred.transpose(1, 2) @ centred / max(plain.shape[1], 1)
            found.append(QueryStatistics(mean, covariance, self.scaling[index]))
        return tuple(found)


def read(observer: Observer, evidence: Evidence, start: int) -> Evidence:
    """Run the model over the session from token `start` on and note what it shows.

    Surprise is known only where `start` is 0; queries are those of the last 128 tokens that were run.
    """
    snapshot = evidence.snapshot
    if start and any(len(layer.positions) != snapshot.tokens for layer in snapshot.layers):
        start = 0  # a window that has moved on cannot be cut back
    cache = _cut_cache(observer, snapshot, start) if start else new_cache(observer.model)
    reading, surprise = _Reading(evidence), [torch.zeros(1, dtype=torch.float32)]
    for at in range(start, snapshot.tokens, CHUNK_TOKENS):
        chunk = snapshot.token_ids[at : at + CHUNK_TOKENS]
        reading.at = at
        logits = observer.run(chunk, at, cache, reading.see, logits=start == 0)
        if logits is not None:
            following = snapshot.token_ids[at + 1 : at + 1 + len(chunk)]
            logs = torch.log_softmax(logits[: len(following)].float().cpu(), dim=-1)
            surprise.append(-logs.gather(1, following[:, None])[:, 0])
    masses = tuple(mass.float() for mass in reading.mass if mass is not None)
    return dataclasses.replace(
        evidence,
        surprise=torch.cat(surprise) if start == 0 else evidence.surprise,
        window_attention=masses,
        queries=reading.statistics(rope_of(snapshot.origin)),
    )


def _cut_cache(observer: Observer, snapshot: KVSnapshot, tokens: int) -> Any:
    """Return the cache of the first tokens of an unpruned session."""
    layers = tuple(LayerKV(kv.keys[:, :tokens], kv.values[:, :tokens], kv.positions[:tokens]) for kv in snapshot.layers)
    origin = dataclasses.replace(snapshot.origin, next_position=tokens)
    return restore(KVSnapshot(layers, snapshot.token_ids[:tokens], origin), observer.model, check_fingerprint=False)


def reread(observer: Observer, snapshot: KVSnapshot) -> tuple[Tensor, ...]:
    """Let the model read the session again behind its own cache, piece by piece, each from the whole cache alone.

    Returns:
        For each layer [Hq, N] float32: the highest attention that any query of any piece pays to each token.

    Raises:
        InputError: The model's context leaves no room for a piece.
    """
    tokens, limit = snapshot.tokens, context_limit(observer.model)
    piece = CHUNK_TOKENS if limit is None else min(CHUNK_TOKENS, limit - tokens)
    if piece < min(LEAST_PIECE_TOKENS, tokens):
        what = f"after {tokens} tokens the model's context of {limit} leaves no room to read the session again"
        raise InputError(what, "Use another scorer")
    highest: list[Tensor | None] = [None] * len(snapshot.layers)

    def see(sight: Sight) -> None:
        # What stands before the queries is the session, or the part of it that a window still shows to each of them.
        fed = sight.queries.shape[1]
        shown = sight.probabilities[..., :-fed].amax(1).float().cpu()
        if highest[sight.layer] is None:
            highest[sight.layer] = torch.zeros(len(shown), tokens, dtype=torch.float32)
        best = highest[sight.layer]
        assert best is not None
        part = best[:, tokens - shown.shape[1] :]
        part.copy_(torch.maximum(part, shown))

    for start in range(0, tokens, piece):
        cache = restore(snapshot, observer.model, check_fingerprint=False)
        observer.run(snapshot.token_ids[start : start + piece], snapshot.origin.next_position, cache, see)
    return tuple(best for best in highest if best is not None)


def sensitivity(
    model: CausalLM, snapshot: KVSnapshot, continuations: Tensor, codec: TinyVAECodec | None, seed: int = 0
) -> Tensor:
    """Return [N] float32: squared gradients with respect to each token's cache, mean over continuations.

    Args:
        model: The snapshot's model.
        snapshot: The exact cache.
        continuations: [B, T] int64.
        codec: Its latents are what gradients are taken with respect to; without it keys and values, each counted by its
            spread over the session.
        seed: Of the tokens drawn along each future.
    """
    generator = torch.Generator().manual_seed(seed)
    total = torch.zeros(snapshot.tokens, dtype=torch.float32)
    for future in continuations:
        if codec is not None:
            for places, energy in token_importance(model, codec, snapshot, future, generator, DRAWS):
                total[places] += energy / len(continuations)
        else:
            total += _plain_energy(model, snapshot, future, generator) / len(continuations)
    return total


def _plain_energy(model: CausalLM, snapshot: KVSnapshot, future: Tensor, generator: torch.Generator) -> Tensor:
    rope, total = rope_of(snapshot.origin), torch.zeros(snapshot.tokens, dtype=torch.float32)
    for _ in range(DRAWS):
        gradients = cache_gradients(model, snapshot, future, rope, generator)
        for layer, pair in zip(snapshot.layers, gradients, strict=True):
            for part, exact in zip(pair, (layer.keys, layer.values), strict=True):
                spread = (
                    exact.float().var(1, keepdim=True) if exact.shape[1] > 1 else torch.ones(1, dtype=torch.float32)
                )
                total[layer.positions] += (part.float().square() * spread).sum((0, 2)) / DRAWS
    return total
