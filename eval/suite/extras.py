"""What the report holds beside the codecs' entries: controls, bound, drift, economics, where bits and damage fall."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from eval.rivals.persistence import original_sizes
from eval.rivals.protocol import Rival
from eval.rivals.tinyvae import TinyVAEPoint
from eval.suite.bound import bound_of
from eval.suite.controls import controls
from eval.suite.economics import break_even_tokens, link_seconds, longest_context_tokens, memory_table
from eval.suite.hops import drift
from eval.suite.layers import bits_by_layer
from kvcompress.container import from_bytes, save, to_bytes
from kvcompress.fidelity import TIERS
from kvcompress.hf import capture
from kvcompress.measure import bring_back, median_seconds, prefill
from kvcompress.resume import context_limit
from kvcompress.snapshot import KVSnapshot

if TYPE_CHECKING:
    from eval.suite.run import Suite, SuiteSettings

Advance = Callable[[str, int, int], None]
MEMORY_LENGTHS_TOKENS = (512, 1024, 2048, 8192, 32768)
HOP_START_TOKENS = 256
CONTROL_SUBJECTS = 6


def extras(suite: Suite, settings: SuiteSettings, advance: Advance) -> dict[str, Any]:
    """Return every further part of the result; what fails is left out with the codec's own failure noted."""
    chosen = featured(suite)
    own = [rival for rival in chosen if isinstance(rival, TinyVAEPoint)]
    parts: dict[str, Callable[[], Any]] = {
        "controls": lambda: [c.to_json() for c in controls(suite.model, suite.subjects[:CONTROL_SUBJECTS])],
        "original_formats": lambda: _original_formats(suite.subjects[0].snapshot),
        "bound": lambda: [_bound(point, suite) for point in own],
        "hops": lambda: _hops(suite, chosen[: 2 if settings.quick else len(chosen)]),
        "bits_by_layer": lambda: {p.name: bits_by_layer(p.codec, suite.subjects[0].snapshot, p.rate) for p in own},
        "strip": lambda: _strip(suite, own),
        "economics": lambda: _economics(suite, settings, chosen),
    }
    found: dict[str, Any] = {}
    for done, (name, part) in enumerate(parts.items(), 1):
        value = part()
        if value:
            found[name] = value
        advance("further measures", done, len(parts))
    found.setdefault("controls", [])
    found["noise_floor_nats"] = max((control["kl_nats"] for control in found["controls"]), default=None)
    return found


def featured(suite: Suite) -> list[Rival]:
    """Return the points worth the slow measures: this project's quality words, and each rival's smallest usable file.

    A family without a usable point is left out.
    """
    found = [r for r in suite.rivals if isinstance(r, TinyVAEPoint) and r.name in suite.rows and r.quality]
    best: dict[str, tuple[float, Rival]] = {}
    for rival in suite.rivals:
        rows = suite.rows.get(rival.name)
        if isinstance(rival, TinyVAEPoint) or not rows or rival.name in suite.failures:
            continue
        kl = sum(sum(row["per_token_kl_nats"]) / len(row["per_token_kl_nats"]) for row in rows) / len(rows)
        size = sum(row["file_bytes"] for row in rows)
        if kl <= TIERS[-1].max_kl_nats and size < best.get(rival.family, (float("inf"), rival))[0]:
            best[rival.family] = (size, rival)
    return [*found, *(rival for _, rival in best.values())]


def _original_formats(snapshot: KVSnapshot) -> dict[str, float]:
    return {name: snapshot.raw_bytes / size for name, size in original_sizes(snapshot).items()}


def _bound(point: TinyVAEPoint, suite: Suite) -> dict[str, Any]:
    bound = bound_of(point.codec, [subject.snapshot for subject in suite.subjects], point.rate)
    rows = suite.rows[point.name]
    kl = sum(sum(row["per_token_kl_nats"]) / len(row["per_token_kl_nats"]) for row in rows) / len(rows)
    raw = sum(subject.snapshot.raw_bytes for subject in suite.subjects) / len(suite.subjects)
    return {
        "name": point.name,
        "kl_nats": kl,
        "size_ratio": raw / bound.bound_file_bytes,
        "rate_over_bound": bound.rate_over_bound,
    }


def _hops(suite: Suite, chosen: list[Rival]) -> dict[str, Any]:
    """Return the drift of each featured codec along the first session."""
    subject = suite.subjects[0]
    ids = torch.cat([subject.snapshot.token_ids, subject.continuation])
    start = min(HOP_START_TOKENS, len(ids) // 2)
    found = {}
    for rival in chosen:
        try:
            hops = drift(suite.model, suite.tokenizer, _coder(rival), ids, start_tokens=start)
        except Exception as error:  # a codec that fits whole sessions only has no drift to show
            suite.failures.setdefault(f"{rival.name} (drift)", f"{type(error).__name__}: {error}")
            continue
        found[rival.name] = [hop.to_json() for hop in hops]
    return found


def _coder(rival: Rival) -> Callable[[KVSnapshot], KVSnapshot]:
    return lambda snapshot: rival.decode(from_bytes(to_bytes(rival.encode(snapshot))))


def _strip(suite: Suite, own: list[TinyVAEPoint]) -> dict[str, Any] | None:
    """Return the first session's tokens with the bits spent on each, and what followed with the damage done."""
    if not own or suite.tokenizer is None:
        return None
    point = next((p for p in own if p.quality == "high"), own[0])
    subject = suite.subjects[0]

    def texts(ids: torch.Tensor) -> list[str]:
        return [suite.tokenizer.decode([int(token)]) for token in ids]

    return {
        "codec": point.name,
        "session": subject.session.id,
        "tokens": texts(subject.snapshot.token_ids),
        "bits": point.codec.token_bits(subject.snapshot, point.rate),
        "continuation": texts(subject.continuation),
        "damage_nats": suite.rows[point.name][0]["per_token_kl_nats"],
    }


def _economics(suite: Suite, settings: SuiteSettings, chosen: list[Rival]) -> dict[str, Any]:
    lengths = _lengths(suite, settings, chosen)
    rows = {rival.name: suite.rows[rival.name] for rival in chosen}
    size = {name: sum(row["file_bytes"] for row in found) / len(found) for name, found in rows.items()}
    restore_seconds = {name: _middle(found, "restore_seconds") for name, found in rows.items()}
    raw_per_token = suite.subjects[0].snapshot.raw_bytes // settings.tokens
    per_token = {name: total / settings.tokens for name, total in size.items()}
    tokens = [row["tokens"] for row in lengths]
    prefill = [row["prefill_seconds"] for row in lengths]
    return {
        "prefill_seconds": _middle(next(iter(suite.rows.values())), "prefill_seconds"),
        "restore_seconds": restore_seconds,
        "lengths": lengths,
        "break_even_tokens": {
            name: break_even_tokens(tokens, [row["restore_seconds"][name] for row in lengths], prefill) for name in rows
        },
        "link_seconds": {name: link_seconds(size[name], restore_seconds[name]) for name in rows},
        "memory": memory_table(MEMORY_LENGTHS_TOKENS, raw_per_token, per_token),
        "longest_context_tokens": {
            **({"raw16": longest_context_tokens(raw_per_token)} if "raw16" in suite.rows else {}),
            **{name: longest_context_tokens(value) for name, value in per_token.items()},
        },
    }


def _middle(rows: list[dict[str, Any]], name: str) -> float:
    return float(sorted(row[name] for row in rows)[len(rows) // 2])


def _lengths(suite: Suite, settings: SuiteSettings, chosen: list[Rival]) -> list[dict[str, Any]]:
    """Time restoring and prefilling at several lengths, each the median of five after a warm-up, in one process."""
    ids = torch.cat([torch.cat([s.snapshot.token_ids, s.continuation]) for s in suite.subjects])
    limit = context_limit(suite.model) or len(ids)
    wanted = {settings.tokens // 4, settings.tokens // 2, settings.tokens, 2 * settings.tokens}
    found = []
    with tempfile.TemporaryDirectory() as temporary:
        path = Path(temporary) / "session.kvz"
        for tokens in sorted(n for n in wanted if 0 < n <= min(limit, len(ids))):
            stored = ids[:tokens]
            snapshot = capture(suite.model, stored, tokenizer=suite.tokenizer)
            prefill_seconds = median_seconds(partial(prefill, suite.model, stored))
            seconds = {}
            for rival in chosen:
                save(path, rival.encode(snapshot), force=True)
                seconds[rival.name] = median_seconds(partial(bring_back, suite.model, rival, path), 3)
            found.append({"tokens": tokens, "prefill_seconds": prefill_seconds, "restore_seconds": seconds})
    return found
