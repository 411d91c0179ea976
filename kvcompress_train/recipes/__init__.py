"""Recipes of training that come along, each a YAML file, and where a recipe's name leads."""

from __future__ import annotations

from pathlib import Path

from kvcompress.errors import InputError

_HERE = Path(__file__).parent


def shipped() -> list[str]:
    """Return the names of the recipes that come along."""
    return sorted(path.stem for path in _HERE.glob("*.yaml"))


def find_recipe(name_or_path: str | Path) -> Path:
    """Return the file of a recipe, given as that file or by the name of one that comes along.

    Raises:
        InputError: It is neither.
    """
    path = Path(name_or_path)
    if path.is_file():
        return path
    if str(name_or_path) in shipped():
        return _HERE / f"{name_or_path}.yaml"
    remedy = f"Name a YAML file or one of {', '.join(shipped())}; --show-recipe prints one"
    raise InputError("no such recipe", remedy, path=path)


def recipe_text(name_or_path: str | Path) -> str:
    """Return a recipe as it is written.

    Raises:
        InputError: There is none, or it cannot be read.
    """
    path = find_recipe(name_or_path)
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError("the recipe cannot be read", "Name a YAML file", path=path) from error
