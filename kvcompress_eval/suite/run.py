"""The whole suite in one run: every codec on every session, controls, economics, report.

Memory holds the caches of one session at a time. Rows are kept in `rows.jsonl` as they are measured, and a run that was
cut off goes on from them where it is asked to. A codec that fails keeps what was measured before and says why; the
others go on.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from kvcompress.data.harvest import tokenized_sessions
from kvcompress.errors import InputError
from kvcompress.hf import capture, fingerprint, load_model
from kvcompress.hf.loading import model_directory
from kvcompress.snapshot import KVSnapshot, ModelFingerprint
from kvcompress_eval.baselines.protocol import Baseline, Calibration
from kvcompress_eval.baselines.registry import FITTED, Own, named_codecs, resolve
from kvcompress_eval.baselines.shards import ShardCalibration, require_apart
from kvcompress_eval.suite.aggregate import codec_entry
from kvcompress_eval.suite.chosen import Chosen, choose_sessions
from kvcompress_eval.suite.controls import ControlRow, control_row
from kvcompress_eval.suite.curves import thin
from kvcompress_eval.suite.damage import NEAR_TOKENS
from kvcompress_eval.suite.extras import extras, mean_kl_nats, slow_extras
from kvcompress_eval.suite.fitted import points_of
from kvcompress_eval.suite.job import Job
from kvcompress_eval.suite.measure import Row, measure_point
from kvcompress_eval.suite.probes import Probes, prepare_probes
from kvcompress_eval.suite.provenance import provenance
from kvcompress_eval.suite.report import write_suite_report
from kvcompress_eval.suite.report.facts import is_ours
from kvcompress_eval.suite.rows import Key, Rows, identity_of
from kvcompress_eval.suite.settings import SuiteSettings
from kvcompress_eval.suite.spoken import reason_of, without_places
from kvcompress_eval.suite.subject import Subject, prepare

LEAST_CALIBRATION = 4
EXACT_NATS = 1e-5
"""Loses next to nothing: a five hundredth of what `transparent` allows."""

FIT_WEIGHTS = {"cachegen": 4, "kvtc": 40, "kvtc_ideal": 20}
"""About how long the longest fits take, where another family takes 1: for the time left."""
Advance = Callable[[str, int, int], None]


@dataclass(slots=True)
class Suite:
    """One run under way.

    Attributes:
        model: The model.
        tokenizer: Its tokenizer.
        chosen: The sessions.
        baselines: Every point, in the order measured.
        rows: Rows by codec name.
        exact: Names of baselines' points that lose next to nothing.
        failures: Codec or family name -> why it failed.
        worth: For each session what its context is worth, see `Subject.worth_nats`.
        controls: For each session they were taken on, what computing the same in other ways moves.
        first: The cache of the first session, once it was needed.
    """

    model: Any
    tokenizer: Any
    chosen: list[Chosen]
    baselines: list[Baseline] = field(default_factory=list)
    rows: dict[str, list[Row]] = field(default_factory=dict)
    exact: set[str] = field(default_factory=set)
    failures: dict[str, str] = field(default_factory=dict)
    worth: list[Tensor] = field(default_factory=list)
    controls: list[ControlRow] = field(default_factory=list)
    first: KVSnapshot | None = None

    @property
    def sample(self) -> KVSnapshot:
        """The cache of the first session."""
        if self.first is None:
            self.first = capture(self.model, self.chosen[0].stored, tokenizer=self.tokenizer)
        return self.first


def run_suite(job: Job, size: Callable[[int], SuiteSettings]) -> dict[str, Any]:
    """Measure codecs on recorded sessions, write the report, and return the result.

    Args:
        job: What is measured.
        size: Gives the size of the run for a model of so many parameters.

    Raises:
        InputError: Nothing can be measured: an unknown codec, no session long enough, none left to calibrate on.
        CheckpointError: No codec lies where one was named.
        MismatchError: The harvest, or a codec that was named, is of another model.
    """
    started, clock = datetime.now(UTC), time.perf_counter()
    names = resolve(job.codecs)
    named = named_codecs(names, job.own)
    model, tokenizer = load_model(job.model)
    for facts in named:
        ModelFingerprint.from_json(facts.model).require_match(fingerprint(model, tokenizer), path=facts.directory)
    settings = size(sum(part.numel() for part in model.parameters()))
    found = tokenized_sessions(model, tokenizer, job.sessions)
    pairs, rest = choose_sessions(found, settings.count, settings.tokens, settings.continuation_tokens)
    chosen = [Chosen(session, ids[: settings.tokens], ids[settings.tokens :]) for session, ids in pairs]
    suite = Suite(model, tokenizer, chosen)
    calibration = _calibration(job, suite, settings, rest, names)
    job.out.mkdir(parents=True, exist_ok=True)
    with _bars() as advance:
        rows = _rows(job, suite)
        _fit(suite, names, calibration, job.own, settings, rows, advance)
        del calibration
        measure_all(suite, settings, rows, advance)
        result = {
            "schema": 1,
            "title": f"{suite.sample.origin.model_name}: sessions of {settings.tokens:,} tokens",
            "quick": settings.quick,
            "started": started.isoformat(timespec="seconds"),
            **provenance(model_directory(job.model), suite, job, settings),
            "codecs": entries(suite),
            **extras(suite, settings, rows, advance, show_text=job.show_text),
        }
    result["wall_seconds"] = time.perf_counter() - clock
    write_suite_report(result, job.out)
    return result


def _calibration(job: Job, suite: Suite, settings: SuiteSettings, rest: list[Tensor], names: list[str]) -> Calibration:
    """Return what baselines may be fitted to; refuse what is too little for those that are wanted."""
    model, tokenizer, few = suite.model, suite.tokenizer, settings.few
    if job.shards is not None:
        require_apart(job.shards, [one.ids for one in suite.chosen])
        return ShardCalibration.of(job.shards, settings.calibration, settings.tokens, model, tokenizer, few=few)
    if job.calibration is not None:
        rest = [ids for _, ids in tokenized_sessions(model, tokenizer, job.calibration)]
    if len(rest) < LEAST_CALIBRATION and set(FITTED) & set(names):
        remedy = "Give more sessions, measure fewer with --count, or name others with --calibration or --shards"
        raise InputError(f"{len(rest)} sessions are left to fit baselines to", remedy, path=job.sessions)
    return Calibration(model, tokenizer, rest[: settings.calibration], few=few)


def _rows(job: Job, suite: Suite) -> Rows:
    path = job.out / "rows.jsonl"
    if not job.go_on:
        path.write_text("", encoding="utf-8")
    return Rows(path, str(fingerprint(suite.model, suite.tokenizer).weights))


def _fit(
    suite: Suite,
    names: list[str],
    calibration: Calibration,
    own: Own,
    settings: SuiteSettings,
    rows: Rows,
    advance: Advance,
) -> None:
    def measured(points: Sequence[Baseline]) -> bool:
        held = thin(list(points), settings.most_points)
        todo = list(_todo(suite, settings, held))
        return not any(_missing_of(baseline, todo, settings, rows) for baseline in held)

    total, done = sum(FIT_WEIGHTS.get(name, 1) for name in names), 0
    for name, found, reason in points_of(names, calibration, own, rows, measured):
        suite.baselines += thin(found, settings.most_points)
        if reason is not None:
            suite.failures[name] = without_places(reason)
        done += FIT_WEIGHTS.get(name, 1)
        advance("fitting", done, total)


def _missing_of(baseline: Baseline, todo: Sequence[_Todo], settings: SuiteSettings, rows: Rows) -> int:
    """Return how many rows of a baseline are missing; one that is given up after the first session needs no others."""
    first = rows.get(todo[0].keys[baseline.name])
    if first is not None and mean_kl_nats([first]) > settings.most_first_nats:
        return 0
    return sum(rows.get(one.keys[baseline.name]) is None for one in todo)


def measure_all(suite: Suite, settings: SuiteSettings, rows: Rows, advance: Advance) -> None:
    """Measure session by session, so that a run cut short has all codecs on the same sessions."""
    todo, done = list(_todo(suite, settings, suite.baselines)), 0
    with tempfile.TemporaryDirectory() as temporary:
        path = Path(temporary) / "session.kvz"
        for one in todo:
            made = _Made(suite, settings, one)
            suite.worth.append(_worth(suite, settings, made, rows))
            if one.control:
                suite.controls.append(_controls(suite, made, rows))
            for baseline in suite.baselines:
                if not _wanted(suite, settings, baseline.name, one):
                    continue
                missing = rows.get(one.keys[baseline.name]) is None
                _one(suite, baseline, made, path, rows)
                if missing:
                    done += 1
                    advance("sessions and codecs", done, done + _missing(suite, settings, todo, rows))
            if one.number == 0 and len(todo) > 1:
                _look_ahead(suite, settings)
                del made  # its caches need not be held meanwhile
                slow_extras(suite, settings, rows, advance)


def _wanted(suite: Suite, settings: SuiteSettings, name: str, one: _Todo) -> bool:
    """Tell whether a codec is to be measured on a session: not if it failed, nor often if it loses nothing."""
    return name not in suite.failures and not (one.number >= settings.exact_sessions and name in suite.exact)


def _missing(suite: Suite, settings: SuiteSettings, todo: Sequence[_Todo], rows: Rows) -> int:
    """Return how many rows are still to be measured."""
    return sum(
        rows.get(key) is None for one in todo for name, key in one.keys.items() if _wanted(suite, settings, name, one)
    )


def _look_ahead(suite: Suite, settings: SuiteSettings) -> None:
    """Let go of baselines' points that lost too much on the first session for any use; note the exact ones."""
    for baseline in suite.baselines:
        found = suite.rows.get(baseline.name)
        if not found or is_ours(baseline.family):
            continue
        lost, most = mean_kl_nats(found), settings.most_first_nats
        if lost > most:
            reason = f"lost {lost:.2f} nats on the first session, more than {most:g}: not measured on the others"
            suite.failures.setdefault(baseline.name, reason)
        elif lost < EXACT_NATS:
            suite.exact.add(baseline.name)


@dataclass(frozen=True, slots=True, eq=False)
class _Todo:
    """A session, what is to be measured on it, and the key of each codec's row."""

    number: int
    chosen: Chosen
    thorough: bool
    plant: bool
    control: bool
    near: bool
    keys: dict[str, Key]


def _todo(suite: Suite, settings: SuiteSettings, baselines: Sequence[Baseline]) -> Iterator[_Todo]:
    planting = 0 if any(one.session.facts for one in suite.chosen) else settings.planted
    for number, chosen in enumerate(suite.chosen):
        thorough, plant = number < settings.thorough, number < planting
        near = number >= settings.long_sessions and len(chosen.following) > NEAR_TOKENS
        how = "+".join(["thorough"] * thorough + ["planted"] * plant + ["near"] * near)
        keys: dict[str, Key] = {}
        for baseline in baselines:
            keys[baseline.name] = "suite", baseline.name, identity_of(baseline), how, chosen.digest
        yield _Todo(number, chosen, thorough, plant, number < settings.control_sessions, near, keys)


class _Made:
    """A session made ready with its questions, once something of it is measured: that takes passes of the model."""

    def __init__(self, suite: Suite, settings: SuiteSettings, todo: _Todo) -> None:
        self.suite, self.settings, self.todo = suite, settings, todo

    @cached_property
    def subject(self) -> Subject:
        """The session."""
        suite, chosen, settings = self.suite, self.todo.chosen, self.settings
        ids = chosen.ids[: settings.tokens + NEAR_TOKENS] if self.todo.near else chosen.ids
        given = suite.model, suite.tokenizer, chosen.session, ids
        return prepare(*given, settings.tokens, settings.worth_stride)

    @cached_property
    def probes(self) -> Probes:
        """What is asked beyond what followed."""
        return prepare_probes(self.suite.model, self.suite.tokenizer, self.subject, plant=self.todo.plant)


def _worth(suite: Suite, settings: SuiteSettings, made: _Made, rows: Rows) -> Tensor:
    how = f"every {settings.worth_stride}{' near' if made.todo.near else ''}"
    key = ("session", how, made.todo.chosen.digest)
    row = rows.get(key)
    if row is None:
        row = rows.add(key, {"context_worth_nats": made.subject.worth_nats.tolist()})
    return torch.tensor(row["context_worth_nats"], dtype=torch.float64)


def _controls(suite: Suite, made: _Made, rows: Rows) -> ControlRow:
    key = ("controls", f"{torch.get_num_threads()} threads", made.todo.chosen.digest)
    row = rows.get(key) or rows.add(key, {"controls": control_row(suite.model, made.subject)})
    found: ControlRow = row["controls"]
    return found


def _one(suite: Suite, baseline: Baseline, made: _Made, path: Path, rows: Rows) -> None:
    """Measure one codec on one session, unless its row is there."""
    key = made.todo.keys[baseline.name]
    row = rows.get(key)
    if row is None:
        given = suite.model, suite.tokenizer, baseline, made.subject, made.probes, path
        try:
            measured = measure_point(*given, thorough=made.todo.thorough)
        except Exception as error:  # whatever a baseline does wrong is its own failure, not the run's
            suite.failures[baseline.name] = f"session {made.todo.chosen.session.id}: {reason_of(error)}"
            return
        row = rows.add(key, measured)
    suite.rows.setdefault(baseline.name, []).append(row)


def entries(suite: Suite) -> list[dict[str, Any]]:
    """Return the report's entry of every codec, those that failed included."""
    found: list[dict[str, Any]] = []
    values_count = suite.sample.values_count
    for baseline in suite.baselines:
        reason = suite.failures.get(baseline.name)
        rows = suite.rows.get(baseline.name)
        if rows:
            found.append(codec_entry(rows, codec_bytes=baseline.codec_bytes, values_count=values_count, failed=reason))
        else:
            found.append({"name": baseline.name, "family": baseline.family, "failed": reason or "was not measured"})
    built = {baseline.name for baseline in suite.baselines}
    for name, reason in suite.failures.items():
        if name not in built:
            found.append({"name": Path(name).name, "family": Path(name).name, "failed": reason})
    return found


@contextmanager
def _bars() -> Iterator[Any]:
    from kvcompress.cli.console import progress_bar

    with torch.inference_mode(), progress_bar("eval") as advance:
        yield advance
