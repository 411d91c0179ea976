"""Anchors: tokens that carry the meaning of a session and are protected whatever their score.

Eviction by one score loses some instructions silently while others survive ("The Pitfalls of KV Cache Compression",
Chen et al., arXiv 2510.00231; a list of what must stay, and fair shares, mend it). So anchors are found from the
tokens and their text alone, and each kind has a tier below which its tokens never fall.

```
sink         the first tokens, on which attention rests
role         whose turn it is
delimiter    special tokens between turns
instruction  a system turn; a user's sentence that asks for something in every answer or forbids something
entity       a name: capital letters where no sentence begins
number       digits, with what joins them: times, codes, amounts
mark         what the user named: a regular expression, or whole messages
checkpoint   end of a turn, peak of surprise: where one might want to go back to
```
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from kvcompress.errors import InputError
from kvcompress.hf.types import Tokenizer

SINK, ROLE, DELIMITER, INSTRUCTION = "sink", "role", "delimiter", "instruction"
ENTITY, NUMBER, MARK, CHECKPOINT = "entity", "number", "mark", "checkpoint"
KINDS = (SINK, ROLE, DELIMITER, INSTRUCTION, ENTITY, NUMBER, MARK, CHECKPOINT)

SINK_TOKENS = 4
ROLES = ("system", "user", "assistant", "tool", "developer")
PEAK_DEVIATIONS = 4.0
LONGEST_CHARACTER_TOKENS = 4

_NUMBER = re.compile(r"\d+(?:[.,:/-]\d+)*")
_NAME = re.compile(r"(?<![.!?:\n\"'] )(?<!^)\b[A-Z][\w-]+(?: [A-Z][\w-]+)*|\b(?=\w*[A-Z]\w*[A-Z\d])\w{2,}\b")
_SENTENCE = re.compile(r"[^.!?\n]+[.!?]*")
_STANDING = re.compile(
    r"\b(?:(?:every|each|all|any) (?:of )?(?:your |my |the )?(?:\w+ )?"
    r"(?:answers?|repl(?:y|ies)|responses?|messages?|times?)"
    r"|always|never|must(?: not)?|from now on|remember to|make sure|at all times|unless i)\b|^\s*(?:do not|don't)\b",
    re.IGNORECASE,
)


@dataclass(frozen=True, slots=True)
class Anchor:
    """A span of tokens that carries meaning.

    Attributes:
        kind: One of `KINDS`.
        start: First token.
        stop: One past the last.
    """

    kind: str
    start: int
    stop: int


@dataclass(frozen=True, slots=True, eq=False)
class Text:
    """A session's tokens as text.

    Attributes:
        pieces: What each token adds to the text; special tokens are written out.
        special: [N] bool, which tokens are special ones.
    """

    pieces: tuple[str, ...]
    special: Tensor

    @property
    def text(self) -> str:
        """The whole session."""
        return "".join(self.pieces)

    def starts(self) -> list[int]:
        """Return for each token the index of its first character, and at last the length of the text."""
        found = [0]
        for piece in self.pieces:
            found.append(found[-1] + len(piece))
        return found


def text_of(tokenizer: Tokenizer, token_ids: Tensor) -> Text:
    """Return the text of token ids [N]: each token decoded behind the one before it, which gives it its spaces.

    A character that several tokens spell belongs to the last of them.
    """
    ids = token_ids.tolist()
    known = set(getattr(tokenizer, "all_special_ids", ()))
    added = getattr(tokenizer, "added_tokens_decoder", {})
    known |= {number for number, token in added.items() if getattr(token, "special", False)}
    pieces, told = list[str](), 0
    for at in range(len(ids)):
        context = max(told - 1, 0)
        now = tokenizer.decode(ids[context : at + 1])
        if now.endswith("\ufffd") and at - told < LONGEST_CHARACTER_TOKENS and at + 1 < len(ids):
            pieces.append("")
            continue
        pieces.append(now[len(tokenizer.decode(ids[context:told])) :])
        told = at + 1
    return Text(tuple(pieces), torch.tensor([token in known for token in ids], dtype=torch.bool))


@dataclass(frozen=True, slots=True)
class Turn:
    """One message: whose it is, where what opens it begins, and its tokens without the special ones around it."""

    role: str
    opening: int
    start: int
    stop: int


def turns(text: Text) -> list[Turn]:
    """Return the messages of a session, found by its special tokens; one of no role where there are none.

    A role is told by the special token before a message (`<|user|>`), by its first line (ChatML), or by a header of its
    own between special tokens (Llama 3).
    """
    found, header = list[Turn](), None
    for start, stop in _plain_runs(text):
        said, opening = "".join(text.pieces[start:stop]), max(start - 1, 0)
        if said.strip() in ROLES:
            header = (said.strip(), opening)
            continue
        role, begin = _first_line_role(text, start, stop)
        if not role and header is not None:
            role, opening = header
        elif not role and start:
            named = re.sub(r"\W", "", text.pieces[start - 1]).lower()
            role = next((r for r in ROLES if named.endswith(r)), "")
        header = None
        if said.strip() and begin < stop:
            found.append(Turn(role, opening, begin, stop))
    return found


def _plain_runs(text: Text) -> Iterator[tuple[int, int]]:
    """Yield where tokens that are not special begin and end."""
    edges = [-1, *torch.nonzero(text.special)[:, 0].tolist(), len(text.pieces)]
    yield from ((a + 1, b) for a, b in pairwise(edges) if b > a + 1)


def _first_line_role(text: Text, start: int, stop: int) -> tuple[str, int]:
    """Return the role that the first line of a run names, or "", and where what is said begins."""
    line = ""
    for at in range(start, stop):
        line += text.pieces[at]
        if "\n" in line:
            role = line.partition("\n")[0].strip()
            return (role, at + 1) if role in ROLES else ("", start)
        if len(line) > 16:
            break
    return "", start


def find_anchors(
    text: Text, *, kinds: Iterable[str] = KINDS, surprise: Tensor | None = None, marks: Sequence[Anchor] = ()
) -> list[Anchor]:
    """Return the anchors of a session, in order.

    Args:
        text: The session.
        kinds: Which to look for.
        surprise: [N] float, for checkpoints at its peaks; none of these without it.
        marks: What `marked` found.
    """
    finders = {
        SINK: lambda: [Anchor(SINK, 0, min(SINK_TOKENS, len(text.pieces)))] if text.pieces else [],
        ROLE: lambda: _roles(text),
        DELIMITER: lambda: [Anchor(DELIMITER, at, at + 1) for at in torch.nonzero(text.special)[:, 0].tolist()],
        INSTRUCTION: lambda: _instructions(text),
        ENTITY: lambda: _matches(text, ENTITY, _NAME),
        NUMBER: lambda: _matches(text, NUMBER, _NUMBER),
        MARK: lambda: list(marks),
        CHECKPOINT: lambda: list(_checkpoints(text, surprise)),
    }
    found = [anchor for kind in dict.fromkeys(kinds) for anchor in finders[kind]()]
    return sorted(found, key=lambda anchor: (anchor.start, anchor.stop, anchor.kind))


def _roles(text: Text) -> list[Anchor]:
    """Return what opens each turn."""
    return [Anchor(ROLE, turn.opening, turn.start) for turn in turns(text) if turn.start > turn.opening]


def _instructions(text: Text) -> list[Anchor]:
    """Return whole system turns, and the sentences of users that are standing instructions."""
    found = []
    for turn in turns(text):
        if turn.role in ("system", "developer"):
            found.append(Anchor(INSTRUCTION, turn.start, turn.stop))
        elif turn.role != "assistant":
            found += list(_within(text, turn, INSTRUCTION, _SENTENCE, _STANDING))
    return found


def _matches(text: Text, kind: str, pattern: re.Pattern[str]) -> list[Anchor]:
    return [anchor for turn in turns(text) for anchor in _within(text, turn, kind, pattern)]


def _within(
    text: Text, turn: Turn, kind: str, pattern: re.Pattern[str], asked: re.Pattern[str] | None = None
) -> Iterator[Anchor]:
    """Yield the tokens that matches of `pattern` inside a turn touch, of those in which `asked` is found."""
    starts = [0]
    for piece in text.pieces[turn.start : turn.stop]:
        starts.append(starts[-1] + len(piece))
    said = "".join(text.pieces[turn.start : turn.stop])
    for match in pattern.finditer(said):
        if match.group().strip() and (asked is None or asked.search(match.group())):
            first, last = _touched(starts, match.start(), match.end())
            yield Anchor(kind, turn.start + first, turn.start + last)


def _touched(starts: list[int], begin: int, end: int) -> tuple[int, int]:
    """Return the tokens [first, last) that characters [begin, end) lie in."""
    edges = torch.tensor(starts)
    first = int(torch.searchsorted(edges, begin, right=True)) - 1
    last = int(torch.searchsorted(edges, end))
    return first, max(last, first + 1)


def _checkpoints(text: Text, surprise: Tensor | None) -> Iterator[Anchor]:
    """Yield the last token of each turn, and peaks of surprise."""
    for turn in turns(text):
        yield Anchor(CHECKPOINT, turn.stop - 1, turn.stop)
    if surprise is None or len(surprise) < 3:
        return
    high = float(surprise.mean() + PEAK_DEVIATIONS * surprise.std())
    for at in range(1, len(surprise) - 1):
        here = float(surprise[at])
        if here > high and here > float(surprise[at - 1]) and here >= float(surprise[at + 1]):
            yield Anchor(CHECKPOINT, at, at + 1)


def marked(text: Text, patterns: Sequence[str] = (), messages: Sequence[int] = ()) -> list[Anchor]:
    """Return what the user marks.

    Args:
        text: The session.
        patterns: Regular expressions; every token that a match touches is marked.
        messages: Indices of messages, from 0; negative ones count from the end.

    Raises:
        InputError: A pattern is no regular expression or matches nothing, or there is no such message.
    """
    found, starts, whole = list[Anchor](), text.starts(), text.text
    for pattern in patterns:
        try:
            spans = [match.span() for match in re.finditer(pattern, whole) if match.group()]
        except re.error as error:
            raise InputError(f"--keep '{pattern}' is no regular expression ({error})") from error
        if not spans:
            raise InputError(f"--keep '{pattern}' matches nothing in the session", "Check its spelling and its case")
        found += [Anchor(MARK, *_touched(starts, begin, end)) for begin, end in spans]
    said = turns(text)
    for index in messages:
        if not -len(said) <= index < len(said):
            raise InputError(f"there is no message {index}", f"The session has {len(said)}, from 0")
        found.append(Anchor(MARK, said[index].start, said[index].stop))
    return found


def covered(anchors: Iterable[Anchor], tokens: int) -> Tensor:
    """Return which of N tokens lie in an anchor, [N] bool."""
    inside = torch.zeros(tokens, dtype=torch.bool)
    for anchor in anchors:
        inside[anchor.start : anchor.stop] = True
    return inside
