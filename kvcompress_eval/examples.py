"""The example sessions that come with the project, recorded with the bundled model."""

from __future__ import annotations

from pathlib import Path

NAME = "sessions.jsonl"


def example_sessions() -> Path:
    """Return their file: in this package when installed, else in the checkout, by its short path from there.

    A report names the path, so that a checkout's is spelled as a user of it would.
    """
    package = Path(__file__).parent
    packaged, beside = package / NAME, package.parent / "examples" / NAME
    if packaged.is_file():
        return packaged
    short = Path("examples") / NAME
    return short if short.is_file() and short.samefile(beside) else beside


def is_example(sessions: Path) -> bool:
    """Tell whether a file of sessions is this one: what it says may be shown."""
    own = example_sessions()
    return own.is_file() and sessions.is_file() and sessions.samefile(own)
