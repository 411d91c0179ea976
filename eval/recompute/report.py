"""The trade-off as a page: a table of the continuum, targets, and the picture."""

from __future__ import annotations

from pathlib import Path

from eval.recompute.picture import draw
from eval.recompute.run import Row, at_tier
from kvcompress.report.files import write_files
from kvcompress.report.spelling import count_of, spell, with_error
from kvcompress.report.tables import markdown_table

TARGET_SHARE_OF_LAYERS = 0.25
TARGET_GAIN, TARGET_SPEED = 1.25, 2.0
PICTURE = "trade_off.svg"


def write_page(result: Row, out: Path) -> None:
    """Write report.md and the picture into a directory that exists."""
    write_files(out, {PICTURE: draw(result) + "\n", "report.md": page(result)})


def page(result: Row) -> str:
    """Return the report as Markdown."""
    rows = [_row(point) for point in result["points"]] + [_prefill_row(result)]
    parts = [
        "# Recompute: storage against computing",
        _introduction(result),
        markdown_table(HEAD, rows),
        "*Gain* is the size ratio over that of m = 0 at the same mean KL, "
        f"{spell(result['equal_kl_nats'], 'nats')} nats,\nread off between measured rates in logarithms.",
        f"![Bytes and seconds over m]({PICTURE})",
        "## All tiers",
        markdown_table(TIER_HEAD, [row for point in result["points"] for row in _tier_rows(point)]),
        "## Targets",
        _targets(result),
        f"Codecs: {_codecs(result)}; the model weighs {spell(result['model_bytes'], 'bytes')}.",
        f"Made by `{result['command']}` at commit {str(result['commit'])[:12]}, "
        f"torch {result['versions'].get('torch')}.",
    ]
    return "\n\n".join(parts) + "\n"


def _introduction(result: Row) -> str:
    settings, sessions, threads = result["settings"], result["sessions"], count_of(result["threads"], "thread")
    return f"""Restoring runs the model's first m of {result["layers"]} layers over the token ids, which gives keys and
values of layers 0 to m at no bits and predicts the layers above. m = 0 needs no model; m = all is prefilling again.

{sessions["count"]} sessions of {settings["tokens"]:,} tokens of `{sessions["file"]}`, transparent files, after a true
decode and resume over {settings["continuation_tokens"]} further tokens. Seconds are medians of {settings["rounds"]} on
one session of {result["long_tokens"]:,} tokens, all ways back in turns in one process of {threads}:
open, verify, decode, recompute, build the cache. Prefilling is the model over the token ids."""


HEAD = ("m", "file bytes", "size ratio", "KL (nats)", "top-1", "gain", "restore", "times faster than prefilling")
TIER_HEAD = ("m", "tier", "rate", "file bytes", "size ratio", "KL (nats)", "context lost", "top-1")


def _row(point: Row) -> list[str]:
    found = at_tier(point, "transparent")
    return [
        str(point["recompute_layers"]),
        spell(found["file_bytes"], "count"),
        with_error(found["size_ratio"], "ratio"),
        spell(found["kl_nats"]["mean"], "nats"),
        spell(found["top1_agreement"], "share"),
        f"{point['gain_at_equal_kl']:.2f}",
        spell(point["restore_seconds"], "seconds"),
        f"{point['prefill_over_restore']:.1f}",
    ]


def _prefill_row(result: Row) -> list[str]:
    found = result["prefill"]
    ratio = with_error(found["size_ratio"], "ratio")
    seconds = spell(found["prefill_seconds"], "seconds")
    return ["prefill", spell(found["file_bytes"], "count"), ratio, "0", "100.0 %", "", seconds, "1.0"]


def _tier_rows(point: Row) -> list[list[str]]:
    rows = []
    for tier, rate in point["tiers"].items():
        found = at_tier(point, tier)
        rows.append(
            [
                str(point["recompute_layers"]),
                tier,
                str(rate),
                spell(found["file_bytes"], "count"),
                with_error(found["size_ratio"], "ratio"),
                spell(found["kl_nats"]["mean"], "nats"),
                spell(found["context_lost"], "share"),
                spell(found["top1_agreement"], "share"),
            ]
        )
    return rows


def _targets(result: Row) -> str:
    """Say of the points next to a quarter of the layers how they stand against the targets."""
    wanted = TARGET_SHARE_OF_LAYERS * result["layers"]
    near = [point for point in result["points"] if point["recompute_layers"]]
    lines = [
        f"About a quarter of the layers recomputed: files at least {TARGET_GAIN:g} times smaller at equal KL,\n"
        f"restoring at least {TARGET_SPEED:g} times faster than prefilling.\n"
    ]
    for point in (point for point in near if abs(point["recompute_layers"] - wanted) < 1):
        gain, speed = point["gain_at_equal_kl"], point["prefill_over_restore"]
        share = point["recompute_layers"] / result["layers"]
        smaller = f"{gain:.2f} times smaller ({_verdict(gain >= TARGET_GAIN)})"
        faster = f"{speed:.1f} times faster ({_verdict(speed >= TARGET_SPEED)})"
        lines.append(f"- m = {point['recompute_layers']}, {share:.0%} of the layers: {smaller}, {faster}.")
    return "\n".join(lines)


def _verdict(met: bool) -> str:
    return "met" if met else "**missed**"


def _codecs(result: Row) -> str:
    return ", ".join(f"m = {m} {spell(size, 'bytes')}" for m, size in result["codec_bytes"].items())
