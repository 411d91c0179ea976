"""`kvcompress inspect --plan`: print tier and bits of each token."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path

from kvcompress.cli.waiting import waiting
from kvcompress.codec.registry import codec_of
from kvcompress.errors import KVCompressError, about
from kvcompress.format.container import load
from kvcompress.prune.table import load_table, table_of
from kvcompress.report.terminal import print_table
from kvcompress.snapshot import KVSnapshot


def show_plan(file: Path, plan_table: Path | None, model: str, codec: str | None, *, as_json: bool) -> None:
    """Print the plan of a file: how many tokens each tier has, then a line for each token.

    Args:
        file: The `.kvz` file.
        plan_table: What `encode --plan-table` wrote with it, or None.
        model: Whose tokenizer says what the tokens are; without one they are numbers.
        codec: Its codec; None takes the one at hand that made it.
        as_json: Print one JSON object instead.
    """
    with about(file), waiting("inspect", "decoding"):
        encoded = load(file)
        partner = codec_of(encoded, codec)
        decoded = partner.decode(encoded)
        table = table_of(encoded, partner, decoded, _texts(decoded, model))
    if plan_table is not None:
        table = load_table(plan_table, table.tiers, table.bits)
    if as_json:
        sys.stdout.write(json.dumps({"tokens_by_tier": table.counts(), **table.to_json()}) + "\n")
        return
    print_table(("tier", "tokens"), [(tier, f"{count:,}") for tier, count in table.counts().items()], numbers=(1,))
    sys.stdout.write("\n")
    head, rows, numbers = table.grid()
    print_table(head, rows, numbers=numbers)


def _texts(decoded: KVSnapshot, model: str) -> Sequence[str]:
    """Return what each token says, nothing where the file's own tokenizer is not at hand."""
    from kvcompress.hf.loading import model_tokenizer
    from kvcompress.prune.anchors import text_of

    try:
        tokenizer = model_tokenizer(model)
    except KVCompressError:
        return ()
    known = decoded.origin.fingerprint.tokenizer
    if tokenizer is None or known is None:
        return ()
    from kvcompress.hf.fingerprint import tokenizer_digest

    return text_of(tokenizer, decoded.token_ids).pieces if tokenizer_digest(tokenizer) == known else ()
