"""The tables that hold codecs against each other: sizes at equal KL, and fixed QPs beside what others published."""

from __future__ import annotations

from collections.abc import Sequence

from kvcompress.report.spelling import spell, with_interval
from kvcompress.report.tables import Column, Row, Table
from kvcompress_eval.suite.damage import NEAR_TOKENS
from kvcompress_eval.suite.published import FIXED_RATE
from kvcompress_eval.suite.report.facts import Codec, Result, measured, size_ratio
from kvcompress_eval.suite.report.tables import WORDS


def equal_kl_table(result: Result) -> Table | None:
    """Return for each point of ours what each family of baselines would weigh at its KL, the hardest baseline first."""
    found = result.get("equal_kl")
    if not found:
        return None
    family = {codec["name"]: codec["family"] for codec in measured(result)}
    order = list(family)
    listed = [row for row in found if row["codec"] in family]
    listed.sort(key=lambda row: (order.index(row["codec"]), row["times_larger"]["mean"]))
    rows = [
        Row(
            (
                row["codec"],
                spell(row["kl_nats"], "nats"),
                spell(row["size_ratio"], "ratio"),
                row["family"],
                with_interval(row["their_size_ratio"], "ratio"),
                with_interval(row["times_larger"], "times"),
            ),
            family[row["codec"]],
        )
        for row in listed
    ]
    columns = (
        WORDS,
        Column("its KL, nats"),
        Column("its size ratio"),
        Column("baseline", False),
        Column("baseline's size ratio at this KL"),
        Column("baseline's files larger, times"),
    )
    note = (
        "On the same sessions: a baseline's best settings are joined in logarithms of KL and size ratio and read "
        "off at our mean KL. A family whose points do not reach this KL is left out. 95 % intervals by resampling "
        "sessions, ours and theirs together. Both sides leave out the bytes of the codec itself."
    )
    return Table("Sizes at equal KL", note, columns, tuple(rows))


def published_table(result: Result) -> Table | None:
    """Return fixed-rate codecs as measured here, then the figures that others published of such."""
    published = result.get("published")
    ours = [codec for codec in measured(result) if codec["family"] in FIXED_RATE]
    if not published or not ours:
        return None
    sessions = result["sessions"]
    rows = [_measured_row(codec, sessions["tokens"]) for codec in sorted(ours, key=size_ratio)]
    for one in published:
        ratios, kls = (_listed(one[name], style) for name, style in (("size_ratio", "ratio"), ("kl_nats", "nats")))
        rows.append(Row((one["name"], "published", " / ".join(one["stored"]), ratios, kls, one["top1"])))
    whole = sessions["continuation_tokens"] > NEAR_TOKENS
    over = f"all {sessions['continuation_tokens']:,}" if whole else f"the first {NEAR_TOKENS}"
    sources = "; ".join(dict.fromkeys(one["source"] for one in published))
    note = (
        f"Measured here over {over} tokens that followed. Published: {sources}. Another model and other texts: what "
        "such codecs are known to reach, not a comparison."
    )
    words = (WORDS, Column("figures", False), Column("tokens stored"))
    columns = (*words, Column("size ratio"), Column("KL, nats"), Column("top-1"))
    return Table("Fixed-rate codecs beside published ones", note, columns, tuple(rows))


def _measured_row(codec: Codec, tokens: int) -> Row:
    fidelity = (codec.get("whole") or codec)["fidelity"]
    kl, top1 = fidelity["kl_nats"]["mean"], fidelity["top1_agreement"]["mean"]
    figures = spell(size_ratio(codec), "ratio"), spell(kl, "nats"), spell(top1, "share")
    return Row((codec["name"], "measured here", f"{tokens:,}", *figures), codec["family"])


def _listed(values: Sequence[float], style: str) -> str:
    return " / ".join(spell(value, style) for value in values)
