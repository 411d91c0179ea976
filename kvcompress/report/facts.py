"""The content of a report in words: headline, cards and table rows, shared by Markdown and HTML."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from kvcompress.report.spelling import spell

# All but tab and line ends: Unicode's control pictures for the first 32, its replacement character for the others.
CONTROL_SIGNS = {code: 0x2400 + code for code in range(32) if code not in b"\t\n\r"}
CONTROL_SIGNS |= dict.fromkeys([*range(0x7F, 0xA0)], 0xFFFD)


@dataclass(frozen=True, slots=True)
class Card:
    """One figure with its name and what belongs to it."""

    name: str
    figure: str
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Measure:
    """One measure, its value, the bounds it has in each tier (or none), and what it means."""

    measure: str
    value: str
    bounds: tuple[str, ...]
    meaning: str


def plain(value: Any) -> Any:
    """Return `value` as JSON can hold it: lists for tensors and tuples, None for NaN and infinity."""
    if hasattr(value, "tolist"):
        value = value.tolist()
    if isinstance(value, Mapping):
        return {str(name): plain(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value if value is None or isinstance(value, bool | int | float | str) else str(value)


def visible(value: Any) -> Any:
    """Return plain data with control characters replaced by visible signs: a terminal obeys them, a page loses them."""
    if isinstance(value, dict):
        return {visible(name): visible(item) for name, item in value.items()}
    if isinstance(value, list):
        return [visible(item) for item in value]
    return value.translate(CONTROL_SIGNS) if isinstance(value, str) else value


def part(report: Mapping[str, Any], name: str) -> dict[str, Any]:
    """Return a part of the report, empty where it was not measured."""
    found = report.get(name)
    return dict(found) if isinstance(found, Mapping) else {}


def tier_label(report: Mapping[str, Any]) -> str:
    """Return the tier in words; empty where fidelity was not measured."""
    fidelity = part(report, "fidelity")
    if not fidelity:
        return ""
    return str(fidelity.get("tier") or "below usable")


def headline(report: Mapping[str, Any]) -> list[str]:
    """Return the line that says it all: size ratio, KL, tier."""
    words = []
    size_ratio, kl = part(report, "file").get("size_ratio"), part(report, "fidelity").get("kl_nats")
    if size_ratio is not None:
        words.append(f"{spell(size_ratio, 'ratio')} smaller")
    if kl is not None:
        words.append(f"KL {spell(kl, 'nats')} nats")
    return [*words, tier_label(report)] if tier_label(report) else words


def cards(report: Mapping[str, Any]) -> list[Card]:
    """Return the figures worth a card, in order; parts that were not measured give none."""
    makers = (_size_card, _kl_card, _promise_card, _context_card, _agreement_card, _time_card, _recall_card)
    return [card for make in makers if (card := make(report)) is not None]


def _size_card(report: Mapping[str, Any]) -> Card | None:
    file = part(report, "file")
    if not file:
        return None
    raw, size = file.get("raw_bytes"), file.get("file_bytes")
    notes = (f"{spell(size, 'count')} bytes by stat, all included", f"{spell(raw, 'bytes')} as a 16-bit cache")
    return Card("File", spell(size, "bytes"), notes)


def _kl_card(report: Mapping[str, Any]) -> Card | None:
    found = part(report, "fidelity")
    if not found:
        return None
    p99, most = spell(found.get("kl_p99_nats"), "nats"), spell(found.get("kl_max_nats"), "nats")
    notes = (f"99th percentile {p99}, worst {most}", f"over {spell(found.get('continuation_tokens'), 'count')} tokens")
    return Card("Mean KL", f"{spell(found.get('kl_nats'), 'nats')} nats", notes)


def _promise_card(report: Mapping[str, Any]) -> Card | None:
    """Return what the codec promised of this file's quality, and on how many sessions that was verified."""
    found = part(report, "promise")
    kl, sessions = part(found, "kl_nats"), found.get("sessions")
    if not kl or sessions is None:
        return None
    far = f"{spell(kl.get('beyond'), 'count')} of {spell(sessions, 'count')} sessions beyond twice the bound"
    notes = (f"{found.get('quality')}: mean {spell(kl.get('measured'), 'nats')} when it was verified", far)
    return Card("Promised KL", f"≤ {spell(kl.get('bound'), 'nats')} nats", notes)


def _context_card(report: Mapping[str, Any]) -> Card | None:
    found = part(report, "fidelity")
    if not found:
        return None
    worth = f"{spell(found.get('context_worth_nats'), 'nats')} nats"
    return Card("Context lost", spell(found.get("context_lost"), "share"), (f"of a context worth {worth}",))


def _agreement_card(report: Mapping[str, Any]) -> Card | None:
    found = part(report, "fidelity")
    if not found:
        return None
    notes = (f"in the first five {spell(found.get('top5_agreement'), 'share')}",)
    return Card("Same next token", spell(found.get("top1_agreement"), "share"), notes)


def _time_card(report: Mapping[str, Any]) -> Card | None:
    timing = part(report, "timing")
    restore, prefill = timing.get("restore_seconds"), timing.get("prefill_seconds")
    if restore is None:
        return None
    notes = [f"encoding {spell(timing.get('encode_seconds'), 'seconds')}"]
    if prefill is not None and restore > 0:
        speed = prefill / restore
        compared = f"{spell(speed, 'ratio')} faster" if speed >= 1 else f"{spell(1 / speed, 'ratio')} slower"
        notes.insert(0, f"{compared} than prefill, {spell(prefill, 'seconds')}")
    return Card("Restore", spell(restore, "seconds"), tuple(notes))


def _recall_card(report: Mapping[str, Any]) -> Card | None:
    recall = part(report, "questions")
    if not recall.get("asked"):
        return None
    asked = spell(recall["asked"], "count")
    notes = (f"{spell(recall.get('exact_uncompressed'), 'count')} of {asked} uncompressed",)
    return Card("Facts recalled", f"{spell(recall.get('exact'), 'count')} of {asked}", notes)


def measures(report: Mapping[str, Any]) -> list[Measure]:
    """Return the rows of the fidelity table; the bounds of a tier stand beside the three measures that have them."""
    from kvcompress.metrics.fidelity import TIERS  # inside: torch is slow to import

    found = part(report, "fidelity")
    if not found:
        return []
    kl = tuple(f"≤ {tier.max_kl_nats:g}" for tier in TIERS)
    lost = tuple(f"≤ {100 * tier.max_context_lost:g} %" for tier in TIERS)
    top1 = tuple(f"≥ {100 * tier.min_top1_agreement:g} %" for tier in TIERS)
    listed = (
        ("kl_nats", "Mean KL (nats)", "nats", kl, "KL(exact ‖ decoded) of the next token"),
        ("context_lost", "Context lost", "share", lost, "mean KL over what the context is worth"),
        ("top1_agreement", "Same first token", "share", top1, "the same most likely next token"),
        ("top5_agreement", "In the first five", "share", (), "the exact cache's first token among five"),
        ("kl_p50_nats", "Median KL (nats)", "nats", (), "half of the tokens lie below"),
        ("kl_p99_nats", "99th percentile KL", "nats", (), "one token in a hundred lies above"),
        ("kl_max_nats", "Highest KL (nats)", "nats", (), "the worst token"),
        ("context_worth_nats", "Context worth (nats)", "nats", (), "mean KL of seeing the last 32 tokens only"),
        ("ppl_ratio", "Perplexity ratio", "fixed", (), "decoded over exact, on what really followed"),
        ("rms_probability_change", "RMS change of probability", "share", (), "of the token that really followed"),
    )
    return [Measure(name, spell(found.get(key), style), bounds, why) for key, name, style, bounds, why in listed]


def particulars(report: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return what identifies the run: file, model, machine, versions, as pairs of name and text."""
    file = part(report, "file")
    pairs = [("file", file.get("name") or file.get("path_name") or file.get("path name") or file.get("path"))]
    for group in ("model", "machine", "versions"):
        pairs += [(f"{group} {name}", value) for name, value in part(report, group).items()]
    return [(name.replace("_", " "), str(value)) for name, value in pairs if value is not None]


def first_difference(text_a: str, text_b: str) -> int | None:
    """Return the index of the first differing character, moved back to the start of its word; None where equal."""
    if text_a == text_b:
        return None
    pairs = enumerate(zip(text_a, text_b, strict=False))
    at = next((index for index, (a, b) in pairs if a != b), min(len(text_a), len(text_b)))
    while at and not text_a[at - 1].isspace():
        at -= 1
    return at
