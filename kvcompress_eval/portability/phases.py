"""The two phases, encode and decode: every condition in a process of its own, compared as it ends."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Any

from safetensors.torch import load_file

from kvcompress.errors import KVCompressError
from kvcompress.format.raw_snapshot import load_raw
from kvcompress_eval.portability.compare import cache_difference, resumption_difference
from kvcompress_eval.portability.conditions import REFERENCE, Condition
from kvcompress_eval.portability.worker import RESULT

Row = dict[str, Any]
Advance = Callable[[str, int, int], None]


class Phases:
    """Starts the processes of both phases and compares what they leave.

    Args:
        directory: An empty directory for everything they write.
        job: What the processes share.
        conditions: All conditions, the reference first.
        advance: Told of each process that ended.
        processes: How many run at once.
    """

    def __init__(
        self, directory: Path, job: Row, conditions: Sequence[Condition], advance: Advance, processes: int
    ) -> None:
        self.directory, self.conditions, self.advance, self.processes = directory, conditions, advance, processes
        self.job = job | {"shared": str(directory / "shared"), "files": []}
        Path(self.job["shared"]).mkdir()

    def encode(self) -> dict[Condition, Row]:
        """Return the result of every encoding process."""
        found = dict(self._phase("encode"))
        for row in found[REFERENCE]["sessions"]:
            if row["refused"]:
                raise KVCompressError(f"the reference condition refuses: {row['refused'].rstrip('.')}")
        return found

    def decode(self, origins: list[Row]) -> Row:
        """Compare each decoding process with the reference's as it ends, then remove its tensors."""
        pairs, golden, reference = list[Row](), list[Row](), Row()
        for condition, result in self._phase("decode"):
            here, there = self.place("decode", REFERENCE), self.place("decode", condition)
            reference = reference or result  # the reference ends before the others start
            for number, origin in enumerate(origins):
                compared = _compare_file(number, reference["files"][number], result["files"][number], here, there)
                same = origin["symbols_sha256"] == result["files"][number]["symbols_sha256"]
                pairs.append(
                    {"encoded_in": origin["encoded_in"], "decoded_in": condition.label, "session": origin["session"]}
                    | {"symbols_identical": same}
                    | compared
                )
            if self.job["golden"] is not None:
                golden.append({"condition": condition.label} | _golden(result["golden"], there, self.job["golden"]))
            if condition != REFERENCE:
                shutil.rmtree(there)
        order = {condition.label: index for index, condition in enumerate(self.conditions)}
        return {"pairs": pairs, "golden": sorted(golden, key=lambda row: order[row["condition"]])}

    def _phase(self, task: str) -> Iterator[tuple[Condition, Row]]:
        """Yield each condition with its result: the reference first, the others as they end."""
        path = self.directory / f"{task}.json"
        path.write_text(json.dumps(self.job))
        total = len(self.conditions)
        self.advance(task, 0, total)
        yield REFERENCE, self._launch(task, REFERENCE, path)
        self.advance(task, 1, total)
        with ThreadPoolExecutor(self.processes) as pool:
            started = {pool.submit(self._launch, task, other, path): other for other in self.conditions[1:]}
            try:
                for done, future in enumerate(as_completed(started), 2):
                    yield started[future], future.result()
                    self.advance(task, done, total)
            finally:
                pool.shutdown(cancel_futures=True)

    def _launch(self, task: str, condition: Condition, job: Path) -> Row:
        """Run one process to its end and return its result."""
        out = self.place(task, condition)
        command = [
            sys.executable,
            "-m",
            "kvcompress_eval.portability.worker",
            "--task",
            task,
            "--condition",
            condition.to_text(),
        ]
        command += ["--job", str(job), "--out", str(out)]
        environment = condition.environment(os.environ)
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        if done.returncode or not (out / RESULT).is_file():
            lines = done.stderr.strip().splitlines() or [f"it ended with status {done.returncode}"]
            raise KVCompressError(f"{task} failed in the condition {condition.label} ({lines[-1].rstrip('.')})")
        result: Row = json.loads((out / RESULT).read_text())
        return result

    def place(self, task: str, condition: Condition) -> Path:
        """Return the directory of one process."""
        return self.directory / f"{task}-{self.conditions.index(condition)}"


def _compare_file(number: int, reference: Row, found: Row, here: Path, there: Path) -> Row:
    """Compare one file as decoded by the reference (in `here`) and by another condition (in `there`)."""
    row: Row = {"refused": found["unreadable"] or found["refused"]}
    if found["unreadable"] or reference["unreadable"]:
        return row
    row |= cache_difference(load_raw(here / f"{number}.safetensors"), load_raw(there / f"{number}.safetensors"))
    if found["refused"] or reference["refused"]:
        return row
    mine, theirs = (load_file(place / f"{number}.logits.safetensors")["logits"] for place in (here, there))
    return row | resumption_difference(mine, theirs, reference["greedy"], found["greedy"])


def _golden(found: Row, there: Path, path: str) -> Row:
    """Compare the golden file as decoded in a condition with what was written beside it when it was made."""
    if found["refused"]:
        return {"symbols_identical": None, "tensors_identical": None, "refused": found["refused"]}
    known = json.loads(Path(path).with_suffix(".json").read_text())
    difference = cache_difference(
        load_raw(Path(path).with_suffix(".safetensors")), load_raw(there / "golden.safetensors")
    )
    return {
        "symbols_identical": found["symbols_sha256"] == known["symbols_sha256"],
        "tensors_identical": difference["largest_difference"] == 0.0,
        **difference,
        "refused": None,
    }
