"""Code sessions at once and in segments, and measure bytes and what resuming loses, right after every append."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from eval.segments.causes import Causes, causes_of, sections_of
from kvcompress.api.codecs import LoadedCodecs
from kvcompress.codec.promise import LATENTS
from kvcompress.hf import capture, restore
from kvcompress.hf.generation import feed
from kvcompress.snapshot import KVSnapshot
from kvcompress.store.assembly import assemble
from kvcompress.store.objects import content_digest
from kvcompress.store.segment import Coding, Part, encode_part, part_of, read_part
from kvcompress_eval.suite.damage import damage
from kvcompress_eval.suite.subject import context_worth

AFTER_TOKENS = 128
"""Tokens after a store over which promises are measured."""


WORTH_STRIDE = 4


@dataclass(frozen=True, slots=True)
class Loss:
    """What resuming after an append loses, over the tokens that follow.

    Attributes:
        tokens: Stored by then.
        kl_nats: Mean KL(exact || resumed).
        context_worth_nats: What the context is worth there.
        top1_lost: 1 - agreement of the most likely token.
    """

    tokens: int
    kl_nats: float
    context_worth_nats: float
    top1_lost: float


@dataclass(frozen=True, slots=True)
class Row:
    """One session at one quality, in segments of one length.

    Attributes:
        session: Its id.
        quality: The word.
        segment_tokens: Tokens of a segment, all of the session's where it is coded at once.
        segments: How many.
        unlike: How many of them were stored finer because they look unlike what the codec knows.
        size_bytes: Of all of them.
        raw_bytes: At 16 bits a number.
        sections: Bytes by section.
        causes: Why they take more than one file; None for that.
        losses: After appends.
    """

    session: str
    quality: str
    segment_tokens: int
    segments: int
    unlike: int
    size_bytes: int
    raw_bytes: int
    sections: dict[str, int]
    causes: Causes | None
    losses: tuple[Loss, ...]


@dataclass(frozen=True, slots=True)
class Settings:
    """What is measured.

    Attributes:
        tokens: Of a session.
        lengths: Of segments, in tokens; each divides `tokens`.
        qualities: Words.
        ends: How many appends, evenly spread and the last among them, are resumed after.
        over_decoded: Whether each segment is what the model computes over the decoded past, as a session that is
            resumed for every turn has it; else the model was never interrupted.
    """

    tokens: int = 1024
    lengths: tuple[int, ...] = (32, 128, 256)
    qualities: tuple[str, ...] = ("transparent", "high", "usable")
    ends: int = 4
    over_decoded: bool = False


class Bench:
    """One model and its codec."""

    def __init__(self, model: Any, codec: str, settings: Settings) -> None:
        self.model, self.settings = model, settings
        self.codecs = LoadedCodecs(codec)
        self._true: dict[int, tuple[Tensor, float]] = {}

    @torch.inference_mode()
    def rows(self, name: str, ids: Tensor) -> Iterator[Row]:
        """Yield what is measured of one session, ids [tokens + 128] int64: each word at once, then in segments."""
        wanted, tokens = self.settings, self.settings.tokens
        exact = capture(self.model, ids[:tokens])
        self._true.clear()
        for quality in wanted.qualities:
            data = encode_part(exact, 0, "", Coding(quality), self.codecs)
            once = read_part(data)
            ends = [tokens * number // wanted.ends for number in range(1, wanted.ends + 1)]
            lost = []
            for end in ends:
                file = encode_part(part_of(exact, 0, end), 0, "", Coding(quality), self.codecs)
                lost.append(self._loss(exact, assemble([read_part(file)], self.codecs), ids, end))
            yield self._row(name, quality, tokens, exact, [(once, len(data))], lost, None)
            for length in wanted.lengths:
                parts, lost = self._segments(exact, quality, length, ids, ends)
                codec = self.codecs.encoder(exact)
                plain = codec.promise_of(quality).setting.kind == LATENTS and not wanted.over_decoded
                causes = causes_of(codec, exact, (once.encoded, len(data)), parts) if plain else None
                yield self._row(name, quality, length, exact, parts, lost, causes)

    def _segments(
        self, exact: KVSnapshot, quality: str, length: int, ids: Tensor, ends: Sequence[int]
    ) -> tuple[list[tuple[Part, int]], list[Loss]]:
        parts, lost, parent = list[tuple[Part, int]](), list[Loss](), ""
        for end in range(length, len(exact.token_ids) + 1, length):
            whole = part_of(exact, 0, end)
            if self.settings.over_decoded and parts:
                cache = restore(assemble([part for part, _ in parts], self.codecs), self.model)
                feed(self.model, cache, ids[end - length : end], end - length, last_only=True)
                whole = capture(self.model, ids[:end], cache=cache)
            data = encode_part(whole, end - length, parent, Coding(quality), self.codecs)
            parent = content_digest(data)
            parts.append((read_part(data), len(data)))
            if end in ends:
                lost.append(self._loss(exact, assemble([part for part, _ in parts], self.codecs), ids, end))
        return parts, lost

    def _loss(self, exact: KVSnapshot, decoded: KVSnapshot, ids: Tensor, end: int) -> Loss:
        after = ids[end : end + AFTER_TOKENS]
        if end not in self._true:
            cache = restore(part_of(exact, 0, end), self.model)
            true = torch.log_softmax(feed(self.model, cache, after, end).float(), -1)
            worth = context_worth(self.model, ids[:end], after, true, WORTH_STRIDE)
            self._true[end] = true, float(worth.mean())
        true, worth_nats = self._true[end]
        found = damage(true, feed(self.model, restore(decoded, self.model), after, end))
        return Loss(end, float(found.kl_nats.mean()), worth_nats, 1 - float(found.same.double().mean()))

    def _row(
        self,
        name: str,
        quality: str,
        length: int,
        exact: KVSnapshot,
        parts: Sequence[tuple[Part, int]],
        lost: Sequence[Loss],
        causes: Causes | None,
    ) -> Row:
        files = [(part.encoded, size) for part, size in parts]
        return Row(
            session=name,
            quality=quality,
            segment_tokens=length,
            segments=len(parts),
            unlike=sum(bool(part.encoded.settings.get("unlike")) for part, _ in parts),
            size_bytes=sum(size for _, size in parts),
            raw_bytes=sum(part.encoded.raw_bytes for part, _ in parts),
            sections=sections_of(files),
            causes=causes,
            losses=tuple(lost),
        )


def write_rows(rows: Sequence[Row], path: Path) -> None:
    """Write rows as JSON lines."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(asdict(row)) + "\n" for row in rows), encoding="utf-8")
