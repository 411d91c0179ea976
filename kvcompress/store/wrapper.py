"""A model that talks and is remembered: every turn is in the store before its answer is returned.

```
say ──► tokens of the turn ──► read, surprises noted ──► answer ──► append ──► checkpoint
```
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor

from kvcompress.data.chat_template import Dialogue
from kvcompress.data.next_turn import kept_dialogue, next_turn, with_dialogue
from kvcompress.errors import InputError
from kvcompress.hf.conversation import Conversation, common_prefix, stop_ids
from kvcompress.hf.generation import TextStream, feed
from kvcompress.hf.types import CausalLM, Tokenizer
from kvcompress.snapshot import KVSnapshot
from kvcompress.store.floor import Floor, append_above, floor_of
from kvcompress.store.segment import part_of
from kvcompress.store.store import Store

PEAK_DEVIATIONS = 4.0
"""A token is a peak where its surprise lies so many standard deviations above the mean of its turn."""

LEAST_SURPRISES = 16
"""Of fewer tokens, the spread is not known."""

COLLECT_EVERY_TURNS = 16
"""Collecting looks at every session of a store."""


class Session:
    """A conversation with a model that saves as it talks.

    Where the store knows the session, it goes on from there.

    Args:
        model: A causal language model in evaluation mode.
        tokenizer: Its tokenizer, with a chat template.
        store: A store, or the folder of one; it is made where it is missing.
        name: Of the session in the store.
        quality: "transparent" (the default), "high" or "usable".
        lossless: Or the identical bits.
        surprises: Also set a checkpoint before tokens that surprise the model far more than the rest of the turn.
        keep_last: Automatic checkpoints that stay when the store is collected; None keeps all.
        floor: Store as token ids alone what the model reads sooner than it is restored: True measures both once for
            the model and this machine, a number says below how many tokens. Not with `lossless`, for what is computed
            again need not be the same bits.

    Attributes:
        told: Whether the last turn is as the chat template lays it out; False where the stored session is in no layout
            of it, so that the turn was put behind it.

    Raises:
        MismatchError: The session is of another model.
        InputError: Store, session or quality cannot be used.
    """

    def __init__(
        self,
        model: CausalLM,
        tokenizer: Tokenizer,
        *,
        store: Store | str | Path,
        name: str,
        quality: str | None = None,
        lossless: bool = False,
        surprises: bool = False,
        keep_last: int | None = None,
        floor: bool | int = False,
    ) -> None:
        if lossless and floor:
            what = "what lies below the restore floor is computed again, and need not be the identical bits"
            raise InputError(what, "Leave out lossless or floor")
        self.floor = floor
        self.model, self.tokenizer = model, tokenizer
        self.store = store if isinstance(store, Store) else Store(store, create=True)
        self.stored = self.store.session(name, create=True)
        self.quality, self.lossless = quality, lossless
        self.surprises, self.keep_last, self._turns = surprises, keep_last, 0
        self.talk = Conversation(model)
        self._take_up()

    def __repr__(self) -> str:
        return f"Session({self.stored.name!r}, {len(self.talk.seen):,} tokens)"

    @property
    def token_ids(self) -> list[int]:
        """All tokens of the conversation that are in the store."""
        return list(self.talk.seen)

    def _take_up(self) -> None:
        """Go on from the stored state."""
        self.talk, self.told = Conversation(self.model), True
        self._dialogue: Dialogue | None = None
        if self.stored.tokens:
            found = self.stored.resume(self.model, self.tokenizer)
            self.talk.cache, self.talk.seen = found.cache, found.token_ids.tolist()
            self._dialogue = kept_dialogue(self.tokenizer, self.talk.seen, found.conversation)

    def say(
        self, text: str, *, max_new_tokens: int = 256, on_text: Callable[[str], object] = lambda piece: None
    ) -> str:
        """Say something, and return the answer once both are in the store.

        Args:
            text: What the user says.
            max_new_tokens: The answer's longest.
            on_text: Called with each piece of the answer as it comes.
        """
        before = self.token_ids
        turn = next_turn(self.tokenizer, before, text, dialogue=self._dialogue)
        ids = list(turn.token_ids)
        peaks = self._read(ids) if self.surprises else []
        pieces: list[str] = []

        def write(piece: str) -> None:
            pieces.append(piece)
            on_text(piece)

        stream = TextStream(self.tokenizer, write, ids)
        stop = stop_ids(self.model, self.tokenizer)
        new_ids = self.talk.reply(ids, max_new_tokens=max_new_tokens, stop_ids=stop, on_token=stream)
        stream.close()
        spoken = new_ids[:-1] if new_ids and new_ids[-1] in stop else new_ids
        self.told, self._dialogue = turn.told, turn.answered(self.tokenizer, spoken)
        self._save(before, [*ids, *new_ids], peaks)
        return "".join(pieces)

    async def say_async(
        self, text: str, *, max_new_tokens: int = 256, on_text: Callable[[str], object] = lambda piece: None
    ) -> str:
        """Do what `say` does in a thread, so that an event loop goes on meanwhile."""
        return await asyncio.to_thread(self.say, text, max_new_tokens=max_new_tokens, on_text=on_text)

    def rewind(self, at: int | str | None = None, *, turns: int | None = None) -> None:
        """Go back to an earlier state and on from there; see `StoredSession.rewind`."""
        self.stored.rewind(at, turns=turns)
        self._take_up()

    def _read(self, ids: Sequence[int]) -> list[tuple[int, float]]:
        """Read the new tokens but the last one; return the positions before which the model was surprised, in nats."""
        seen = self.talk.seen
        kept = common_prefix(seen, ids)
        if kept < len(seen) or kept >= len(ids) - 1:
            return []
        fed = torch.tensor(list(ids[kept:-1]))
        logits = feed(self.model, self.talk.cache, fed, kept)
        self.talk.seen = list(ids[:-1])
        chances = torch.log_softmax(logits.double().cpu(), -1)
        return peaks_of(-chances.gather(1, torch.tensor(ids[kept + 1 :])[:, None])[:, 0], kept + 1)

    def _save(self, before: Sequence[int], ids: list[int], peaks: Sequence[tuple[int, float]]) -> None:
        """Append the turn, with a checkpoint at its end and before each peak."""
        snapshot = self.talk.snapshot(ids, self.tokenizer)
        if self._dialogue is not None:
            snapshot = with_dialogue(snapshot, self.tokenizer, self._dialogue)
        self._meet(before, ids)
        whole = all(len(layer.positions) == snapshot.tokens for layer in snapshot.layers)
        for position, nats in peaks if whole else ():
            self._append(part_of(snapshot, 0, position))
            self.stored.checkpoint(said={"why": "surprise", "nats": round(nats, 3)})
        self._append(snapshot)
        self.stored.checkpoint(said={"why": "turn"})
        self._turns += 1
        if self.keep_last is not None and not self._turns % COLLECT_EVERY_TURNS:
            self.store.gc(keep_last=self.keep_last)

    def _append(self, snapshot: KVSnapshot) -> None:
        floor = self._floor(snapshot) if self.floor and snapshot.tokens > 1 else None
        if floor is None:
            self.stored.append(snapshot, quality=self.quality, lossless=self.lossless)
        else:
            append_above(self.stored, snapshot, floor, quality=self.quality)

    def _floor(self, snapshot: KVSnapshot) -> Floor:
        if self.floor is not True:
            return Floor.at(self.floor)
        return floor_of(self.store, self.model, snapshot, quality=self.quality)

    def _meet(self, before: Sequence[int], ids: Sequence[int]) -> None:
        """Rewind the stored session to the last turn that the conversation still begins with."""
        shared = common_prefix(before, ids)
        if shared < len(before):
            gone = sum(turn.end > shared for turn in self.stored.turns())
            self.stored.rewind(turns=gone)


def peaks_of(surprises: Tensor, first: int) -> list[tuple[int, float]]:
    """Return where tokens surprise far more than the others, and by how many nats.

    Args:
        surprises: [T] float64, minus the logarithm of each token's probability, in nats.
        first: Position of the first of them in the session.
    """
    if len(surprises) < LEAST_SURPRISES:
        return []
    limit = float(surprises.mean() + PEAK_DEVIATIONS * surprises.std())
    return [(first + int(index), float(surprises[index])) for index in torch.nonzero(surprises > limit)[:, 0]]
