"""The fields of a JSON object, each validated when it is read.

Nothing but the standard library is imported here.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, ItemsView, Mapping
from typing import Any, TypeVar

from kvcompress.errors import FormatError
from kvcompress.format.json_section import MAX_NUMBER

MAX_TEXT_CHARACTERS = 255

T = TypeVar("T")


class JsonFields:
    """Reads the fields of one object.

    Args:
        value: What the JSON held.
        what: Names the object in errors, such as "the setting".
        only: The names that it may have; None takes any, and those that nobody asks for are not looked at.

    Raises:
        FormatError: It is not an object, or has another field. Every method raises it where the field is missing or
            is of another type.
    """

    def __init__(self, value: object, what: str, only: Collection[str] | None = None) -> None:
        if not isinstance(value, Mapping):
            raise FormatError(f"{what} is not an object")
        self._fields: Mapping[str, Any] = value
        self._what = what
        odd = [] if only is None else [name for name in value if name not in only]
        if odd:
            raise FormatError(f"{what} has the unknown field {str(odd[0])[:MAX_TEXT_CHARACTERS]!r}")

    def optional(self, read: Callable[..., T], name: str, **bounds: Any) -> T | None:
        """Return what one of the methods below reads, None where the object has no such field."""
        return read(name, **bounds) if name in self._fields else None

    def items(self) -> ItemsView[str, Any]:
        """Return all fields as they are."""
        return self._fields.items()

    def value(self, name: str) -> Any:
        """Return a field as it is."""
        if name not in self._fields:
            raise FormatError(f"{self._what} {name!r} is missing")
        return self._fields[name]

    def text(self, name: str) -> str:
        """Return a printable text of 1 to 255 characters: it may end up on a terminal."""
        value = self.value(name)
        if not isinstance(value, str) or not 1 <= len(value) <= MAX_TEXT_CHARACTERS or not value.isprintable():
            raise self.bad(name, f"a printable text of 1 to {MAX_TEXT_CHARACTERS} characters")
        return value

    def integer(self, name: str, most: int = MAX_NUMBER) -> int:
        """Return an integer from 0 to `most`; a boolean is none."""
        value = self.value(name)
        if type(value) is not int or not 0 <= value <= most:
            raise self.bad(name, f"an integer from 0 to {most}")
        return value

    def number(self, name: str, least: float = -math.inf) -> float:
        """Return a finite number of at least `least`, an integer as the integer that it is; a boolean is none."""
        value = self.value(name)
        try:
            fits = type(value) in (int, float) and math.isfinite(value) and value >= least
        except OverflowError:  # an integer beyond what any float can hold
            fits = False
        if not fits:
            raise self.bad(name, "a finite number" if least < 0 else f"a finite number of at least {least:g}")
        found: float = value
        return found

    def numbers(self, name: str, count: int) -> tuple[float, ...]:
        """Return a list of so many finite numbers."""
        value = self.value(name)
        if not isinstance(value, list) or len(value) != count:
            raise self.bad(name, f"a list of {count} numbers")
        items = JsonFields(dict(zip(map(str, range(count)), value, strict=True)), f"{self._what} {name!r}")
        return tuple(items.number(str(index)) for index in range(count))

    def flag(self, name: str) -> bool:
        """Return true or false."""
        value = self.value(name)
        if not isinstance(value, bool):
            raise self.bad(name, "true or false")
        return value

    def bad(self, name: str, wanted: str) -> FormatError:
        """Return the error of a field that is not what it should be; the value is not shown, it may be anything."""
        return FormatError(f"{self._what} {name!r} is not {wanted}")
