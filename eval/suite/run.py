"""The whole suite in one run: every codec on every session, controls, economics, report.

Memory holds the caches of one session at a time. Rows are kept in `rows.jsonl` as they are measured, and a run that was
cut off goes on from them where it is asked to. A codec that fails keeps what was measured before and says why; the
others go on.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from eval.baselines.protocol import Calibration, Rival
from eval.baselines.registry import FITTED, Own, build_all, resolve
from eval.baselines.shards import ShardCalibration, require_apart
from eval.suite.aggregate import codec_entry
from eval.suite.chosen import Chosen, choose_sessions
from eval.suite.controls import Controls
from eval.suite.extras import extras
from eval.suite.measure import Row, measure_point
from eval.suite.probes import Probes, prepare_probes
from eval.suite.provenance import provenance
from eval.suite.report import write_suite_report
from eval.suite.rows import Rows
from eval.suite.settings import SuiteSettings
from eval.suite.spoken import reason_of, without_places
from eval.suite.subject import Subject, prepare
from kvcompress.data.harvest import tokenized_sessions
from kvcompress.errors import InputError
from kvcompress.hf import fingerprint, load_model
from kvcompress.hf.loading import model_directory
from kvcompress.snapshot import KVSnapshot

LEAST_CALIBRATION = 4
Advance = Callable[[str, int, int], None]


@dataclass(frozen=True, slots=True)
class Job:
    """What is measured with what.

    Attributes:
        model: Model directory, bundled name, or whatever else names a model.
        codecs: Families, codec directories, or "all".
        sessions: JSON lines of sessions.
        out: Directory of rows and report.
        calibration: Sessions that rivals are fitted to; if not given, those of `sessions` that are not measured.
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


@dataclass(slots=True)
class Suite:
    """One run under way.

    Attributes:
        model: The model.
        tokenizer: Its tokenizer.
        chosen: The sessions.
        controls: What computing the same in other ways moves.
        rivals: Every point, in the order measured.
        rows: Rows by codec name.
        failures: Codec or family name -> why it failed.
        worth: For each session what its context is worth, see `Subject.worth_nats`.
        first: The cache of the first session.
    """

    model: Any
    tokenizer: Any
    chosen: list[Chosen]
    controls: Controls
    rivals: list[Rival] = field(default_factory=list)
    rows: dict[str, list[Row]] = field(default_factory=dict)
    failures: dict[str, str] = field(default_factory=dict)
    worth: list[Tensor] = field(default_factory=list)
    first: KVSnapshot | None = None

    @property
    def sample(self) -> KVSnapshot:
        """The cache of the first session; there is one once sessions are measured."""
        assert self.first is not None
        return self.first


def run_suite(job: Job, size: Callable[[int], SuiteSettings]) -> dict[str, Any]:
    """Measure codecs on recorded sessions, write the report, and return the result.

    Args:
        job: What is measured.
        size: Gives the size of the run for a model of so many parameters.

    Raises:
        InputError: Nothing can be measured: an unknown codec, no session long enough, none left to calibrate on.
        MismatchError: The harvest is of another model.
    """
    started, clock = datetime.now(UTC), time.perf_counter()
    names = resolve(job.codecs)
    model, tokenizer = load_model(job.model)
    settings = size(sum(part.numel() for part in model.parameters()))
    found = tokenized_sessions(model, tokenizer, job.sessions)
    pairs, rest = choose_sessions(found, settings.count, settings.tokens, settings.continuation_tokens)
    chosen = [Chosen(session, ids[: settings.tokens], ids[settings.tokens :]) for session, ids in pairs]
    suite = Suite(model, tokenizer, chosen, Controls(model))
    calibration = _calibration(job, suite, settings, rest, names)
    job.out.mkdir(parents=True, exist_ok=True)
    with _bars() as advance:
        _fit(suite, names, calibration, job.own, settings, advance)
        del calibration
        measure_all(suite, settings, _rows(job, suite), advance)
        result = {
            "schema": 1,
            "title": f"{model.config.model_type} sessions of {settings.tokens:,} tokens",
            "quick": settings.quick,
            "started": started.isoformat(timespec="seconds"),
            **provenance(model_directory(job.model), suite, job, settings),
            "codecs": entries(suite),
            **extras(suite, settings, advance, show_text=job.show_text),
        }
    result["wall_seconds"] = time.perf_counter() - clock
    write_suite_report(result, job.out)
    return result


def _calibration(job: Job, suite: Suite, settings: SuiteSettings, rest: list[Tensor], names: list[str]) -> Calibration:
    """Return what rivals may be fitted to; refuse what is too little for those that are wanted."""
    model, tokenizer, few = suite.model, suite.tokenizer, settings.quick
    if job.shards is not None:
        require_apart(job.shards, [one.ids for one in suite.chosen])
        return ShardCalibration.of(job.shards, settings.calibration, settings.tokens, model, tokenizer, few=few)
    if job.calibration is not None:
        rest = [ids for _, ids in tokenized_sessions(model, tokenizer, job.calibration)]
    if len(rest) < LEAST_CALIBRATION and set(FITTED) & set(names):
        remedy = "Give more sessions, measure fewer with --count, or name others with --calibration or --shards"
        raise InputError(f"{len(rest)} sessions are left to fit rivals to", remedy, path=job.sessions)
    return Calibration(model, tokenizer, rest[: settings.calibration], few=few)


def _rows(job: Job, suite: Suite) -> Rows:
    path = job.out / "rows.jsonl"
    if not job.go_on:
        path.write_text("", encoding="utf-8")
    return Rows(path, str(fingerprint(suite.model, suite.tokenizer).weights))


def _fit(
    suite: Suite, names: list[str], calibration: Calibration, own: Own, settings: SuiteSettings, advance: Advance
) -> None:
    for done, (name, found, reason) in enumerate(build_all(names, calibration, own), 1):
        suite.rivals += thin(found, settings.most_points)
        if reason is not None:
            suite.failures[name] = without_places(reason)
        advance("fitting", done, len(names))


def thin(found: list[Rival], most: int) -> list[Rival]:
    """Return at most `most` points of each curve, spread over its range; named quality words stay."""
    curves: dict[str, list[Rival]] = {}
    for point in found:
        curves.setdefault(point.family, []).append(point)
    return [point for curve in curves.values() for point in _thinned(curve, most)]


def _thinned(curve: list[Rival], most: int) -> list[Rival]:
    if len(curve) <= most:
        return curve
    named = [point for point in curve if getattr(point, "quality", None)]
    if len(named) >= most:
        return named
    step = (len(curve) - 1) / max(1, most - 1)
    return [curve[round(index * step)] for index in range(most)]


def measure_all(suite: Suite, settings: SuiteSettings, rows: Rows, advance: Advance) -> None:
    """Measure session by session, so that a run cut short has all codecs on the same sessions."""
    total, done = len(suite.rivals) * len(suite.chosen), 0
    planting = 0 if any(one.session.facts for one in suite.chosen) else settings.planted
    with tempfile.TemporaryDirectory() as temporary:
        path = Path(temporary) / "session.kvz"
        for number, chosen in enumerate(suite.chosen):
            subject = prepare(
                suite.model, suite.tokenizer, chosen.session, chosen.ids, settings.tokens, settings.worth_stride
            )
            suite.worth.append(subject.worth_nats)
            suite.first = suite.first or subject.snapshot
            if number < settings.control_sessions:
                suite.controls.add(subject)
            probes = prepare_probes(suite.model, suite.tokenizer, subject, plant=number < planting)
            made = _Made(subject, probes, chosen.digest, thorough=number < settings.thorough)
            for rival in suite.rivals:
                done += 1
                if rival.name not in suite.failures:
                    _one(suite, rival, made, path, rows)
                advance("sessions and codecs", done, total)


@dataclass(frozen=True, slots=True, eq=False)
class _Made:
    """A session made ready, its questions, what its rows are known by, and whether the slow measures are taken."""

    subject: Subject
    probes: Probes
    digest: str
    thorough: bool


def _one(suite: Suite, rival: Rival, made: _Made, path: Path, rows: Rows) -> None:
    """Measure one codec on one session, unless its row is there."""
    identity = getattr(rival, "identity", rival.fingerprint)
    how = [name for name, done in (("thorough", made.thorough), ("planted", made.probes.planted)) if done]
    key = ("suite", rival.name, identity[:16], "+".join(how), made.digest)
    row = rows.get(key)
    if row is None:
        given = suite.model, suite.tokenizer, rival, made.subject, made.probes, path
        try:
            measured = measure_point(*given, thorough=made.thorough)
        except Exception as error:  # whatever a rival does wrong is its own failure, not the run's
            suite.failures[rival.name] = f"session {made.subject.session.id}: {reason_of(error)}"
            return
        row = rows.add(key, measured)
    suite.rows.setdefault(rival.name, []).append(row)


def entries(suite: Suite) -> list[dict[str, Any]]:
    """Return the report's entry of every codec, those that failed included."""
    found: list[dict[str, Any]] = []
    values_count = suite.sample.values_count
    for rival in suite.rivals:
        reason = suite.failures.get(rival.name)
        rows = suite.rows.get(rival.name)
        if rows:
            found.append(codec_entry(rows, codec_bytes=rival.codec_bytes, values_count=values_count, failed=reason))
        else:
            found.append({"name": rival.name, "family": rival.family, "failed": reason or "was not measured"})
    built = {rival.name for rival in suite.rivals}
    for name, reason in suite.failures.items():
        if name not in built:
            found.append({"name": Path(name).name, "family": Path(name).name, "failed": reason})
    return found


@contextmanager
def _bars() -> Iterator[Any]:
    from kvcompress.cli.console import progress_bar

    with torch.inference_mode(), progress_bar("eval") as advance:
        yield advance
