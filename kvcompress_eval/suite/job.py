"""What a run of the suite measures with what."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from kvcompress_eval.baselines.registry import Own


@dataclass(frozen=True, slots=True)
class Job:
    """What is measured with what.

    Attributes:
        model: Model directory, bundled name, or whatever else names a model.
        codecs: Families, codec directories, or "all".
        sessions: JSON lines of sessions.
        out: Directory of rows and report.
        calibration: Sessions that baselines are fitted to; if not given, those of `sessions` that are not measured.
        shards: Harvest that they are fitted to instead.
        own: What is measured of this project's codecs.
        command: The command line, for the report.
        go_on: Keep the rows found in `out`.
        show_text: Let the report print what a session says.
    """

    model: str
    codecs: tuple[str, ...]
    sessions: Path
    out: Path
    calibration: Path | None = None
    shards: Path | None = None
    own: Own = field(default_factory=Own)
    command: str = ""
    go_on: bool = False
    show_text: bool = False
