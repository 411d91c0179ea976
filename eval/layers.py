"""The packages of kvcompress and who imports whom: `python -m eval layers`.

A package, or a module beside them, is a room; an arrow from one to another means that some file of the first imports
some file of the second, imports inside functions and for types included.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

PACKAGE = "kvcompress"


@dataclass(frozen=True, slots=True)
class Layers:
    """Rooms from top to bottom and the arrows between them.

    Attributes:
        rooms: Names; each imports only those after it, as far as that can be.
        arrows: Pairs (from, to).
        files: Python files of each room.
    """

    rooms: tuple[str, ...]
    arrows: frozenset[tuple[str, str]]
    files: dict[str, int]

    @property
    def upward(self) -> list[tuple[str, str]]:
        """Arrows against the order."""
        place = {room: index for index, room in enumerate(self.rooms)}
        return sorted(arrow for arrow in self.arrows if place[arrow[0]] > place[arrow[1]])

    def lines(self) -> Iterator[str]:
        """Yield the drawing: a row a room, a mark under each room that it imports."""
        width = max(map(len, self.rooms))
        yield " " * (width + 9) + " ".join(f"{room:>{len(room)}}" for room in self.rooms)
        for room in self.rooms:
            marks = " ".join(("·" if (room, other) in self.arrows else " ").center(len(other)) for other in self.rooms)
            yield f"{room:<{width}} {self.files[room]:>3} files {marks}".rstrip()
        yield ""
        yield f"{len(self.rooms)} rooms, {len(self.arrows)} arrows, {len(self.upward)} of them upward"


def layers_of(root: Path) -> Layers:
    """Read every file of the package below a root directory."""
    arrows, files = set[tuple[str, str]](), dict[str, int]()
    for path in sorted((root / PACKAGE).rglob("*.py")):
        room = _room(path.relative_to(root / PACKAGE))
        if room is None:
            continue
        files[room] = files.get(room, 0) + 1
        for imported in _imported(path):
            if imported != room and _is_room(root / PACKAGE / imported):
                arrows.add((room, imported))
    return Layers(tuple(_sorted(set(files), arrows)), frozenset(arrows), files)


def _room(path: Path) -> str | None:
    """Return the room of a file; the package's own files lead in from outside and belong to none."""
    name = path.parts[0].removesuffix(".py")
    return None if name in ("__init__", "__main__") else name


def _is_room(path: Path) -> bool:
    return path.is_dir() or path.with_suffix(".py").is_file()


def _imported(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        if isinstance(node, ast.ImportFrom) and node.module == PACKAGE:
            names = [f"{PACKAGE}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module is not None:
            names = [node.module]
        yield from (name.split(".")[1] for name in names if name.startswith(f"{PACKAGE}."))


def _sorted(rooms: set[str], arrows: set[tuple[str, str]]) -> Iterator[str]:
    """Yield rooms top first: next is always one that the fewest of the rest import."""
    left = set(rooms)
    while left:
        above = {room: sum((other, room) in arrows for other in left) for room in left}
        room = min(sorted(left), key=lambda name: above[name])
        left.remove(room)
        yield room
