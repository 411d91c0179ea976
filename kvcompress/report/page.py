"""Parts of the HTML page: figures, the strip of tokens, two texts side by side."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from kvcompress.report import plots
from kvcompress.report.facts import first_difference, part
from kvcompress.report.spelling import spell

DEFAULT_TARGET_SIZE_RATIO = 10.0
MOST_TOKENS = 4000  # in the strip; a page of more becomes slow and is not read
TIER_LEVELS = {"dropped": 0, "prior only": 1, "coarse": 3, "fine": 4, "exact": 5}  # shades of tiers
BIT_LEVELS = 5  # shades for tokens that cost bits, beside the one for those that cost none


@dataclass(frozen=True, slots=True)
class Figure:
    """One figure: heading, what to read in it, and the SVG."""

    heading: str
    caption: str
    svg: str
    wide: bool = True


@dataclass(frozen=True, slots=True)
class Token:
    """One token in the strip: what is shown, its shade (0 = no bits) and the tooltip."""

    text: str
    level: int
    tooltip: str
    dropped: bool = False


@dataclass(frozen=True, slots=True)
class Strip:
    """The session as tokens coloured by the bits they cost."""

    tokens: tuple[Token, ...]
    legend: tuple[tuple[int, str], ...]
    left_out: int
    mean_bits: float


@dataclass(frozen=True, slots=True)
class Resumed:
    """Two continuations cut at the first difference; `differing` is the first word that differs."""

    name: str
    same: str
    differing: str
    rest: str


def figures(report: Mapping[str, Any]) -> list[Figure]:
    """Draw every figure the report has numbers for."""
    from kvcompress.metrics.fidelity import TIERS  # inside: torch is slow to import

    file, bounds = part(report, "file"), {tier.name: tier.max_kl_nats for tier in TIERS}
    drawn = []
    if file.get("size_ratio") is not None:
        claimed = {str(name): float(value) for name, value in part(report, "claimed_size_ratios").items()}
        target = float(report.get("target_size_ratio") or DEFAULT_TARGET_SIZE_RATIO)
        caption = "Raw size is 2 bytes a value; the file is measured on disk, headers included."
        if claimed:
            caption += " Hatched bars are other codecs' own claims on other models, not measured here."
        drawn.append(Figure("Size ratio", caption, plots.size_ratios(float(file["size_ratio"]), claimed, target)))
    if part(file, "sections"):
        sections = {str(name): int(size) for name, size in part(file, "sections").items()}
        drawn.append(Figure("Bytes by section", "Where the file's bytes are.", plots.bytes_by_section(sections)))
    if kl := report.get("per_token_kl_nats"):
        along = "Each dot is one token. Dashed lines bound the mean, not single tokens."
        drawn.append(Figure("KL along the continuation", along, plots.kl_along(kl, bounds), wide=False))
        tail = "The same values in order of size: the right end is the tail that a mean hides."
        drawn.append(Figure("KL in order of size", tail, plots.kl_distribution(kl, bounds), wide=False))
    if layers := report.get("layer_bits"):
        drawn.append(Figure("Bits by layer", "How the bits are spread over the model.", plots.bits_by_layer(layers)))
    return drawn


def strip(report: Mapping[str, Any]) -> Strip | None:
    """Shade every token by the bits it cost; None where the report has no bits per token or no tokens."""
    bits, texts = report.get("per_token_bits"), report.get("tokens_text")
    if not bits or not texts:
        return None
    bits = [float(value or 0.0) for value in bits]
    # The few dearest tokens would make all others look alike: the scale ends at the 98th percentile.
    top = sorted(bits)[int(0.98 * (len(bits) - 1))] or max(bits) or 1.0
    pairs = list(zip(texts, bits, strict=False))
    tokens = [_token(index, str(text), cost, top) for index, (text, cost) in enumerate(pairs[:MOST_TOKENS])]
    return Strip(tuple(tokens), _legend(top), max(len(pairs) - MOST_TOKENS, 0), sum(bits) / len(bits))


def tier_strip(report: Mapping[str, Any]) -> Strip | None:
    """Shade every token by its tier; None where all have one tier, or the report does not say."""
    tiers, texts = report.get("tokens_tier"), report.get("tokens_text")
    if not tiers or not texts or len(set(tiers)) < 2:
        return None
    bits = [float(value or 0.0) for value in report.get("per_token_bits") or [0.0] * len(tiers)]
    rows = list(zip(texts, tiers, bits, strict=False))
    tokens = [
        Token(_shown(str(text)), TIER_LEVELS.get(tier, 0), f"token {index}: {tier}, {cost:.1f} bits", tier == "dropped")
        for index, (text, tier, cost) in enumerate(rows[:MOST_TOKENS])
    ]
    legend = [(TIER_LEVELS[tier], f"{tier}: {tiers.count(tier):,}") for tier in TIER_LEVELS if tier in tiers]
    return Strip(tuple(tokens), tuple(legend), max(len(rows) - MOST_TOKENS, 0), sum(bits) / len(bits))


def _token(index: int, text: str, bits: float, top: float) -> Token:
    level = 0 if bits <= 0 else min(1 + int(BIT_LEVELS * bits / top), BIT_LEVELS)
    return Token(_shown(text), level, f"token {index}: {bits:.1f} bits")


def _shown(text: str) -> str:
    return text.replace("\r\n", "\n").replace("\r", "\n").replace("\n", "↵\n").replace("\t", "→") or "·"


def _legend(top: float) -> tuple[tuple[int, str], ...]:
    edges = [top * level / BIT_LEVELS for level in range(BIT_LEVELS + 1)]
    ranges = [f"{low:.0f} to {high:.0f}" for low, high in pairwise(edges[:-1])]
    return ((0, "none"), *enumerate([*ranges, f"over {edges[-2]:.0f}"], start=1))


def resumed(report: Mapping[str, Any]) -> tuple[tuple[Resumed, ...], str]:
    """Return both continuations, cut at the first difference, and a sentence about it; nothing where one is missing."""
    from_file, uninterrupted = report.get("resumed_text"), report.get("uninterrupted_text")
    if from_file is None or uninterrupted is None:
        return (), ""
    texts = (("Uninterrupted", str(uninterrupted)), ("Resumed from the file", str(from_file)))
    at = first_difference(texts[0][1], texts[1][1])
    if at is None:
        return tuple(Resumed(name, text, "", "") for name, text in texts), "The two texts are identical."
    said = f"The first difference is marked: after {spell(at, 'count')} equal characters."
    return tuple(_cut(name, text, at) for name, text in texts), said


def _cut(name: str, text: str, at: int) -> Resumed:
    end = next((index for index in range(at, len(text)) if text[index].isspace()), len(text))
    end = max(end, min(at + 1, len(text)))  # a differing space is marked too
    return Resumed(name, text[:at], text[at:end], text[end:])


def section_rows(report: Mapping[str, Any]) -> Sequence[tuple[str, str, str]]:
    """Return name, bytes and share of each section of the file, largest first."""
    sections = part(part(report, "file"), "sections")
    total = sum(sections.values()) or 1
    ordered = sorted(sections.items(), key=lambda item: -item[1])
    return [(name, spell(size, "count"), f"{100 * size / total:.1f} %") for name, size in ordered]
