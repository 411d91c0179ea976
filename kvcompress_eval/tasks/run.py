"""The run: find each task's size, measure every candidate on the same examples, write the report.

Rows are kept as they are measured, and a run that was killed goes on. Memory holds one example at a time.
"""

from __future__ import annotations

import platform
import tempfile
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from kvcompress.errors import InputError, KVCompressError
from kvcompress.hf import capture, fingerprint, load_model
from kvcompress.hub.bundled import find_checkpoint
from kvcompress.prune.scorers.registry import find_scorer
from kvcompress.snapshot import KVSnapshot
from kvcompress_eval.real_model.codecs import Measured, find_codecs
from kvcompress_eval.suite.provenance import commit, package_versions
from kvcompress_eval.suite.rows import Row, Rows
from kvcompress_eval.tasks.candidates import EXACT, Candidate, evicted, exact, kept_fractions, planned, tiers
from kvcompress_eval.tasks.kvtc_at_kl import KvtcAtKl, named
from kvcompress_eval.tasks.ladder import Ladder, accuracy_of, climb, examples_for
from kvcompress_eval.tasks.measure import digest_of, measure
from kvcompress_eval.tasks.page import write_page
from kvcompress_eval.tasks.protocol import Example, Task
from kvcompress_eval.tasks.registry import examples, find_tasks
from kvcompress_eval.tasks.summary import summarise


@dataclass(frozen=True, slots=True, eq=False)
class Case:
    """An example of a task at a size."""

    task: str
    size: int
    example: Example

    def key(self, candidate: Candidate) -> tuple[str, ...]:
        """Return what the row of a candidate is known by."""
        named = candidate.kind, candidate.name, candidate.fingerprint[:16]
        return (*named, self.task, str(self.size), digest_of(self.example))


Progress = Callable[[str, int, int], None]
MEASURE, CALIBRATE = "measure", "calibrate"
MATCH = ("kl_nats", "aimed_ratio", "curve")


@dataclass(frozen=True, slots=True)
class TasksSettings:
    """How much is measured.

    Attributes:
        answers: Judged of each task and candidate, at least.
        least_examples: Of each task, where an example asks for many answers.
        calibration_answers: Judged of the exact cache at each size that is tried.
        keep_fractions: Shares of the tokens that stay where tokens are dropped.
        scorer: Says which stay.
        recompute_layers: Which codec of the directory.
        kvtc_fit_sessions: Harvested sessions that KVTC is fitted to.
        kvtc_kl_sessions: Harvested sessions of those that fit nothing, on which its KL meets ours.
        kvtc_tokens: Of each.
    """

    answers: int = 60
    least_examples: int = 10
    calibration_answers: int = 20
    keep_fractions: tuple[float, ...] = (0.5,)
    scorer: str = "context_reconstruction"
    recompute_layers: int = 0
    kvtc_fit_sessions: int = 24
    kvtc_kl_sessions: int = 4
    kvtc_tokens: int = 1024


@dataclass(frozen=True, slots=True)
class Job:
    """What is measured with what.

    Attributes:
        model: Model directory or bundled name.
        codec: Codec directory or bundled name.
        tasks: Names; none means all.
        sizes: By task, where the user gave them.
        shards: Harvest that KVTC is fitted to, or None to leave it out.
        out: Directory of rows and report.
        command: The command line.
    """

    model: str
    codec: str
    tasks: tuple[str, ...]
    sizes: dict[str, int]
    shards: Path | None
    out: Path
    command: str


class TasksRun:
    """One run.

    Args:
        job: What to measure.
        settings: How much.
        progress: Called with stage, done, total.
    """

    def __init__(self, job: Job, settings: TasksSettings, progress: Progress) -> None:
        self.job, self.settings, self.progress = job, settings, progress
        self.tasks = find_tasks(job.tasks)
        find_scorer(settings.scorer)  # first of all, as the tasks: a typing error must not cost an hour
        self.model, self.tokenizer = load_model(find_checkpoint(job.model))
        if self.tokenizer is None:
            raise InputError("the model has no tokenizer, and tasks are made of text", path=Path(job.model))
        self.codec = self._codec()
        for task in self.tasks:
            next(examples(task, min(task.sizes), 1, self.tokenizer, CALIBRATE))  # what cannot be made fails now
        job.out.mkdir(parents=True, exist_ok=True)
        self.rows = Rows(job.out / "rows.jsonl", str(fingerprint(self.model, self.tokenizer).weights))

    def _codec(self) -> Measured:
        found = find_codecs(self.job.codec, (), self.model, self.tokenizer)
        wanted = self.settings.recompute_layers
        chosen = next((one for one in found if one.codec.recompute_layers == wanted), None)
        if chosen is None:
            known = ", ".join(str(one.codec.recompute_layers) for one in found)
            raise InputError(f"no codec recomputes {wanted} layers", f"At hand: {known}", path=Path(self.job.codec))
        return chosen

    def run(self) -> Row:
        """Measure what is missing, write the report and return it."""
        ladders = {task.name: self.ladder(task) for task in self.tasks}
        cases = [case for task in self.tasks for case in self._cases(task, ladders[task.name].size)]
        candidates, matches = self.candidates(cases)
        rows = self.measured(cases, candidates)
        result = {**self._stated(), "kvtc": matches, **summarise(self.tasks, ladders, candidates, rows)}
        write_page(result, self.job.out)
        return result

    def ladder(self, task: Task) -> Ladder:
        """Return the size to measure a task at: the user's, or the largest that the exact cache is up to."""
        if task.name in self.job.sizes:
            return Ladder(self.job.sizes[task.name], ())
        return climb(task.sizes, lambda size: self._exact_accuracy(task, size))

    def _exact_accuracy(self, task: Task, size: int) -> float:
        count, rows = examples_for(task, self.settings.calibration_answers, 1), list[Row]()
        for done, example in enumerate(examples(task, size, count, self.tokenizer, CALIBRATE), 1):
            rows += self._rows_of(Case(task.name, size, example), [exact()]).values()
            self.progress(f"{task.name} at {size} {task.unit}", done, count)
        return accuracy_of(rows)

    def _cases(self, task: Task, size: int | None) -> list[Case]:
        if size is None:
            return []
        count = examples_for(task, self.settings.answers, self.settings.least_examples)
        return [Case(task.name, size, one) for one in examples(task, size, count, self.tokenizer, MEASURE)]

    def candidates(self, cases: Sequence[Case]) -> tuple[list[Candidate], dict[str, Any]]:
        """Return who is measured, and how KVTC's ratios were found; it is fitted only where a row is missing."""
        ours, beside, matches = tiers(self.codec.codec), dict[str, Candidate](), dict[str, Any]()
        if self.job.shards is not None:
            beside, matches = self._kvtc(self.job.shards, ours, cases)
        found = [exact()]
        for one in ours:
            found += [one, *([beside[one.quality]] if one.quality in beside else [])]
        for fraction in kept_fractions(self.settings.keep_fractions):
            found += [
                planned(self.codec.codec, self.model, self.tokenizer, self.settings.scorer, fraction),
                evicted(fraction),
            ]
        return found, matches

    def _kvtc(
        self, shards: Path, ours: Sequence[Candidate], cases: Sequence[Case]
    ) -> tuple[dict[str, Candidate], dict[str, Any]]:
        sizes = self.settings.kvtc_fit_sessions, self.settings.kvtc_kl_sessions, self.settings.kvtc_tokens
        source = KvtcAtKl(self.model, self.tokenizer, shards, *sizes, self.progress)
        baselines = {one.quality: named(one.quality, source.identity(one)) for one in ours}
        keys = {quality: ("match", quality, baseline.fingerprint[:16]) for quality, baseline in baselines.items()}
        matches = {quality: row for quality, key in keys.items() if (row := self.rows.get(key)) is not None}
        reached = [baseline for quality, baseline in baselines.items() if matches.get(quality, {}).get("aimed_ratio")]
        missing = any(self.rows.get(case.key(baseline)) is None for baseline in reached for case in cases)
        if len(matches) < len(baselines) or missing:
            baselines, found = source.candidates(ours)
            matches = {quality: self.rows.add(keys[quality], row) for quality, row in found.items()}
        told = {quality: {name: row[name] for name in MATCH} for quality, row in matches.items()}
        return {quality: baselines[quality] for quality in baselines if matches[quality]["aimed_ratio"]}, told

    def measured(self, cases: Sequence[Case], candidates: Sequence[Candidate]) -> dict[str, list[dict[str, Row]]]:
        """Return for each task, example by example, the row of each candidate by its name."""
        found: dict[str, list[dict[str, Row]]] = {}
        totals = Counter(case.task for case in cases)
        for case in cases:
            held = found.setdefault(case.task, [])
            held.append(self._rows_of(case, candidates))
            self.progress(case.task, len(held), totals[case.task])
        return found

    def _rows_of(self, case: Case, candidates: Sequence[Candidate]) -> dict[str, Row]:
        """Return the rows of an example, those missing measured now; its exact cache is made once."""
        snapshot, found = None, dict[str, Row]()
        with tempfile.TemporaryDirectory() as temporary:
            for candidate in candidates:
                key = case.key(candidate)
                row = self.rows.get(key)
                if row is None:
                    snapshot = snapshot or capture(self.model, case.example.context, tokenizer=self.tokenizer)
                    path = Path(temporary) / "context.kvz"
                    row = self.rows.add(key, self._row(candidate, case.example, snapshot, path))
                found[candidate.name] = row
        return found

    def _row(self, candidate: Candidate, example: Example, snapshot: KVSnapshot, path: Path) -> Row:
        """Return a new row; one that says why where the candidate cannot store this context."""
        try:
            return measure(self.model, self.tokenizer, candidate, example, snapshot, path)
        except KVCompressError as error:
            if candidate.kind == EXACT:  # then it is the question that cannot be asked
                raise
            return {"failed": str(error)}

    def _stated(self) -> Row:
        """Return what was measured with what."""
        return {
            "schema": 1,
            "command": self.job.command,
            "commit": commit(),
            "versions": {"python": platform.python_version(), **package_versions()},
            "threads": torch.get_num_threads(),
            "settings": asdict(self.settings),
            "model": {
                "name": find_checkpoint(self.job.model).resolve().name,
                "parameters": sum(part.numel() for part in self.model.parameters()),
            },
            "codec": self.codec.to_json(),
        }
