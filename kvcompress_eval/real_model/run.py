"""The run: choose sessions, measure every codec on them, then KVTC, then seconds; write the report.

Rows are kept as they are measured, and a run that was killed goes on. Memory holds one session at a time.
"""

from __future__ import annotations

import json
import platform
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from kvcompress.codec.promise import QUALITIES
from kvcompress.errors import InputError
from kvcompress.hf import capture, fingerprint, load_model
from kvcompress.hub.bundled import find_checkpoint
from kvcompress_eval.real_model import kvtc
from kvcompress_eval.real_model.codecs import find_codecs
from kvcompress_eval.real_model.measure import Point, measure, our_point
from kvcompress_eval.real_model.page import write_page
from kvcompress_eval.real_model.subject import Subject, choose, prepare
from kvcompress_eval.real_model.summary import summarise
from kvcompress_eval.real_model.timing import time_session, timing_summary
from kvcompress_eval.suite.chosen import Chosen
from kvcompress_eval.suite.provenance import commit, package_versions
from kvcompress_eval.suite.rows import Row, Rows

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True, slots=True)
class RealModelSettings:
    """How much is measured.

    Attributes:
        tokens: Stored of each session.
        continuation_tokens: That follow and are predicted.
        count: Sessions of the codec's own source.
        other_count: Of another source.
        kvtc_sessions: Of the first, those that KVTC is measured on too.
        kvtc_fit_sessions: Harvested sessions that it is fitted to.
        timed_sessions: Of the first, those that are timed.
        rounds: Times of each timed call.
    """

    tokens: int = 1024
    continuation_tokens: int = 512
    count: int = 24
    other_count: int = 12
    kvtc_sessions: int = 8
    kvtc_fit_sessions: int = 24
    timed_sessions: int = 3
    rounds: int = 3


@dataclass(frozen=True, slots=True)
class Job:
    """What is measured with what.

    Attributes:
        model: Model directory or bundled name.
        codec: Codec directory or bundled name.
        further: Further codecs, NAME=DIR.
        sessions: JSON lines of sessions that fitted nothing.
        other: The same of another source, or None.
        shards: Harvest that KVTC is fitted to, or None to leave it out.
        fit_facts: JSON files that `kvcompress fit --json` printed.
        out: Directory of rows and report.
        command: The command line.
    """

    model: str
    codec: str
    further: tuple[str, ...]
    sessions: Path
    other: Path | None
    shards: Path | None
    fit_facts: tuple[Path, ...]
    out: Path
    command: str


class RealModelRun:
    """One run.

    Args:
        job: What to measure.
        settings: How much.
        progress: Called with stage, done, total.
    """

    def __init__(self, job: Job, settings: RealModelSettings, progress: Progress) -> None:
        self.job, self.settings, self.progress = job, settings, progress
        self.facts = read_facts(job.fit_facts)  # first of all: a typing error must not cost an hour
        self.model, self.tokenizer = load_model(find_checkpoint(job.model))
        self.codecs = find_codecs(job.codec, job.further, self.model, self.tokenizer)
        self.test = self._choose("test", job.sessions, settings.count)
        self.other = self._choose("other", job.other, settings.other_count) if job.other else []
        job.out.mkdir(parents=True, exist_ok=True)
        self.rows = Rows(job.out / "rows.jsonl", str(fingerprint(self.model, self.tokenizer).weights))

    def _choose(self, source: str, path: Path, count: int) -> list[Chosen]:
        sizes = self.settings.tokens, self.settings.continuation_tokens
        return choose(self.model, self.tokenizer, source, path, count, *sizes)

    def run(self) -> Row:
        """Measure what is missing, write the report and return it."""
        ours, baselines, seconds = self.measure_ours(), self.measure_kvtc(), self.measure_seconds()
        shares = {one.name: one.share for one in self.codecs}
        result = {**self._stated(), **summarise(ours, baselines, shares), "timing": timing_summary(seconds)}
        write_page(result, self.job.out)
        return result

    def measure_ours(self) -> list[Row]:
        """Return the rows of this project's codecs, all points of a session together."""
        points = [our_point(one.name, one.codec, word) for one in self.codecs for word in one.qualities]
        found, chosen = list[Row](), [*self.test, *self.other]
        for done, one in enumerate(chosen, 1):
            found += self._measured(one, points)
            self.progress("sessions", done, len(chosen))
        return found

    def measure_kvtc(self) -> list[Row]:
        """Return the rows of KVTC, which is fitted only where one is missing."""
        if self.job.shards is None:
            return []
        directory, sizes = self.job.shards, (self.settings.kvtc_fit_sessions, self.settings.tokens)
        known, chosen = kvtc.fingerprint(directory, *sizes), self.test[: self.settings.kvtc_sessions]
        keys = [("kvtc", form, name, known[:16], one.digest) for one in chosen for form, name in kvtc.names()]
        missing = {key[1] for key in keys if self.rows.get(key) is None}
        done, total = 0, len(missing) * len(chosen)
        for points in kvtc.points(directory, *sizes, [form for form in kvtc.FORMS if form in missing], self._say):
            for one in chosen:
                self._measured(one, points)
                done += 1
                self.progress("kvtc", done, total)
        return [row for key in keys if (row := self.rows.get(key)) is not None]

    def measure_seconds(self) -> list[Row]:
        """Return the seconds of restoring and prefilling on some sessions."""
        codecs, found = {one.name: one.codec for one in self.codecs}, []
        names = "+".join(f"{one.name}:{one.codec.fingerprint[:8]}" for one in self.codecs)
        chosen = self.test[: self.settings.timed_sessions]
        for done, one in enumerate(chosen, 1):
            key = ("timing", names, f"{self.settings.rounds}", f"{torch.get_num_threads()}", one.digest)
            row = self.rows.get(key)
            if row is None:
                snapshot = capture(self.model, one.stored, tokenizer=self.tokenizer)
                timed = time_session(self.model, codecs, QUALITIES, snapshot, self.settings.rounds)
                row = self.rows.add(key, {"session": one.session.id, "tokens": snapshot.tokens, **timed})
            found.append(row)
            self.progress("seconds", done, len(chosen))
        return found

    def _measured(self, chosen: Chosen, points: Sequence[Point]) -> list[Row]:
        """Return the rows of points on a session, those missing measured now; its exact cache is made once."""
        subject: Subject | None = None
        found = []
        with tempfile.TemporaryDirectory() as temporary:
            for point in points:
                key = point.key(chosen.digest)
                row = self.rows.get(key)
                if row is None:
                    subject = subject or prepare(self.model, self.tokenizer, chosen, self._worth(chosen))
                    row = self.rows.add(key, measure(self.model, point, subject, Path(temporary) / "session.kvz"))
                found.append(row)
        return found

    def _worth(self, chosen: Chosen) -> tuple[float, float] | None:
        """Return what a session's context is worth, where one of its rows says so."""
        row = self.rows.of_session(chosen.digest)
        return None if row is None else (row["worth_near_nats"], row["worth_far_nats"])

    def _say(self, line: str) -> None:
        self.progress(line, 0, 1)

    def _stated(self) -> Row:
        """Return what was measured with what."""
        parameters = sum(part.numel() for part in self.model.parameters())
        return {
            "schema": 1,
            "command": self.job.command,
            "commit": commit(),
            "versions": {"python": platform.python_version(), **package_versions()},
            "threads": torch.get_num_threads(),
            "settings": asdict(self.settings),
            "model": {
                "name": find_checkpoint(self.job.model).resolve().name,
                "parameters": parameters,
                "bytes_16_bit": 2 * parameters,
                "layers": len(self.codecs[0].codec.shapes),
                "values_per_token": sum(shape.channels for shape in self.codecs[0].codec.shapes),
            },
            "sessions": {source: _sessions(chosen) for source, chosen in self._sources()},
            "codecs": [one.to_json() for one in self.codecs],
            "fit_facts": self.facts,
        }

    def _sources(self) -> list[tuple[str, list[Chosen]]]:
        return [("test", self.test), *([("other", self.other)] if self.other else [])]


def _sessions(chosen: Sequence[Chosen]) -> Row:
    kinds = sorted({one.session.category for one in chosen})
    return {
        "count": len(chosen),
        "categories": {kind: sum(one.session.category == kind for one in chosen) for kind in kinds},
    }


def read_facts(paths: Sequence[Path]) -> dict[str, Any]:
    """Return what fits printed, by the file's name.

    Raises:
        InputError: A file is missing or holds no JSON object.
    """
    found = {}
    for path in paths:
        try:
            data = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise InputError(
                f"cannot be read ({error})", "Keep what `kvcompress fit --json` prints", path=path
            ) from error
        if not isinstance(data, dict):
            raise InputError("holds no JSON object", "Keep what `kvcompress fit --json` prints", path=path)
        found[path.stem] = data
    return found
