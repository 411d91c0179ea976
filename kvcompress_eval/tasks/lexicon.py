"""Words and sentences that examples are made of: names that no model has an opinion on, and filler between them."""

from __future__ import annotations

import random
from collections.abc import Callable


def _listed(words: str) -> tuple[str, ...]:
    return tuple(words.split())


ADJECTIVES = _listed(
    "amber bitter calm dusty early faint gentle hollow icy jolly keen lively modest narrow olive proud quiet rapid "
    "silent tender urgent vivid woven young broad clever distant eager formal golden humble inner joint kind loyal "
    "mild noble open plain rare"
)
NOUNS = _listed(
    "anchor basket candle desert engine falcon garden hammer island jacket kettle ladder marble needle orchard pepper "
    "quarry ribbon saddle timber umbrella valley walnut yogurt zebra bridge copper dragon eagle forest guitar harbor "
    "insect jungle kitchen lantern mirror napkin ocean pillow rabbit shadow tunnel velvet window bottle camera "
    "diamond elephant feather glacier helmet iron journal keyboard lemon mountain notebook oven pencil rocket "
    "sandwich temple village wagon button castle doctor fountain grape hotel medal nest onion planet river statue "
    "tomato vessel winter blanket cottage donkey envelope"
)
PLACES = _listed("station market library museum bakery school bank theatre post-office church stadium clinic")
DAYS = _listed("Monday Tuesday Wednesday Thursday Friday Saturday Sunday")
DIGITS = "0123456789"

_SENTENCES = (
    "The {a} {n} near the {p} was moved on {d}.",
    "Nobody at the {p} had seen the {a} {n} before.",
    "On {d} the {a} {n} was sold to the {p}.",
    "They kept the {n} behind the {p}, because it was {a}.",
    "It rained on {d}, so the {p} stayed {a} and empty.",
    "This {a} {n} is all that is left of the old {p}.",
    "Every {d} the {p} puts a {n} into the window.",
    "She said that the {n} was too {a} for the {p}.",
)


def drawn(chance: random.Random, alphabet: str, length: int) -> str:
    """Return a random string."""
    return "".join(chance.choices(alphabet, k=length))


def different(make: Callable[[], str], count: int) -> list[str]:
    """Return `count` different strings of those that `make` returns."""
    found = dict[str, None]()
    while len(found) < count:
        found[make()] = None
    return list(found)


def sentence(chance: random.Random) -> str:
    """Return a sentence about nothing."""
    words = {"a": ADJECTIVES, "n": NOUNS, "p": PLACES, "d": DAYS}
    return chance.choice(_SENTENCES).format(**{name: chance.choice(listed) for name, listed in words.items()})


def spread(count: int, among: int, shift: float = 0.5) -> list[int]:
    """Return `count` different indices below `among`, evenly spread.

    Args:
        count: At most `among`.
        among: How many there are.
        shift: Where in its stretch each lies, in [0, 1).
    """
    return [int((number + shift) * among / count) for number in range(count)]
