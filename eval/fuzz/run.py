"""Cases by number, in worker processes, each under an alarm and a limit of memory; what fails is kept for replay."""

from __future__ import annotations

import json
import logging
import multiprocessing
import resource
import signal
import sys
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

from eval.fuzz.subject import Subject
from eval.fuzz.subjects import subjects
from kvcompress.errors import InputError, KVCompressError, first_line
from kvcompress.format.limits import memory_limit

CASE_SECONDS = 10.0
MEMORY_BYTES = 300_000_000
"""What a case may declare; its files have a few kilobytes."""

HEADROOM_BYTES = 1_500_000_000
"""Address space that a worker may take beyond what it has when its subjects are made."""

CHUNK = 500
LINE_SECONDS = 15.0
REFUSED, ACCEPTED, FAILED = "refused", "accepted", "failed"


class Hang(Exception):
    """A case took longer than it may."""


@dataclass(frozen=True, slots=True)
class Failure:
    """A case that ended otherwise than it may.

    Attributes:
        number: Of the case.
        kind: Of the file.
        told: What happened.
        data: The file.
    """

    number: int
    kind: str
    told: str
    data: bytes


def _alarm(signum: int, frame: object) -> None:
    raise Hang


def outcome(subject: Subject, data: bytes) -> tuple[str, str]:
    """Return how a case ended, "refused", "accepted" or "failed", and in the last case how."""
    signal.setitimer(signal.ITIMER_REAL, CASE_SECONDS)
    try:
        with memory_limit(MEMORY_BYTES):
            subject.read(data)
    except KVCompressError as error:
        line = str(error)
        return (REFUSED, "") if line.isprintable() else (FAILED, f"not one printable line: {line!r}")
    except Hang:
        return FAILED, f"took longer than {CASE_SECONDS:.0f} s"
    except BaseException as error:
        return FAILED, first_line(error)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
    if subject.intact and data not in subject.intact:
        return FAILED, "accepted though it was changed and no checksum made right"
    return ACCEPTED, ""


class Worker:
    """Makes and reads cases in one process."""

    def __init__(self) -> None:
        import torch

        warnings.simplefilter("ignore")
        logging.disable()
        torch.set_num_threads(1)
        signal.signal(signal.SIGALRM, _alarm)
        self.place = tempfile.TemporaryDirectory(
            prefix="kvcompress-fuzz-", dir="/dev/shm" if Path("/dev/shm").is_dir() else None
        )
        self.subjects = subjects(Path(self.place.name))
        held = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (held + HEADROOM_BYTES,) * 2)

    def case(self, seed: int, number: int) -> tuple[Subject, bytes]:
        """Return the kind and the bytes of a case: the same whenever they are asked for."""
        chance = Random(f"{seed}:{number}")
        subject = self.subjects[number % len(self.subjects)]
        return subject, subject.change(chance)

    def run(self, seed: int, numbers: range) -> tuple[Counter[tuple[str, str]], list[Failure]]:
        """Return how cases ended, counted by kind, and those that failed."""
        counts, failures = Counter[tuple[str, str]](), list[Failure]()
        for number in numbers:
            subject, data = self.case(seed, number)
            found, told = outcome(subject, data)
            counts[subject.name, found] += 1
            if found == FAILED:
                failures.append(Failure(number, subject.name, told, data))
        return counts, failures


_worker: Worker | None = None


def _chunk(job: tuple[int, int, int]) -> tuple[Counter[tuple[str, str]], list[Failure]]:
    """Run a chunk in a worker process, whose worker is made on its first."""
    global _worker
    _worker = _worker or Worker()
    seed, start, stop = job
    return _worker.run(seed, range(start, stop))


def fuzz(cases: int, seed: int, out: Path, processes: int) -> Counter[tuple[str, str]]:
    """Run the cases 0 to `cases` - 1 of a seed; goes on where a run of the same seed in the same directory stopped.

    Args:
        cases: How many.
        seed: Decides all of them.
        out: Directory of `state.json`, which is written after each chunk, and of `failures/`.
        processes: Worker processes.

    Returns:
        How the cases ended, counted by kind.
    """
    out.mkdir(parents=True, exist_ok=True)
    counts, done = _resumed(out, seed)
    jobs = [(seed, start, min(start + CHUNK, cases)) for start in range(done, cases, CHUNK)]
    begun = last = time.monotonic()
    with multiprocessing.get_context("spawn").Pool(processes) as pool:
        for number, (found, failures) in enumerate(pool.imap(_chunk, jobs), 1):
            counts += found
            for failure in failures:
                _keep(out, seed, failure)
            _save(out, seed, jobs[number - 1][2], counts)
            if time.monotonic() - last > LINE_SECONDS or number == len(jobs):
                last, now = time.monotonic(), jobs[number - 1][2]
                rate = (now - done) / (last - begun)
                failed = sum(count for (_, ended), count in counts.items() if ended == FAILED)
                left = (cases - now) / rate / 60
                told = f"fuzz: {now:,} of {cases:,}, {rate:,.0f} a second, {failed} failed, {left:.0f} min left\n"
                sys.stderr.write(told)
                sys.stderr.flush()
        pool.close()
        pool.join()  # workers that end by themselves remove their files
    return counts


def replay(path: Path) -> str:
    """Return how the case in a file of `failures/` ends now: its name says of which kind it is."""
    worker = Worker()
    kind = path.stem.partition("-")[2].replace("_", " ")
    known = {subject.name: subject for subject in worker.subjects}
    if kind not in known:
        raise InputError(f"{kind!r} is no kind of file", f"Known are {', '.join(known)}", path=path)
    found, told = outcome(known[kind], path.read_bytes())
    return f"{kind}: {found} {told}".rstrip()


def report_lines(counts: Counter[tuple[str, str]]) -> Iterator[str]:
    """Yield a table: kind of file, cases, and how they ended."""
    yield f"{'kind':<16} {'cases':>9} {REFUSED:>9} {ACCEPTED:>9} {FAILED:>7}"
    for kind in (*sorted({kind for kind, _ in counts}), ""):
        ends = [
            sum(n for (k, e), n in counts.items() if e == end and kind in ("", k))
            for end in (REFUSED, ACCEPTED, FAILED)
        ]
        yield f"{kind or 'all':<16} {sum(ends):>9,} {ends[0]:>9,} {ends[1]:>9,} {ends[2]:>7,}"


def _keep(out: Path, seed: int, failure: Failure) -> None:
    place = out / "failures"
    place.mkdir(exist_ok=True)
    name = f"{seed}.{failure.number}-{failure.kind.replace(' ', '_')}"
    (place / f"{name}.bin").write_bytes(failure.data)
    (place / f"{name}.txt").write_text(failure.told + "\n")


def _save(out: Path, seed: int, done: int, counts: Counter[tuple[str, str]]) -> None:
    rows = [[*key, count] for key, count in sorted(counts.items())]
    (out / "state.json").write_text(json.dumps({"seed": seed, "done": done, "counts": rows}) + "\n")


def _resumed(out: Path, seed: int) -> tuple[Counter[tuple[str, str]], int]:
    place = out / "state.json"
    state: dict[str, Any] = json.loads(place.read_text()) if place.is_file() else {}
    if state.get("seed") != seed:
        return Counter(), 0
    return Counter({(kind, ended): count for kind, ended, count in state["counts"]}), int(state["done"])
