"""Position 0, which attends to no other token: detect whether it is an attention sink, and fit for it.

Its cache is a function of the token alone, so it can cost next to nothing, and much of the attention goes there, so an
error in it costs more than elsewhere (Xiao et al., arXiv 2309.17453; Sun et al., 2402.17762). Whether it is so is
measured: by the share of the squared gradients that falls on it.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from tinyvae import TinyVAE
from tinyvae.offsets import LARGEST_OFFSET
from tinyvae.prior import TokenPrior
from tinyvae.quantize import LEVELS_PER_OCTAVE

PROPORTION = 16.0
"""Place 0 is a sink where it carries so many times its share of the sensitivity."""

SHRINKAGE = 8.0
"""Sessions for each further opening token, against which their own mean is weighed beside that of all tokens."""

RIDGE = 1e-2


def is_sink(shares: Tensor, tokens: float) -> bool:
    """Tell whether place 0 carries a share of the sensitivity out of all proportion.

    Args:
        shares: [P] mean share of each of the first places.
        tokens: Mean length of the sessions.
    """
    return bool(len(shares)) and float(shares[0]) * max(tokens, 1.0) > PROPORTION


def fit_opening(prior: TokenPrior, token_ids: Tensor, channels: Tensor, openings: Tensor) -> None:
    """Fit what a prior says of place 0: how the token there matters, and the constant that is left.

    Where all sessions open with the same token, the constant is exact for it.

    Args:
        prior: Its table, units and bias are fitted.
        token_ids: [n] int64, ascending, tokens seen alone.
        channels: [n, C] float32, what each has where it stands first.
        openings: Token ids that open the sessions, all of them among `token_ids`.
    """
    rows, wide, units = prior.table.rows(token_ids).double(), channels.double(), prior.outward.dense.double()
    centred, target = rows - rows.mean(0), wide - wide.mean(0)
    gram = centred.T @ centred
    floor = RIDGE * gram.diagonal().mean().clamp(min=1e-12) * torch.eye(len(gram), dtype=gram.dtype)
    mapped = torch.linalg.solve(gram + floor, centred.T @ target)
    mixing = torch.linalg.lstsq(units.T, mapped.T).solution.T.float()
    prior.store_first(mixing, prior.bias)
    assert prior.first is not None
    left = wide - rows @ prior.first.dense.double() @ units
    seen = torch.searchsorted(token_ids, openings)
    trust = len(openings) / (len(openings) + SHRINKAGE * (int((openings.bincount() > 0).sum()) - 1))
    constant = trust * left[seen].mean(0) + (1 - trust) * left.mean(0)
    prior.store_first(mixing, constant.float())


def fit_first_place(vae: TinyVAE, relative_importance: Sequence[float], exponent: float) -> None:
    """Set how much finer place 0 is, from what an error there costs in units of other places' mean."""
    assert vae.first_place is not None
    if not relative_importance:
        return
    worth = max(1e-6, sum(relative_importance) / len(relative_importance))
    levels = LEVELS_PER_OCTAVE * 0.5 * exponent * float(torch.tensor(worth, dtype=torch.float32).log2())
    vae.first_place[0] = round(min(max(levels, 0.0), LARGEST_OFFSET))
