"""Sessions for a model that people run, composed from corpora: half excerpts of novels, half dialogues joined.

Files to fit on, to measure on, and of another source must share no document. So the order of a corpus depends on the
seed and on nothing else, documents are taken from its front, each dialogue once, and a further file skips what those
before it took.

```
novels, in the seed's order    0 .......... 59 | 60 .... 71 | ...
chats, in the seed's order     0 ............... 269 | 270 ....... 329 | ...
                               fit.jsonl             | test.jsonl, which skips 60 and 270
```
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from kvcompress.data.sessions import Session, session_token_ids
from kvcompress.errors import InputError
from train.lm.corpus import Message, read_rows

Row = dict[str, Any]
Count = Callable[[Session], int]

OPENING_CHARACTERS, CLOSING_CHARACTERS = 2_000, 20_000
"""Left out at the ends of a novel: title pages, contents, and what follows the end."""

CHARACTERS_PER_TOKEN = 5.5
"""An excerpt is cut at so many; where its tokens are shorter of the wanted number, it goes on."""


@dataclass(slots=True)
class Pool:
    """The documents of one corpus in the order of a seed, and how many are taken.

    Attributes:
        name: The corpus, for messages.
        documents: In order.
        taken: Those in front are used.
    """

    name: str
    documents: list[Any]
    taken: int = 0

    @classmethod
    def of(cls, path: Path, kind: str, seed: int, skip: int) -> Pool:
        """Read a corpus.

        Args:
            path: JSON lines, gzipped or not.
            kind: "text" for novels, "messages" for dialogues; rows without it are left out.
            seed: Of the order.
            skip: Documents in front that other files have taken.

        Raises:
            InputError: Nothing is left.
        """
        documents = [row[kind] for row in read_rows(path) if kind in row]
        random.Random(f"{seed}:{kind}").shuffle(documents)
        if skip >= len(documents):
            raise InputError(f"holds {len(documents)} documents, and {skip} are to be skipped", path=path)
        return cls(path.name, documents, skip)

    def take(self) -> Any:
        """Return the next document; raises `InputError` where all are used."""
        if self.taken == len(self.documents):
            raise InputError(f"all {self.taken} dialogues of {self.name} are used", "Ask for fewer or shorter sessions")
        self.taken += 1
        return self.documents[self.taken - 1]


@dataclass(slots=True)
class Mixture:
    """A file of sessions under way.

    Attributes:
        novels: None for a file of chats alone.
        chats: Corpora of dialogues, which sessions take in turns; none for a file of novels alone.
        tokens: Fewest of a session.
        count_tokens: Tokens of a session by the model's tokenizer and chat template.
        rng: Where excerpts begin.
    """

    novels: Pool | None
    chats: Sequence[Pool]
    tokens: int
    count_tokens: Count
    rng: random.Random
    _first_novel: int = field(init=False, default=0)

    def __post_init__(self) -> None:
        """Note where this file's novels begin: it goes through them again where there are not enough."""
        if self.novels is None and not self.chats:
            raise InputError("nothing to compose from", "Give --novels, --chats or both")
        self._first_novel = self.novels.taken if self.novels else 0

    def rows(self, count: int) -> Iterator[Row]:
        """Yield sessions, novels and chats by turns where there are both."""
        makers = [*([self.novel] if self.novels else []), *([self.chat] if self.chats else [])]
        for number in range(count):
            yield makers[number % len(makers)](number // len(makers))

    def novel(self, number: int) -> Row:
        """Return an excerpt of the next novel; after the last one, another of the first."""
        assert self.novels is not None
        if self.novels.taken == len(self.novels.documents):
            begin = self._first_novel + number % (len(self.novels.documents) - self._first_novel)
            text = self.novels.documents[begin]
        else:
            text = self.novels.take()
        last = len(text) - CLOSING_CHARACTERS
        start = text.find(" ", self.rng.randrange(min(OPENING_CHARACTERS, last), last) if last > 0 else 0) + 1
        return self._excerpt(f"n{number:03d}", text, start)

    def _excerpt(self, name: str, text: str, start: int) -> Row:
        length = int(self.tokens * CHARACTERS_PER_TOKEN)
        while True:
            row = {"id": name, "category": "novel", "text": text[start : start + length]}
            if self.count_tokens(Session(name, [], text=row["text"])) >= self.tokens:
                return row
            if start + length >= len(text):
                raise InputError(f"a novel has fewer than {self.tokens} tokens after its place", "Ask for fewer tokens")
            length += length // 4

    def chat(self, number: int) -> Row:
        """Return whole dialogues of one corpus, joined until they are long enough."""
        pool, messages = self.chats[number % len(self.chats)], list[Message]()
        name = f"c{number:03d}"
        while not messages or self.count_tokens(Session(name, messages)) < self.tokens:
            messages = messages + list(pool.take())
        return {"id": name, "category": "chat", "messages": messages}

    def used(self) -> str:
        """Return what the next file has to skip."""
        novels = [f"--skip-novels {self.novels.taken}"] if self.novels else []
        chats = [f"--skip-chats {max(pool.taken for pool in self.chats)}"] if self.chats else []
        return " ".join(novels + chats)


def token_counter(model: str) -> Count:
    """Return what counts a session's tokens, for a model under any name that `load_model` takes.

    Raises:
        CheckpointError: There is no such model.
        InputError: It has no tokenizer.
    """
    from kvcompress.hf.loading import model_tokenizer

    tokenizer = model_tokenizer(model)
    if tokenizer is None:
        raise InputError("has no tokenizer, so its tokens cannot be counted", path=Path(model))
    return lambda session: len(session_token_ids(session, tokenizer))
