"""The rules that a description of JSON data is built from: each checks a value and names the path of what is wrong.

A small part of what JSON Schema can say, stricter by default: fields that are not described are refused, a number is
finite, and a truth value is not a number.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from kvcompress.errors import InputError

ROUNDING = 1e-9  # by which a mean of values in a range may leave it
REMEDY = "The result must follow its schema"


class Rule(Protocol):
    """What a value must be."""

    def check(self, value: Any, path: str) -> None:
        """Return where `value`, found at `path`, follows the rule; raise InputError where it does not."""
        ...


def refuse(path: str, what: str) -> InputError:
    """Return the error that says what is wrong at `path`."""
    return InputError(f"{path} {what}", REMEDY)


def _wrong_type(path: str, wanted: str, value: Any) -> InputError:
    return refuse(path, f"must be {wanted}, not {'null' if value is None else type(value).__name__}")


def _below(path: str, name: object) -> str:
    """Return the path of the field `name` of the object at `path`; odd names are quoted."""
    if isinstance(name, str) and name.isidentifier() and name.isascii():
        return f"{path}.{name}" if path else name
    return f"{path}[{json.dumps(str(name))}]"


@dataclass(frozen=True, slots=True)
class Text:
    """A string; `filled` refuses one without a visible character."""

    filled: bool = False

    def check(self, value: Any, path: str) -> None:
        """Require a string."""
        if not isinstance(value, str):
            raise _wrong_type(path, "a string", value)
        if self.filled and not value.strip():
            raise refuse(path, "is empty")


@dataclass(frozen=True, slots=True)
class OneOf:
    """One of some strings."""

    choices: tuple[str, ...]

    def check(self, value: Any, path: str) -> None:
        """Require one of the choices."""
        if not isinstance(value, str) or value not in self.choices:
            raise refuse(path, f"must be one of {', '.join(self.choices)}, not {value!r:.40}")


@dataclass(frozen=True, slots=True)
class Flag:
    """True or false."""

    def check(self, value: Any, path: str) -> None:
        """Require a truth value."""
        if not isinstance(value, bool):
            raise _wrong_type(path, "true or false", value)


@dataclass(frozen=True, slots=True)
class Number:
    """A finite number in [low, high], or in (low, high] with `above`; `whole` accepts integers only."""

    low: float | None = None
    high: float | None = None
    above: bool = False
    whole: bool = False

    def check(self, value: Any, path: str) -> None:
        """Require a number in the range."""
        if isinstance(value, bool) or not isinstance(value, int if self.whole else int | float):
            raise _wrong_type(path, "a whole number" if self.whole else "a number", value)
        if not math.isfinite(value):
            raise refuse(path, f"is {value}, not a finite number")
        if self.low is not None and (value <= self.low if self.above else value < self.low - ROUNDING):
            raise refuse(path, f"is {value}, but must be {'over' if self.above else 'at least'} {self.low:g}")
        if self.high is not None and value > self.high + ROUNDING:
            raise refuse(path, f"is {value}, but must be at most {self.high:g}")


@dataclass(frozen=True, slots=True)
class Scalar:
    """Null, a truth value, a string or a finite number: what a machine says of itself."""

    def check(self, value: Any, path: str) -> None:
        """Require one of them."""
        if not (value is None or isinstance(value, bool | str)):
            Number().check(value, path)


@dataclass(frozen=True, slots=True)
class Nullable:
    """Null, or what another rule wants."""

    item: Rule

    def check(self, value: Any, path: str) -> None:
        """Check what is not null."""
        if value is not None:
            self.item.check(value, path)


@dataclass(frozen=True, slots=True)
class ListOf:
    """A list of any length."""

    item: Rule

    def check(self, value: Any, path: str) -> None:
        """Check every entry."""
        if not isinstance(value, list | tuple):
            raise _wrong_type(path, "a list", value)
        for index, entry in enumerate(value):
            self.item.check(entry, f"{path}[{index}]")


@dataclass(frozen=True, slots=True)
class Row:
    """A list with a meaning for each place."""

    items: tuple[Rule, ...]

    def check(self, value: Any, path: str) -> None:
        """Check every place."""
        if not isinstance(value, list | tuple):
            raise _wrong_type(path, "a list", value)
        if len(value) != len(self.items):
            raise refuse(path, f"has {len(value)} entries, not {len(self.items)}")
        for index, (rule, entry) in enumerate(zip(self.items, value, strict=True)):
            rule.check(entry, f"{path}[{index}]")


@dataclass(frozen=True, slots=True)
class MapOf:
    """An object whose names are free."""

    item: Rule

    def check(self, value: Any, path: str) -> None:
        """Check every value."""
        for name, entry in _items(value, path):
            self.item.check(entry, _below(path, name))


@dataclass(frozen=True, slots=True)
class Record:
    """An object with known fields.

    Attributes:
        required: Fields that must be there.
        optional: Fields that may be absent or null.
        others: What further fields must be; None refuses them.
    """

    required: Mapping[str, Rule]
    optional: Mapping[str, Rule] = field(default_factory=dict)
    others: Rule | None = None

    def check(self, value: Any, path: str) -> None:
        """Check every field, in the order of the description, then look for unknown ones."""
        _items(value, path)
        for name, rule in self.required.items():
            if name not in value:
                raise refuse(_below(path, name), "is missing")
            rule.check(value[name], _below(path, name))
        for name, rule in self.optional.items():
            if value.get(name) is not None:
                rule.check(value[name], _below(path, name))
        for name, entry in value.items():
            if name in self.required or name in self.optional:
                continue
            if self.others is None:
                raise refuse(_below(path, name), "is not a known field")
            self.others.check(entry, _below(path, name))


def _items(value: Any, path: str) -> list[tuple[str, Any]]:
    if not isinstance(value, Mapping):
        raise _wrong_type(path or "result", "an object", value)
    for name in value:
        if not isinstance(name, str):
            raise refuse(_below(path, name), "has a name that is not a string")
    return list(value.items())
