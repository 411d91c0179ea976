"""A small run of the tasks on the bundled model: facts, which it recalls, and fields, which it does not."""

from __future__ import annotations

from pathlib import Path

from kvcompress.hub.bundled import DEFAULT_MODEL
from kvcompress_eval.tasks.run import Job, TasksSettings

SETTINGS = TasksSettings(
    answers=16, least_examples=4, calibration_answers=24, kvtc_fit_sessions=4, kvtc_kl_sessions=2, kvtc_tokens=160
)
COMMAND = "python -m eval tasks --example"
TASKS = ("planted_facts", "many_fields")


def job(root: Path, out: str = "tasks") -> Job:
    """Return a run over what `tests.eval.real_model_example.build` wrote."""
    sizes = {"planted_facts": 320}
    return Job(DEFAULT_MODEL, str(root / "codec"), TASKS, sizes, root / "shards", root / out, COMMAND)
