"""A result as one HTML page that needs nothing else: styles and figures inside, scripts and network forbidden."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Protocol

from kvcompress.report.facts import Card, plain, visible
from kvcompress.report.page import MOST_TOKENS, Figure, Token
from kvcompress.report.page import strip as bits_strip
from kvcompress.report.spelling import PLUS_MINUS, spell, with_error
from kvcompress.report.tables import Table
from kvcompress.report.template import render_template
from kvcompress_eval.suite.report import plots
from kvcompress_eval.suite.report.facts import (
    OURS,
    Best,
    Codec,
    Result,
    baseline_at_same_kl,
    best_points,
    circumstances,
    interval_at_same_kl,
    kl_nats,
    measured,
    shown,
    size_ratio,
)
from kvcompress_eval.suite.report.order import all_tables
from kvcompress_eval.suite.report.particulars import particulars

# A token's damage is shaded by the tiers' bounds on the mean, then by powers beyond them.
DAMAGE_NATS = (0.001, 0.005, 0.02, 0.08, 0.5)

POSITION_STEP = 16

LEADING_TABLES = ("Promises", "All codecs", "Not measured", "Sizes at equal KL", "Controls")
"""Above the figures; the others stand below."""


@dataclass(frozen=True, slots=True)
class Drawing(Figure):
    """A figure; `narrow` is a wide one drawn again for a phone."""

    narrow: str = ""


@dataclass(frozen=True, slots=True)
class Strip:
    """Texts of tokens, shaded by what each cost or suffered."""

    heading: str
    note: str
    shade: str  # the class that the levels 0 to 5 are appended to
    tokens: tuple[Token, ...]
    legend: tuple[tuple[int, str], ...]
    left_out: int


def render_html(result: Result) -> str:
    """Return the whole page; `result` has been validated."""
    from markupsafe import Markup

    result = visible(plain(result))
    tables = all_tables(result)
    best = best_points(result)
    return render_template(
        "kvcompress_eval.suite",
        "report",
        title=result["title"],
        warning=result["warning"],
        command=result["command"],
        circumstances=circumstances(result),
        reached=[(point.tier, spell(size_ratio(point.ours), "ratio")) for point in best if point.ours],
        ours=OURS,
        cards=[_card(result, point) for point in best],
        leading=[table for table in tables if leads(table)],
        tables=[table for table in tables if not leads(table)],
        figures=[(figure, Markup(figure.svg), Markup(figure.narrow)) for figure in figures(result)],
        strips=strips(result),
        particulars=particulars(result),
        plus_minus=PLUS_MINUS,
    )


def leads(table: Table) -> bool:
    """Tell whether a table stands above the figures."""
    return table.heading in LEADING_TABLES and not table.folded


def _card(result: Result, best: Best) -> Card:
    """Return a tier's card: our size ratio, the best baseline's, how they compare in the tier and at the same KL."""
    notes = [_point(best.ours) if best.ours else f"no {OURS} codec keeps this promise"]
    if best.baseline is None:
        notes.append("nor does any baseline" if best.ours is None else "no baseline keeps this promise")
    else:
        notes.append(f"best baseline: {_point(best.baseline)}")
    if best.ours and best.baseline:
        times = size_ratio(best.ours) / size_ratio(best.baseline)
        compared = f"{times:.1f} times smaller" if times >= 1 else f"{1 / times:.1f} times larger"
        notes.append(f"files {compared} than the best baseline's")
    baseline = baseline_at_same_kl(result, best.ours) if best.ours else None
    if best.ours and baseline:
        found = interval_at_same_kl(result, best.ours, baseline[0])
        larger = found or f"{size_ratio(best.ours) / baseline[1]:.1f}"
        notes.append(
            f"at the same KL {baseline[0]} reaches {spell(baseline[1], 'ratio')}: its files are {larger} times larger"
        )
    figure = with_error(best.ours["size"]["size_ratio"], "ratio") if best.ours else "not reached"
    return Card(best.tier, figure, tuple(notes))


def _point(codec: Codec) -> str:
    return f"{codec['name']}, {spell(size_ratio(codec), 'ratio')} at KL {spell(kl_nats(codec), 'nats')}"


def figures(result: Result) -> list[Drawing]:
    """Draw every figure that the result has numbers for."""
    if not measured(result):
        return []
    codecs, economics = shown(result), result["economics"]
    names = {codec["name"] for codec in measured(result)}
    drawn = [_whole("Damage over size ratio", _RATE_CAPTION, plots.rate_and_damage, result)]
    if any(nats > 0 for codec in codecs for _, nats in codec["kl_quantiles"]):
        drawn.append(_whole("The tail of KL", _TAIL_CAPTION, plots.kl_survival, result))
    if any(codec["recall"] and codec["recall"]["by_distance"] for codec in codecs):
        drawn.append(_whole("Facts recalled by distance", _RECALL_CAPTION, plots.recall_by_distance, result))
    if any(codec["name"] in economics["link_seconds"] for codec in codecs):
        drawn.append(_half("Seconds to the first token", _LINK_CAPTION, plots.first_token(result)))
    if economics.get("lengths"):
        drawn.append(_half("Restore against prefill", _LENGTH_CAPTION, plots.restore_by_length(result)))
    if economics["memory"]:
        drawn.append(_half("Bytes by length", _MEMORY_CAPTION, plots.memory_by_length(result)))
    if any(rows and name in names for name, rows in (result.get("hops") or {}).items()):
        drawn.append(_half("Drift over hops", _HOPS_CAPTION, plots.drift(result)))
    if any(bits and name in names for name, bits in (result.get("bits_by_layer") or {}).items()):
        drawn.append(_half("Bits by layer", _LAYERS_CAPTION, plots.bits_by_layer(result)))
    if any(codec.get("attention_error_by_layer") for codec in codecs):
        drawn.append(_half("Error of attention by layer", _ATTENTION_CAPTION, plots.attention_error(result)))
    return drawn


class _Plot(Protocol):
    def __call__(self, result: Result, *, narrow: bool = False) -> str: ...


def _whole(heading: str, caption: str, plot: _Plot, result: Result) -> Drawing:
    """Return a figure over the whole width, with its form for a phone."""
    return Drawing(heading, caption, plot(result), narrow=plot(result, narrow=True))


def _half(heading: str, caption: str, svg: str) -> Drawing:
    return Drawing(heading, caption, svg, wide=False)


_RATE_CAPTION = (
    "Down and to the right is better. Each point is one codec; those of a family are joined; bars are standard errors. "
    "A shaded band is the mean KL a tier allows, which asks for context and agreement as well. Codecs without a "
    "measurable loss lie on the lower edge. The dashed line is the reverse water-filling bound."
)
_TAIL_CAPTION = (
    "The share of tokens whose KL lies above a value: what a mean hides is at the lower right. Best codecs of ours and "
    "of the baselines in each tier; lines are full for transparent, dashed for high, dotted for usable ones."
)
_RECALL_CAPTION = "Planted facts that the resumed model repeats exactly, by the tokens between fact and question."
_LINK_CAPTION = "Transfer of the file and restore, over the speed of the link."
_LENGTH_CAPTION = "Where a line lies below the prefill, a file is faster than reading the session again."
_MEMORY_CAPTION = "Memory or disk that a session needs, over its length."
_HOPS_CAPTION = "The session is decoded, gone on with and encoded again, several times over."
_LAYERS_CAPTION = "How the bits are spread over the model."
_ATTENTION_CAPTION = "Error of each layer's attention output."


def strips(result: Result) -> list[Strip]:
    """Return the shown session shaded by bits and its continuation shaded by damage."""
    found = result.get("strip")
    if not found:
        return []
    strips = []
    whose = f"{found['session']}, coded by {found['codec']}"
    stored, following = found.get("tokens"), found.get("continuation")
    hidden = " The text is not the project's to show: numbers are positions." if stored is None else ""
    bits = bits_strip({"per_token_bits": found["bits"], "tokens_text": stored or positions(len(found["bits"]))})
    if bits is not None:
        note = f"Session {whose}: each token shaded by the bits it cost, {bits.mean_bits:.1f} on average.{hidden}"
        strips.append(Strip("Bits along the session", note, "b", bits.tokens, bits.legend, bits.left_out))
    if found["damage_nats"]:
        mean = sum(found["damage_nats"]) / len(found["damage_nats"])
        note = f"What followed, shaded by the KL of predicting each next token; {spell(mean, 'nats')} nats on average."
        texts = following or positions(len(found["damage_nats"]))
        strips.append(_damage_strip(note, texts, found["damage_nats"]))
    return strips


def positions(count: int) -> list[str]:
    """Return what stands for the texts of tokens where these may not be shown: a number now and then, else a dot."""
    return ["·" if index % POSITION_STEP else f" {index} " for index in range(count)]


def _damage_strip(note: str, texts: Sequence[str], damage_nats: Sequence[float]) -> Strip:
    tokens = []
    for index, (text, nats) in enumerate(zip(texts[:MOST_TOKENS], damage_nats, strict=False)):
        level = sum(nats >= bound for bound in DAMAGE_NATS)
        shown_text = text.replace("\r\n", "\n").replace("\r", "\n").replace("\n", "↵\n").replace("\t", "→")
        tokens.append(Token(shown_text or "·", level, f"token {index}: {spell(nats, 'nats')} nats"))
    edges = [f"{bound:g}" for bound in DAMAGE_NATS]
    ranges = [f"under {edges[0]}", *(f"{low} to {high}" for low, high in pairwise(edges))]
    legend = tuple(enumerate([*ranges, f"{edges[-1]} and more"]))
    left_out = max(len(texts) - MOST_TOKENS, 0)
    return Strip("Damage along the continuation", note, "d", tuple(tokens), legend, left_out)
