"""Where the bytes of a session in segments go, by section and by cause.

Causes are told apart by coding the same tokens again under steps that are not a file's own:

```
at once, its steps ──► in segments, the same steps ──► in segments, their own steps ──► their sections
                context                          ages                             coder
```
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from kvcompress.codec.tinyvae import TinyVAECodec
from kvcompress.format.container import Encoded
from kvcompress.format.session import own_sections
from kvcompress.snapshot import KVSnapshot
from kvcompress.store.segment import Part, part_of

Steps = list[Tensor]
"""For each group the QP [N] int32 of every token of a session."""


@dataclass(frozen=True, slots=True)
class Causes:
    """Bytes that segments take beyond one file of the same session.

    Attributes:
        fixed: Headers with their checksums, origins and positions.
        tokens: Token ids, which compress worse in pieces.
        context: Latents at the steps of the file at once: neighbours and words of other segments predict nothing.
        ages: Latents at the segments' own steps beyond that, where tokens were the newest once.
        unlike: Segments that look unlike what the codec knows and are stored finer, beyond their own steps.
        coder: What whole words of the entropy coder and escapes take beyond the bits of symbols, and offsets.
    """

    fixed: float
    tokens: float
    context: float
    ages: float
    unlike: float
    coder: float

    @property
    def total(self) -> float:
        """All of them."""
        return sum(float(getattr(self, one.name)) for one in fields(self))


def sections_of(files: Sequence[tuple[Encoded, int]]) -> dict[str, int]:
    """Return the bytes of files by section, groups added up; `header` is what lies before the first section.

    Args:
        files: Each with its size.
    """
    found = dict[str, int]()
    for file, size in files:
        parts = {name: len(data) for name, data in file.sections.items()}
        for name, count in {**parts, "header": size - sum(parts.values())}.items():
            name = name.split(".")[0]
            found[name] = found.get(name, 0) + count
    return found


def causes_of(
    codec: TinyVAECodec, exact: KVSnapshot, once: tuple[Encoded, int], parts: Sequence[tuple[Part, int]]
) -> Causes:
    """Return why segments take more than one file.

    Args:
        codec: Of both.
        exact: The session.
        once: Its file, stored as latents, and the file's size.
        parts: Its segments and their sizes.
    """
    qp = codec.promise_of(str(once[0].settings["quality"])).qp
    assert qp is not None
    steps = [codec.qps(group, exact.token_ids, qp) for group in range(len(codec.groups))]
    whole, pieces = sections_of([once]), sections_of([(part.encoded, size) for part, size in parts])
    cut = [part_of(part_of(exact, 0, part.end), part.start) for part, _ in parts]
    alike = sum(bits_at(codec, piece, steps, qp) for piece in cut) / 8
    context = alike - bits_at(codec, exact, steps, qp) / 8
    own, ages, unlike = 0.0, 0.0, 0.0
    for (part, _), piece in zip(parts, cut, strict=True):
        held = sum(len(part.encoded.sections[name]) for name in own_sections(part.encoded))
        same = bits_at(codec, piece, steps, qp) / 8
        mine = same if part.encoded.codec != codec.kind else bits_of(codec, part, piece) / 8
        ages += 0.0 if part.encoded.settings.get("unlike") else mine - same
        unlike += held - same if part.encoded.settings.get("unlike") else 0.0
        own += held
    fixed = sum(pieces.get(name, 0) - whole.get(name, 0) for name in ("header", "origin", "positions"))
    latents = sum(len(once[0].sections[name]) for name in own_sections(once[0]))
    coder = own - latents - context - ages - unlike
    return Causes(fixed, pieces["tokens"] - whole["tokens"], context, ages, unlike, coder)


def bits_at(codec: TinyVAECodec, snapshot: KVSnapshot, steps: Steps, qp: int) -> float:
    """Return the bits of a snapshot's latents where each of its tokens has a given QP."""
    with coded_at(codec, steps):
        return sum(float(code.bits(codec.bank).sum()) for code in codec.analyse(snapshot).codes(qp))


def bits_of(codec: TinyVAECodec, part: Part, piece: KVSnapshot) -> float:
    """Return the bits of a segment's latents at its own steps."""
    from kvcompress.codec.bitstream import read_codes

    ids = piece.token_ids
    codes = read_codes(codec, part.encoded, ids, [layer.positions for layer in piece.layers])
    return sum(float(code.bits(codec.bank).sum()) for code in codes)


@contextmanager
def coded_at(codec: TinyVAECodec, steps: Steps) -> Iterator[None]:
    """Let a codec code every token at a given QP, whatever its id and age."""

    def given(group: int, token_ids: Tensor, qp: int, offsets: Tensor | None = None) -> Tensor:
        return steps[group][: len(token_ids)]

    codec.qps = given  # type: ignore[method-assign]
    try:
        with torch.inference_mode():
            yield
    finally:
        del codec.qps
