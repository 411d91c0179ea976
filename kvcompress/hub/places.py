"""Directories of installed codecs, and the directory that a codec's name refers to.

```
checkpoints   came with the project: inside the package, or in the checkout, where there may be more of them
home          $KVCOMPRESS_HOME/codecs, where `kvcompress codecs pull` puts them
hub           the local cache of the Hugging Face Hub, into which USER/REPO is downloaded when it is first named
directory     any other, named by its path
```
A name is looked up in that order; an existing directory goes before all of them.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePath

from kvcompress.errors import CheckpointError
from kvcompress.hub.bundled import checkpoint_root, codec_parts, require_intact
from kvcompress.hub.hub_id import cached_codecs, codec_from_hub, is_hub_id

HOME_VARIABLE = "KVCOMPRESS_HOME"
CHECKPOINTS, HOME, HUB, DIRECTORY = "checkpoints", "home", "hub", "directory"


@dataclass(frozen=True, slots=True)
class Found:
    """A codec at hand.

    Attributes:
        name: What `--codec` takes.
        place: "checkpoints", "home", "hub" or "directory".
        directory: Where it lies.
    """

    name: str
    place: str
    directory: Path


def home() -> Path:
    """Return the user's own place: $KVCOMPRESS_HOME, or else `kvcompress` in the platform's cache directory."""
    named = os.environ.get(HOME_VARIABLE)
    if named:
        return Path(named).expanduser()
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches" / "kvcompress"
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local") / "kvcompress" / "Cache"
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "kvcompress"


def codecs_home() -> Path:
    """Return the directory of the user's own codecs; it may not exist."""
    return home() / "codecs"


def find_codec(name_or_path: str | Path) -> Path:
    """Return the directory of a codec, given as that directory, as a name, or as an id on the Hub.

    Raises:
        CheckpointError: There is no such codec, the Hub does not give it, or weights that came with the project are
            damaged.
    """
    path, name = Path(name_or_path), str(name_or_path)
    if path.is_dir():
        return path
    for root in (checkpoint_root(), codecs_home()) if _is_plain(name) else ():
        if codec_parts(root / name):
            require_intact(root / name)
            return root / name
    if is_hub_id(name):
        return codec_from_hub(name)
    at_hand = ", ".join(found.name for found in at_project_and_home()) or "none"
    raise CheckpointError("neither a directory nor the name of a codec", f"At hand: {at_hand}", path=path)


def all_codecs(directory: Path | None = None) -> Iterator[Found]:
    """Yield every codec at hand, each under a name that `find_codec` takes; asks no network.

    Args:
        directory: A further place to look in: a codec itself, or a directory of several.

    Raises:
        CheckpointError: The directory does not exist.
    """
    yield from at_project_and_home()
    for name, cached in cached_codecs():
        yield Found(name, HUB, cached)
    if directory is None:
        return
    if not directory.is_dir():
        raise CheckpointError("no such directory", "Name one that holds codecs", path=directory)
    for found in [directory] if _holds_codec(directory) else _inside(directory):
        yield Found(str(found), DIRECTORY, found)


def at_project_and_home() -> Iterator[Found]:
    """Yield the codecs that came with the project and the user's own; of one name the second is known by its path."""
    names = set[str]()
    for place, root in ((CHECKPOINTS, checkpoint_root()), (HOME, codecs_home())):
        for directory in _inside(root):
            hidden = directory.name in names or Path(directory.name).is_dir()
            yield Found(str(directory) if hidden else directory.name, place, directory)
            names.add(directory.name)


def _inside(root: Path) -> list[Path]:
    found = (path for path in sorted(root.glob("*")) if not path.name.startswith("."))
    return [path for path in found if path.is_dir() and _holds_codec(path)]


def _holds_codec(directory: Path) -> bool:
    """Return whether a directory holds a codec, or something damaged, which whoever reads it will say."""
    try:
        return bool(codec_parts(directory))
    except CheckpointError:
        return True


def _is_plain(name: str) -> bool:
    """Return whether a name leads into a place and not out of it."""
    path = PurePath(name)
    return bool(path.parts) and not path.is_absolute() and ".." not in path.parts
