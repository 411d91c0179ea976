"""A plan as a readable table: token, tier, bits, anchors, scores."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from kvcompress.codec.analysis import OFFSETS
from kvcompress.codec.exact_tokens import exact_layers
from kvcompress.errors import InputError
from kvcompress.format.ans import decode_choices
from kvcompress.format.atomic import atomic_write
from kvcompress.format.container import Encoded
from kvcompress.format.json_section import MAX_NUMBER
from kvcompress.prune.anchors import Anchor
from kvcompress.prune.tiers import Tier
from kvcompress.snapshot import KVSnapshot
from tinyvae.offsets import PRIOR_ONLY

TEXT_CHARACTERS = 16


@dataclass(frozen=True, slots=True, eq=False)
class Table:
    """What a file keeps of each token.

    Attributes:
        tiers: [N] int64.
        bits: [N], of its latents; 0 where nothing is coded.
        texts: What each token says; empty without a tokenizer.
        anchors: Kinds of anchors that each token lies in.
        parts: Parts of the score by name, [N] each.
    """

    tiers: Tensor
    bits: Sequence[float]
    texts: Sequence[str] = ()
    anchors: Sequence[Sequence[str]] = ()
    parts: Mapping[str, Sequence[float]] | None = None

    def counts(self) -> dict[str, int]:
        """Return how many tokens each tier has, the finest first."""
        return {tier.word: int((self.tiers == int(tier)).sum()) for tier in reversed(Tier)}

    def grid(self) -> tuple[list[str], list[list[str]], list[int]]:
        """Return names of columns, a row of texts for each token, and which columns are numbers."""
        parts = self.parts or {}
        head = ["token", "text", "tier", "bits", *parts, "anchors"]
        rows = []
        for index, tier in enumerate(self.tiers.tolist()):
            text = repr(self.texts[index])[1:-1][:TEXT_CHARACTERS] if self.texts else ""
            scores = [f"{part[index]:.3g}" for part in parts.values()]
            anchors = " ".join(self.anchors[index]) if self.anchors else ""
            rows.append([str(index), text, Tier(tier).word, f"{self.bits[index]:.1f}", *scores, anchors])
        return head, rows, [0, *range(3, 4 + len(parts))]

    def to_json(self) -> dict[str, Any]:
        """Return a JSON-able object, a list for each column."""
        data: dict[str, Any] = {"tier": [Tier(tier).word for tier in self.tiers.tolist()], "bits": list(self.bits)}
        data |= {"text": list(self.texts)} if self.texts else {}
        data |= {"anchors": [list(kinds) for kinds in self.anchors]} if self.anchors else {}
        return data | {"parts": {name: list(part) for name, part in (self.parts or {}).items()}}


def stored_tiers(encoded: Encoded, decoded: KVSnapshot) -> Tensor:
    """Return the tier [N] int64 of each token of a file of any codec.

    A token is dropped where no layer with full attention holds it.

    Args:
        encoded: The file.
        decoded: What it decodes to.

    Raises:
        FormatError: A section is damaged.
    """
    tiers, offsets = torch.full((decoded.tokens,), int(Tier.COARSE)), stored_offsets(encoded)
    if offsets is not None:
        tiers[offsets > 0] = int(Tier.FINE)
        tiers[offsets == PRIOR_ONLY] = int(Tier.PRIOR)
    held = torch.zeros(decoded.tokens, dtype=torch.bool)
    pairs = zip(decoded.layers, decoded.origin.layer_kinds, strict=True)
    for layer in [layer for layer, kind in pairs if kind == "full_attention"] or decoded.layers:
        held[layer.positions] = True
    tiers[~held] = int(Tier.DROPPED)
    for layer in exact_layers(encoded, decoded):
        tiers[layer.positions] = int(Tier.EXACT)
    return tiers


def stored_offsets(encoded: Encoded) -> Tensor | None:
    """Return the QP offsets [N] of a file's tokens, None where all are coded alike."""
    if OFFSETS not in encoded.sections:
        return None
    return torch.from_numpy(decode_choices(encoded.sections[OFFSETS], encoded.tokens))


def table_of(encoded: Encoded, codec: Any, decoded: KVSnapshot, texts: Sequence[str] = ()) -> Table:
    """Return the table of a file.

    Args:
        encoded: The file.
        codec: Its codec; bits are known of TinyVAE's.
        decoded: What it decodes to.
        texts: What each token says.
    """
    tiers = stored_tiers(encoded, decoded)
    bits = codec.stored_bits(encoded) if hasattr(codec, "stored_bits") else [0.0] * len(tiers)
    return Table(tiers, bits, texts)


def kinds_of(anchors: Iterable[Anchor], tokens: int) -> list[list[str]]:
    """Return for each of N tokens the kinds of anchors that it lies in."""
    found: list[list[str]] = [[] for _ in range(tokens)]
    for anchor in anchors:
        for index in range(anchor.start, anchor.stop):
            if anchor.kind not in found[index]:
                found[index].append(anchor.kind)
    return found


def save_table(path: Path, table: Table, search: Mapping[str, Any], *, force: bool = False) -> None:
    """Write a table and what the search found as JSON; it appears whole or not at all."""
    text = json.dumps({**table.to_json(), "search": dict(search)}, ensure_ascii=False)
    atomic_write(path, [text.encode()], force=force)


def load_table(path: Path, tiers: Tensor, bits: Sequence[float]) -> Table:
    """Return a stored table of a file whose own tiers and bits are these.

    Raises:
        InputError: It cannot be read, or is of another file.
    """
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        words, parts = found["tier"], dict(found["parts"])
        texts, anchors = list(found.get("text", [])), list(found.get("anchors", []))
        columns = [*parts.values(), *(column for column in (texts, anchors) if column)]
        if any(len(column) != len(tiers) for column in columns):
            raise ValueError("its columns are of another length")
        _require_columns(parts, texts, anchors)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise InputError(
            f"is no table of a plan ({error})", "Name the file that encode --plan-table wrote", path=path
        ) from error
    if words != [Tier(tier).word for tier in tiers.tolist()]:
        raise InputError("is the plan of another file", "Name the one that was written with it", path=path)
    return Table(tiers, bits, texts, anchors, parts)


def _require_columns(parts: Mapping[str, Any], texts: Sequence[Any], anchors: Sequence[Any]) -> None:
    """Raise `TypeError` unless scores are numbers, texts texts, and anchors lists of texts."""
    scores = (score for part in parts.values() for score in part)
    if not all(isinstance(score, float) or (type(score) is int and abs(score) <= MAX_NUMBER) for score in scores):
        raise TypeError("a score is no number")
    if not all(isinstance(kinds, list) for kinds in anchors):
        raise TypeError("the anchors of a token are no list")
    if not all(isinstance(text, str) for text in (*texts, *(kind for kinds in anchors for kind in kinds))):
        raise TypeError("a text is none")
