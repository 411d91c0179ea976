"""Run every condition in processes of its own and compare what they made of each other's files.

```
encode in A:  session ─► cache ─► A.kvz + symbols        one process a condition, the reference first:
              the reference's cache ─► bytes + symbols   it writes the snapshot that all encode
decode in B:  every file ─► symbols, cache, logits, text  one process a condition, the reference first:
                                                         the others are compared with it, then thrown away
```
"""

from __future__ import annotations

import json
import platform
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from kvcompress import __version__
from kvcompress.cli.console import progress_bar
from kvcompress.codec.directory import load_codec
from kvcompress.data.harvest import tokenized_sessions
from kvcompress.errors import InputError, KVCompressError
from kvcompress.hf import fingerprint, load_model
from kvcompress.hf.loading import model_directory
from kvcompress.hub.bundled import DEFAULT_CODEC, DEFAULT_MODEL
from kvcompress.hub.places import find_codec
from kvcompress_eval.examples import example_sessions
from kvcompress_eval.portability.compare import explain_symbols, judge
from kvcompress_eval.portability.conditions import REFERENCE, Condition, conditions_at_hand, why_no_cuda
from kvcompress_eval.portability.phases import Advance, Phases
from kvcompress_eval.portability.report import markdown, show
from kvcompress_eval.portability.symbols import outside_bins
from kvcompress_eval.suite.chosen import choose_sessions
from kvcompress_eval.suite.spoken import spoken_command
from tinyvae.quantize import steps_at

GOLDEN = Path("tests/format/golden")
CONTINUATION_TOKENS, GREEDY_TOKENS = 64, 32
Row = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Asked:
    """What to compare on.

    Attributes:
        model: Model directory, or the name of a bundled model.
        codec: Codec directory, or the name of a bundled codec.
        sessions: JSON lines of recorded sessions.
        tokens: Tokens stored of each session.
        session_count: Sessions.
        quality: Quality word of the files.
        golden: Directory of the golden files; without one there, nothing is said about it.
    """

    model: str | Path = DEFAULT_MODEL
    codec: str | Path = DEFAULT_CODEC
    sessions: Path = field(default_factory=example_sessions)
    tokens: int = 512
    session_count: int = 1
    quality: str = "transparent"
    golden: Path = GOLDEN


def devices(
    out: Path = Path("reports/devices"),
    model_path: str | Path = DEFAULT_MODEL,
    codec: str | Path = DEFAULT_CODEC,
    sessions: Path | None = None,
    tokens: int = 512,
    session_count: int = 1,
    quality: str = "transparent",
    golden: Path = GOLDEN,
    *,
    as_json: bool = False,
) -> None:
    """Compare all conditions at hand, print tables or JSON, and write `devices.json` and `devices.md`.

    Ends the process with status 1 where a symbol changed between encoder and decoder, or on bad input, in one line.
    """
    asked = Asked(model_path, codec, sessions or example_sessions(), tokens, session_count, quality, golden)
    try:
        _make(out)  # before a minute of work
        with progress_bar("devices") as advance:
            result = compare_conditions(asked, conditions_at_hand(cuda=torch.cuda.is_available()), advance)
        write(result, out)
    except KVCompressError as error:
        sys.stderr.write(f"error: {error}\n")
        sys.exit(1)
    if as_json:
        print(json.dumps(result))
    else:
        show(result)
        print(f"\n{out / 'devices.md'}, {out / 'devices.json'}")
    if not result["verdict"]["holds"]:
        sys.exit(1)


def write(result: Row, out: Path) -> None:
    """Write the result as JSON and as Markdown."""
    _make(out)
    try:
        (out / "devices.json").write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
        (out / "devices.md").write_text(markdown(result), encoding="utf-8")
    except OSError as error:
        raise InputError(f"cannot be written ({error.strerror})", "Choose another --out", path=out) from error


def _make(out: Path) -> None:
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"cannot be made ({error.strerror})", "Choose another --out", path=out) from error


def compare_conditions(
    asked: Asked,
    conditions: Sequence[Condition],
    advance: Advance = lambda stage, done, total: None,
    processes: int = 2,
) -> Row:
    """Return the whole result: encodings, pairs, golden file, verdict.

    Args:
        asked: Sessions, model and codec.
        conditions: All conditions; the reference must be the first.
        advance: Told of each process that ended.
        processes: How many run at once.

    Raises:
        KVCompressError: Something asked for is missing or does not fit, or a process failed.
    """
    if not conditions or conditions[0] != REFERENCE or len(set(conditions)) != len(conditions):
        raise InputError("conditions must be distinct, the reference first")
    job = _job(asked)
    with tempfile.TemporaryDirectory() as temporary:
        phases = Phases(Path(temporary), job, conditions, advance, processes)
        encoded = phases.encode()
        encodings = [row for condition in conditions for row in _encodings(encoded, condition, job, phases)]
        phases.job["files"], origins = _files(encoded, conditions)
        found = phases.decode(origins)
    pairs = _pairs(found["pairs"], encodings, conditions)
    file = None if job["golden"] is None else str(asked.golden / "tinyvae.kvz")
    golden = {"file": file, "why_absent": _why_no_golden(asked.golden), "rows": found["golden"]}
    result = _facts(asked, conditions, encoded, job) | {"encodings": encodings, "pairs": pairs, "golden": golden}
    return result | {"verdict": judge(result)}


def _job(asked: Asked) -> Row:
    """Check all that was asked for, before any process starts, and return what the processes share."""
    if asked.tokens < 1 or asked.session_count < 1:
        raise InputError(f"{asked.session_count} sessions of {asked.tokens} tokens cannot be compared", "Use 1 or more")
    codec = load_codec(asked.codec)
    codec.qp_of(asked.quality)
    directory = model_directory(asked.model)
    model, tokenizer = load_model(directory)
    codec.model_fingerprint.require_match(fingerprint(model, tokenizer), path=directory)
    rows = tokenized_sessions(model, tokenizer, asked.sessions)
    chosen, _ = choose_sessions(rows, asked.session_count, asked.tokens, CONTINUATION_TOKENS)
    golden = asked.golden / "tinyvae.kvz"
    return {
        "model": str(directory.resolve()),
        "codec": str(find_codec(asked.codec).resolve()),
        "quality": asked.quality,
        "greedy_tokens": GREEDY_TOKENS,
        "golden": str(golden.resolve()) if _why_no_golden(asked.golden) is None else None,
        "sessions": [
            {"id": session.id, "stored": ids[: asked.tokens].tolist(), "following": ids[asked.tokens :].tolist()}
            for session, ids in chosen
        ],
    }


def _why_no_golden(directory: Path) -> str | None:
    absent = [
        name for name in ("tinyvae.kvz", "tinyvae.json", "tinyvae.safetensors") if not (directory / name).is_file()
    ]
    return f"{directory / absent[0]} is missing" if absent else None


def _encodings(encoded: dict[Condition, Row], condition: Condition, job: Row, phases: Phases) -> Iterator[Row]:
    """Yield a row a session: how a condition's cache, file and encoding of the shared snapshot compare."""
    for index, (mine, theirs) in enumerate(
        zip(encoded[REFERENCE]["sessions"], encoded[condition]["sessions"], strict=True)
    ):
        own, reference = theirs["own"], mine["own"]
        same = mine["shared_sha256"] == theirs["shared_sha256"]
        yield {
            "condition": condition.label,
            "session": job["sessions"][index]["id"],
            "refused": theirs["refused"],
            "file_bytes": own["file_bytes"] if own else None,
            "same_cache_as_reference": own["cache_sha256"] == reference["cache_sha256"] if own else None,
            "same_file_as_reference": own["file_sha256"] == reference["file_sha256"] if own else None,
            "same_snapshot_same_bytes": same,
            "explanation": None if same else _explanation(index, condition, job, phases),
        }


def _explanation(index: int, condition: Condition, job: Row, phases: Phases) -> Row:
    """Say why a condition made other bytes of the shared snapshot."""
    name, codec = f"{index}.shared.safetensors", load_codec(job["codec"])
    qp, token_ids = codec.qp_of(job["quality"]), torch.tensor(job["sessions"][index]["stored"])
    mine, theirs = (load_file(phases.place("encode", one) / name) for one in (REFERENCE, condition))
    symbols, other, outside, largest = list[torch.Tensor](), list[torch.Tensor](), list[torch.Tensor](), 1.0
    for group in range(len(codec.groups)):
        latents = mine[f"latents.{group}"]
        symbols.append(mine[f"symbols.{group}"])
        other.append(theirs[f"symbols.{group}"])
        qps = codec.qps(group, token_ids, qp)
        outside.append(outside_bins(codec, group, token_ids, qps, latents, other[-1]))
        steps = steps_at(codec.vae(group).config.reference_step, qps)
        largest = max(largest, float((latents.abs() / steps).max()))
    return explain_symbols(symbols, other, outside, condition.rounding_tolerance * largest)


def _files(encoded: dict[Condition, Row], conditions: Sequence[Condition]) -> tuple[list[Row], list[Row]]:
    """Return the files to decode, and for each where it comes from and which symbols its encoder had."""
    files, origins = list[Row](), list[Row]()
    for condition in conditions:
        for index, row in enumerate(encoded[condition]["sessions"]):
            if row["own"] is not None:
                files.append({"path": row["own"]["path"], "session": index})
                digest = row["own"]["symbols_sha256"]
                origins.append({"encoded_in": condition.label, "session": index, "symbols_sha256": digest})
    return files, origins


def _pairs(compared: list[Row], encodings: list[Row], conditions: Sequence[Condition]) -> list[Row]:
    """Return the pairs in the order of conditions, with a row of the refusal where nothing could be encoded."""
    refused = [row for row in encodings if row["refused"]]
    sessions = list(dict.fromkeys(row["session"] for row in encodings))
    rows = [row | {"session": sessions[row["session"]]} for row in compared]
    for row in refused:
        cell = {"encoded_in": row["condition"], "session": row["session"], "symbols_identical": None}
        rows += [cell | {"decoded_in": other.label, "refused": row["refused"]} for other in conditions]
    order = {condition.label: index for index, condition in enumerate(conditions)}
    return sorted(rows, key=lambda row: (order[row["encoded_in"]], order[row["decoded_in"]]))


def _facts(asked: Asked, conditions: Sequence[Condition], encoded: dict[Condition, Row], job: Row) -> Row:
    """Return what was run, on what, and what was not at hand."""
    return {
        "schema": 1,
        "command": spoken_command(sys.argv),
        "versions": {"kvcompress": __version__, "torch": torch.__version__, "python": platform.python_version()},
        "machine": platform.machine(),
        "model": Path(job["model"]).name,
        "codec": Path(job["codec"]).name,
        "quality": asked.quality,
        "sessions": [session["id"] for session in job["sessions"]],
        "tokens": asked.tokens,
        "continuation_tokens": CONTINUATION_TOKENS,
        "greedy_tokens": GREEDY_TOKENS,
        "conditions": [
            {"label": condition.label, **asdict(condition), "in_force": encoded[condition]["in_force"]}
            for condition in conditions
        ],
        "absent": [] if torch.cuda.is_available() else [{"label": "cuda", "why": why_no_cuda()}],
    }
