"""Commands that need an extra: `train` and `eval`, imported from their own packages when they are called.

Those packages import this one. So this one knows their names only, and its own commands start as fast without them.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module
from importlib.util import find_spec
from types import MappingProxyType
from typing import Any

import typer

from kvcompress.errors import InputError

COMMANDS = MappingProxyType({"train": "kvcompress_train.command", "eval": "kvcompress_eval.command"})
"""Name of the command -> module that has it as `app`."""


class WithExtras(typer.core.TyperGroup):
    """The commands registered here, then those of `COMMANDS`."""

    def list_commands(self, ctx: Any) -> list[str]:
        """Return the names of all commands, in the order of the help."""
        return [*super().list_commands(ctx), *COMMANDS]

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """Return a command, imported now where it is one of `COMMANDS`; None where there is none."""
        if cmd_name not in COMMANDS:
            return super().get_command(ctx, cmd_name)
        command = typer.main.get_command(import_module(COMMANDS[cmd_name]).app)
        command.name = cmd_name
        return command


def require_packages(what: str, packages: Sequence[str], extra: str) -> None:
    """Refuse to begin what some missing package would end.

    Args:
        what: What needs them, such as "a report".
        packages: Names to import.
        extra: The extra of this project that brings them.

    Raises:
        InputError: One is not installed.
    """
    missing = [name for name in packages if find_spec(name) is None]
    if missing:
        raise InputError(f"{what} needs {' and '.join(missing)}", f'pip install "kvcompress[{extra}]"')
