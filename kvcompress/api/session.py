"""Save a model's session to a file, and load it back as the model's cache, in one call each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from kvcompress.api.encoding import Progress, encode
from kvcompress.api.options import EncodeOptions, PlanOptions
from kvcompress.codec.registry import load_snapshot
from kvcompress.data.chat_template import Dialogue
from kvcompress.data.next_turn import next_turn_of, with_dialogue
from kvcompress.data.recovery import agreed
from kvcompress.errors import InputError
from kvcompress.format.atomic import path_of, require_writable
from kvcompress.format.container import save
from kvcompress.format.default_device import on_cpu
from kvcompress.hf import capture, recompute_with, restore
from kvcompress.hf.conversation import turn_start
from kvcompress.hf.types import Cache, CausalLM, Tokenizer
from kvcompress.snapshot import KVSnapshot


@dataclass(frozen=True, slots=True)
class SavedSession:
    """What was written.

    Attributes:
        path: The file.
        tokens: Tokens of the session.
        file_bytes: Its size on disk.
        size_ratio: The cache at 16 bits a number over it.
        notes: What the size alone does not tell, a sentence each.
    """

    path: Path
    tokens: int
    file_bytes: int
    size_ratio: float
    notes: tuple[str, ...] = ()


@on_cpu
def save_session(
    path: str | Path,
    model: CausalLM,
    token_ids: Tensor | Sequence[int],
    *,
    cache: Cache | None = None,
    tokenizer: Tokenizer | None = None,
    messages: Sequence[Mapping[str, Any]] | None = None,
    codec: str | Path | None = None,
    quality: str | None = None,
    max_kl: float | None = None,
    size_ratio: float | None = None,
    lossless: bool = False,
    recompute_layers: int | None = None,
    plan: PlanOptions | None = None,
    force: bool = False,
    progress: Progress = lambda stage, done, total: None,
) -> SavedSession:
    """Store a session: run the model over its tokens, or take the cache that has seen them, encode, write.

    Args:
        path: File to write, by custom `.kvz`. It appears whole or not at all.
        model: The model, in evaluation mode.
        token_ids: [N] int64 or a list: the tokens of the session.
        cache: A transformers cache that covers exactly these tokens; it is read, never changed. None runs the model.
        tokenizer: Of the model; plans need it to find anchors, and the file then also names it.
        messages: The conversation that the tokens are of, as chat templates take it. The file keeps what the tokens do
            not tell of it, for `next_turn`; needs the tokenizer.
        codec: Name, directory or Hub id; None takes the one at hand that belongs to the model.
        quality: "transparent" (the default), "high" or "usable".
        max_kl: Or a bound on the mean KL in nats, kept on the session's own end.
        size_ratio: Or a size ratio to reach.
        lossless: Or the identical bits.
        recompute_layers: Layers that the model runs at load instead of storing them.
        plan: Tiers by token.
        force: Replace an existing file.
        progress: Called with stage, done, total where the model measures.

    Raises:
        InputError: Model, tokens, cache or options cannot be used, or the file exists.
        MismatchError: The codec is of another model.
    """
    options = EncodeOptions(
        quality=quality,
        max_kl=max_kl,
        size_ratio=size_ratio,
        lossless=lossless,
        recompute_layers=recompute_layers,
        plan=plan,
    )
    require_writable(path_of(path, "a session"), force)
    snapshot = capture(model, token_ids, tokenizer=tokenizer, cache=cache)
    if messages is not None:
        if tokenizer is None:
            raise InputError("messages need the tokenizer, whose chat template lays them out", "Pass tokenizer=")
        snapshot = _with_messages(snapshot, tokenizer, messages)
    found = encode(snapshot, options, codec=codec, model=lambda dtype: (model, tokenizer), progress=progress)
    save(path, found.encoded, force=force)
    size = Path(path).stat().st_size
    return SavedSession(Path(path), snapshot.tokens, size, snapshot.raw_bytes / size, found.notes)


def _with_messages(snapshot: KVSnapshot, tokenizer: Tokenizer, messages: Sequence[Mapping[str, Any]]) -> KVSnapshot:
    dialogue = Dialogue(tuple(messages))
    if agreed(tokenizer, dialogue, snapshot.token_ids.tolist()) is None:
        what = "the chat template lays these messages out in other tokens than those given"
        raise InputError(what, "Pass the messages that the tokens were made from, a generated answer among them")
    return with_dialogue(snapshot, tokenizer, dialogue)


@on_cpu
def load_session(
    path: str | Path,
    model: CausalLM,
    *,
    tokenizer: Tokenizer | None = None,
    codec: str | Path | None = None,
    max_memory: str | int | None = None,
) -> Any:
    """Load a session as a cache that the model goes on from.

    Args:
        path: A `.kvz` file, or a raw snapshot.
        model: The model that recorded it, in evaluation mode, on any device.
        tokenizer: Compared with the file's where given.
        codec: Name, directory or Hub id; None takes the one at hand that made the file.
        max_memory: The most memory that decoding may take, such as "512MB" or a number of bytes; 4 GB by default.

    Returns:
        A `transformers.DynamicCache` on the model's device, for `model.generate(ids, past_key_values=cache)`.

    Raises:
        MismatchError: The file is of another model, tokenizer or codec.
        FormatError: It is damaged; `IntegrityError` where a checksum tells.
        MemoryLimitError: What it declares would take more memory.
    """
    snapshot = load_snapshot(path_of(path, "a session"), codec, recompute_with(model, tokenizer), max_memory)
    return restore(snapshot, model, tokenizer=tokenizer, copy=False)


@on_cpu
def next_turn(
    path: str | Path,
    model: CausalLM,
    tokenizer: Tokenizer,
    text: str,
    *,
    codec: str | Path | None = None,
    special_tokens: bool = False,
) -> tuple[Any, Tensor]:
    """Let the user say something after a stored session, as the chat template lays out the whole conversation.

    Where the template lays earlier turns out anew, the cache is cut back to what still reads the same, and the rest is
    to be prefilled again.

    Args:
        path: A `.kvz` file, or a raw snapshot.
        model: The model that recorded it, in evaluation mode, on any device.
        tokenizer: Its tokenizer, with a chat template.
        text: What the user says.
        codec: Name, directory or Hub id; None takes the one at hand that made the file.
        special_tokens: Whether the text may spell special tokens.

    Returns:
        A cache and the token ids [1, N] int64 of the whole conversation, the assistant's turn opened, for
        `model.generate(token_ids, past_key_values=cache)`. The cache holds fewer than N tokens. Where tokens of the
        session were dropped, feed by `kvcompress.hf.generation`, which keeps positions.

    Raises:
        MismatchError: The file is of another model, tokenizer or codec.
        FormatError: It is damaged; `IntegrityError` where a checksum tells.
        InputError: The chat template refuses the conversation, or the cache cannot be cut back.
    """
    snapshot = load_snapshot(path_of(path, "a session"), codec, recompute_with(model, tokenizer))
    turn = next_turn_of(tokenizer, snapshot, text, special_tokens=special_tokens)
    cache = restore(snapshot, model, tokenizer=tokenizer, copy=False)
    start, _, _ = turn_start(model, snapshot, cache, turn.token_ids, turn.kept)
    return start, torch.tensor([turn.token_ids], device=model.device)
