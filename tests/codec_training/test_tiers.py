"""Mixed tiers are what a plan may leave: ends whole, offsets in range, tokens of every fate."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from kvcompress_train.tiers import KEPT_FIRST, KEPT_LAST, mixed_tiers
from tinyvae.offsets import PRIOR_ONLY


@given(st.integers(1, 700), st.integers(0, 1000))
def test_both_ends_stay_and_offsets_only_make_coarser(tokens: int, seed: int) -> None:
    tiers = mixed_tiers(tokens, torch.Generator().manual_seed(seed))
    assert tiers.offsets.shape == tiers.kept.shape == (tokens,)
    for end in (slice(0, KEPT_FIRST), slice(max(0, tokens - KEPT_LAST), tokens)):
        assert bool(tiers.kept[end].all())
        assert not bool(tiers.offsets[end].any())
    assert PRIOR_ONLY <= int(tiers.offsets.min()) <= int(tiers.offsets.max()) <= 0


def test_every_fate_occurs() -> None:
    tiers = mixed_tiers(4000, torch.Generator().manual_seed(0))
    assert 0.05 < float((~tiers.kept).float().mean()) < 0.3
    assert 0.1 < float(((tiers.offsets == PRIOR_ONLY) & tiers.kept).float().mean()) < 0.4
    assert len(tiers.offsets.unique()) > 3
