"""What two conditions made of the same thing, compared; and what follows from all comparisons."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from kvcompress.errors import FormatError
from kvcompress.metrics.fidelity import first_divergence, kl_nats
from kvcompress.snapshot import KVSnapshot

Row = dict[str, Any]


def cache_difference(reference: KVSnapshot, other: KVSnapshot) -> dict[str, float]:
    """Return the largest difference of two caches: as it is, and relative to the largest value of its tensor.

    Raises:
        FormatError: They hold other positions or shapes, which one file cannot give.
    """
    largest = relative = 0.0
    for index, (mine, theirs) in enumerate(zip(reference.layers, other.layers, strict=True)):
        for one, two in ((mine.keys, theirs.keys), (mine.values, theirs.values)):
            if one.shape != two.shape or not torch.equal(mine.positions, theirs.positions):
                raise FormatError(f"layer {index} was decoded to other positions or another shape")
            if one.numel():
                difference = float((one.double() - two.double()).abs().max())
                scale = float(one.double().abs().max())
                largest = max(largest, difference)
                relative = max(relative, difference / scale if scale else difference)
    return {"largest_difference": largest, "largest_relative_difference": relative}


def resumption_difference(
    logits: Tensor, other_logits: Tensor, tokens: Sequence[int], other_tokens: Sequence[int]
) -> dict[str, float | int]:
    """Compare two continuations of one cache.

    Args:
        logits: [T, V] float of the reference.
        other_logits: [T, V] float.
        tokens: What the reference says next, greedily.
        other_tokens: What the other says next.
    """
    per_token = kl_nats(logits, other_logits)
    same = first_divergence(tokens, other_tokens)
    return {
        "kl_mean_nats": float(per_token.mean()),
        "kl_max_nats": float(per_token.max()),
        "greedy_agreement_tokens": len(tokens) if same is None else same,
    }


def explain_symbols(
    symbols: Sequence[Tensor], other: Sequence[Tensor], outside: Sequence[Tensor], allowed_steps: float
) -> dict[str, Any]:
    """Say whether rounding alone explains that two encoders made different symbols of one snapshot.

    It does where each latent lies, to the accuracy of float arithmetic, in the bin of the other's symbol.

    Args:
        symbols: [T, r] int32 of each group, by the reference.
        other: [T, r] int32 of each group.
        outside: [T, r] float32 of each group: steps by which latents lie outside the bins of the other's symbols.
        allowed_steps: What rounding explains.
    """
    flat, flat_other = torch.cat([part.flatten() for part in symbols]), torch.cat([part.flatten() for part in other])
    differing = int((flat != flat_other).sum())
    farthest = max((float(part.max()) for part in outside if part.numel()), default=0.0)
    return {
        "symbols": flat.numel(),
        "differing": differing,
        "largest_change": int((flat - flat_other).abs().max()) if differing else 0,
        "farthest_outside_steps": farthest,
        "allowed_steps": allowed_steps,
        "explained": bool(differing) and farthest <= allowed_steps,
    }


def judge(result: Row) -> Row:
    """Return the verdict on a whole result: the law holds where no symbol changed between encoder and decoder.

    Refused cells prove nothing and break nothing; they are counted. Files of one snapshot may differ between
    conditions where rounding explains it.
    """
    pairs = result["pairs"]
    compared = [row for row in pairs if row["symbols_identical"] is not None]
    broken = [f"{row['encoded_in']} -> {row['decoded_in']}" for row in compared if not row["symbols_identical"]]
    golden = [row["condition"] for row in result["golden"]["rows"] if row["symbols_identical"] is False]
    unexplained = [
        row["condition"]
        for row in result["encodings"]
        if row["same_snapshot_same_bytes"] is False and not row["explanation"]["explained"]
    ]
    return {
        "holds": bool(compared) and not (broken or golden or unexplained),
        "pairs_compared": len(compared),
        "pairs_refused": sum(row["refused"] is not None for row in pairs),
        "symbols_differ": broken,
        "golden_symbols_differ": golden,
        "same_snapshot_unexplained": unexplained,
    }
