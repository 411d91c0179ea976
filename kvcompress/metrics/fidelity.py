"""Fidelity: compare next-token distributions of the exact and of the decoded cache.

The measures are pure functions on logits [T, V]; the calls on a model are below them. Row t of all logits is the
prediction after token N + t has been fed, where the session covers tokens [0, N) and the continuation [N, N + T). The
set of measures follows llama.cpp's perplexity tool (`--kl-divergence`); what is added is the worth of the context,
without which a small KL says nothing: a model that ignores its context makes every codec look perfect.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor

from kvcompress.errors import InputError
from kvcompress.hf.forward import run
from kvcompress.hf.generation import feed, require_room
from kvcompress.hf.types import Cache, CausalLM

MIN_CONTINUATION_TOKENS = 64
SHORT_CONTEXT_TOKENS = 32
WINDOW_BATCH = 64
ROW_BATCH = 32  # rows turned to float64 at a time: a vocabulary of 150,000 then takes 40 MB instead of T times 1.2 MB


@dataclass(frozen=True, slots=True)
class Tier:
    """A promise about a resumed session; all three conditions must hold.

    Attributes:
        name: Name of the tier.
        max_kl_nats: Highest mean KL.
        max_context_lost: Highest mean KL as a fraction of what the context is worth.
        min_top1_agreement: Lowest fraction of positions with the same most likely token.
    """

    name: str
    max_kl_nats: float
    max_context_lost: float
    min_top1_agreement: float


TIERS = (Tier("transparent", 0.005, 0.01, 0.97), Tier("high", 0.02, 0.04, 0.94), Tier("usable", 0.08, 0.15, 0.88))


def tier_of(kl_nats: float, context_lost: float, top1_agreement: float) -> str | None:
    """Return the name of the best tier whose three conditions hold, or None."""
    for tier in TIERS:
        kept_odds = kl_nats <= tier.max_kl_nats and context_lost <= tier.max_context_lost
        if kept_odds and top1_agreement >= tier.min_top1_agreement:
            return tier.name
    return None


@dataclass(frozen=True, slots=True)
class FidelityReport:
    """What resuming from a decoded cache changes, over one continuation.

    Attributes:
        kl_nats: Mean over positions of KL(exact || decoded).
        kl_p50_nats: Median of the same.
        kl_p99_nats: 99th percentile.
        kl_max_nats: Maximum.
        context_worth_nats: Mean KL from the model with all its context to the model with the last 32 tokens of it.
        context_lost: `kl_nats / context_worth_nats`; infinite where something was lost of a context worth nothing.
        top1_agreement: Fraction of positions with the same most likely token.
        top5_agreement: Fraction of positions whose most likely token is among the decoded cache's first five.
        ppl_ratio: Perplexity from the decoded cache over perplexity from the exact one.
        rms_probability_change: Root mean square change of the probability of the true next token.
        continuation_tokens: Number of positions compared.
        tier: Name of the best tier reached, or None.
        per_token_kl_nats: [T] KL at each position; left out of `to_json`.
    """

    kl_nats: float
    kl_p50_nats: float
    kl_p99_nats: float
    kl_max_nats: float
    context_worth_nats: float
    context_lost: float
    top1_agreement: float
    top5_agreement: float
    ppl_ratio: float
    rms_probability_change: float
    continuation_tokens: int
    tier: str | None
    per_token_kl_nats: tuple[float, ...] = field(default=(), repr=False)

    def to_json(self) -> dict[str, Any]:
        """Return a JSON-able dictionary; JSON knows no infinity, so it becomes None."""
        data = asdict(self)
        del data["per_token_kl_nats"]
        unspeakable = [name for name, value in data.items() if isinstance(value, float) and not math.isfinite(value)]
        return data | dict.fromkeys(unspeakable)


def kl_nats(exact: Tensor, decoded: Tensor) -> Tensor:
    """Return KL(exact || decoded) in nats at each position: the KLD of llama.cpp's perplexity tool, unrounded.

    Args:
        exact: [T, V] float logits.
        decoded: [T, V] float logits.

    Returns:
        [T] float64, not negative.

    Raises:
        InputError: Shapes differ, or a logit is NaN or +infinity.
    """
    _require_pair(exact, decoded)
    rows = [torch.zeros(0, dtype=torch.float64, device=exact.device)]
    for true_log, decoded_log in zip(_log_probabilities(exact), _log_probabilities(decoded), strict=True):
        true = true_log.exp()
        # A token that cannot occur (-infinity) contributes nothing, whatever the other side says.
        terms = torch.where(true > 0, true * (true_log - decoded_log), 0.0)
        rows.append(terms.sum(-1).clamp_min(0.0))  # rounding may leave -1e-17
    return torch.cat(rows)


def top_agreement(exact: Tensor, decoded: Tensor, k: int) -> float:
    """Return the fraction of positions whose most likely token is among the `k` most likely of `decoded`.

    With k = 1 this is llama.cpp's "same top p". Among equal logits the smaller token id counts as more likely, as in
    argmax.

    Args:
        exact: [T, V] float logits.
        decoded: [T, V] float logits.
        k: How many of the decoded side's tokens to accept.
    """
    _require_pair(exact, decoded)
    top = exact.argmax(-1, keepdim=True)
    logit = decoded.gather(-1, top)
    before = torch.arange(decoded.shape[-1], device=decoded.device) < top
    rank = ((decoded > logit) | ((decoded == logit) & before)).sum(-1)
    return float((rank < k).double().mean())


def perplexity(logits: Tensor, targets: Tensor) -> float:
    """Return exp of the mean negative log-probability of `targets`.

    Args:
        logits: [T, V] float.
        targets: [T] int64, the token that follows each position.
    """
    return float((-_target_log_probabilities(logits, targets).mean()).exp())


def perplexity_ratio(exact: Tensor, decoded: Tensor, targets: Tensor) -> float:
    """Return `perplexity(decoded) / perplexity(exact)`, in logarithms so that neither can overflow."""
    change = _target_log_probabilities(exact, targets).mean() - _target_log_probabilities(decoded, targets).mean()
    return float(change.exp())


def rms_probability_change(exact: Tensor, decoded: Tensor, targets: Tensor) -> float:
    """Return the root mean square change of the true token's probability, the "RMS dp" of llama.cpp, in [0, 1].

    Args:
        exact: [T, V] float logits.
        decoded: [T, V] float logits.
        targets: [T] int64.
    """
    change = _target_log_probabilities(decoded, targets).exp() - _target_log_probabilities(exact, targets).exp()
    return float(change.square().mean().sqrt())


def first_divergence(tokens_a: Sequence[int], tokens_b: Sequence[int]) -> int | None:
    """Return the index of the first difference, None where both are equal; a mere prefix differs where it ends."""
    for index, (a, b) in enumerate(zip(tokens_a, tokens_b, strict=False)):
        if int(a) != int(b):
            return index
    return None if len(tokens_a) == len(tokens_b) else min(len(tokens_a), len(tokens_b))


def compare_logits(exact: Tensor, decoded: Tensor, short_context: Tensor, continuation: Tensor) -> FidelityReport:
    """Compute every measure from three sets of logits.

    Args:
        exact: [T, V] float, from the exact cache.
        decoded: [T, V] float, from the decoded cache.
        short_context: [T, V] float, from the last 32 tokens of context only.
        continuation: [T] int64, T >= 2; token t + 1 is what row t should have predicted.
    """
    per_token = kl_nats(exact, decoded).cpu()
    mean, worth = float(per_token.mean()), float(kl_nats(exact, short_context).mean())
    lost = mean / worth if worth > 0 else (math.inf if mean > 0 else 0.0)
    p50, p99 = torch.quantile(per_token, torch.tensor([0.50, 0.99], dtype=torch.float64)).tolist()
    top1 = top_agreement(exact, decoded, 1)
    targets = continuation[1:].to(exact.device)
    return FidelityReport(
        kl_nats=mean,
        kl_p50_nats=p50,
        kl_p99_nats=p99,
        kl_max_nats=float(per_token.max()),
        context_worth_nats=worth,
        context_lost=lost,
        top1_agreement=top1,
        top5_agreement=top_agreement(exact, decoded, 5),
        ppl_ratio=perplexity_ratio(exact[:-1], decoded[:-1], targets),
        rms_probability_change=rms_probability_change(exact[:-1], decoded[:-1], targets),
        continuation_tokens=int(continuation.numel()),
        tier=tier_of(mean, lost, top1),
        per_token_kl_nats=tuple(per_token.tolist()),
    )


def continuation_logits(model: CausalLM, cache: Cache, input_ids: Tensor, first_position: int) -> Tensor:
    """Return the predictions after each continuation token, teacher-forced; the caller's cache is left as it was.

    Args:
        model: A causal language model in evaluation mode.
        cache: A cache of the session, pruned or not.
        input_ids: [T] int64, the continuation.
        first_position: N, the position of `input_ids[0]`.

    Returns:
        [T, V] float.
    """
    return feed(model, copy.deepcopy(cache), input_ids, first_position)


@torch.no_grad()
def short_context_logits(
    model: CausalLM, token_ids: Tensor, continuation: Tensor, window_tokens: int = SHORT_CONTEXT_TOKENS, every: int = 1
) -> Tensor:
    """Return the predictions of the same positions by the model that sees only the last `window_tokens` tokens.

    Each position has its own window, at its original positions. Positions with fewer tokens before them use what there
    is: their windows are prefixes of one sequence, so one causal pass serves them all.

    Args:
        model: A causal language model in evaluation mode.
        token_ids: [N] int64, the session.
        continuation: [T] int64.
        window_tokens: Tokens in sight, the one just fed included.
        every: Positions 0, `every`, 2 `every` .. of the continuation only; each takes a pass of its own.

    Returns:
        [T, V] float, or [ceil(T / every), V].
    """
    tokens = torch.cat([token_ids, continuation]).to(model.device)
    first_full = max(int(token_ids.numel()), window_tokens - 1)  # from here on a whole window fits
    rows = []
    if first_full > token_ids.numel():
        head = tokens[: min(first_full, tokens.numel())]
        rows.append(_plain_forward(model, head[None], torch.arange(head.numel())[None])[0, token_ids.numel() :: every])
    if first_full < tokens.numel():
        start = first_full - window_tokens + 1 + (int(token_ids.numel()) - first_full) % every
        windows = tokens.unfold(0, window_tokens, 1)[start::every]
        positions = torch.arange(tokens.numel()).unfold(0, window_tokens, 1)[start::every]
        for ids, at in zip(torch.split(windows, WINDOW_BATCH), torch.split(positions, WINDOW_BATCH), strict=True):
            rows.append(_plain_forward(model, ids, at, last_only=True)[:, -1])
    return torch.cat(rows)


def context_worth_nats(model: CausalLM, token_ids: Tensor, continuation: Tensor) -> float:
    """Return what the context beyond the last 32 tokens is worth: mean KL(whole context || short context) in nats.

    Args:
        model: A causal language model in evaluation mode.
        token_ids: [N] int64, the session.
        continuation: [T] int64.
    """
    _require_continuation(model, token_ids, continuation, min_tokens=1)
    tokens = torch.cat([token_ids, continuation]).to(model.device)
    with torch.no_grad():
        whole = _plain_forward(model, tokens[None], torch.arange(tokens.numel())[None])[0, token_ids.numel() :]
    return float(kl_nats(whole, short_context_logits(model, token_ids, continuation)).mean())


def fidelity(
    model: CausalLM, exact_cache: Any, decoded_cache: Any, token_ids: Tensor, continuation: Tensor
) -> FidelityReport:
    """Resume from both caches over the same continuation and compare.

    Args:
        model: A causal language model in evaluation mode.
        exact_cache: The cache as captured; not changed.
        decoded_cache: The cache as decoded, pruned or not; not changed.
        token_ids: [N] int64, the session that both caches stand for.
        continuation: [T] int64, T >= 64, what really followed.

    Raises:
        InputError: Too short a continuation, more tokens than the model's context, or NaN in the logits.
    """
    _require_continuation(model, token_ids, continuation, min_tokens=MIN_CONTINUATION_TOKENS)
    first_position = int(token_ids.numel())
    exact = continuation_logits(model, exact_cache, continuation, first_position)
    decoded = continuation_logits(model, decoded_cache, continuation, first_position)
    return compare_logits(exact, decoded, short_context_logits(model, token_ids, continuation), continuation)


def _plain_forward(model: CausalLM, ids: Tensor, positions: Tensor, *, last_only: bool = False) -> Tensor:
    # The mask is explicit because transformers, given none, looks at the positions for several packed sequences.
    if model.training:
        raise InputError("the model is in training mode, where dropout changes every prediction", "Call model.eval()")
    mask = torch.ones_like(ids)
    return run(model, ids, position_ids=positions, attention_mask=mask, last_only=last_only)


def _require_continuation(model: CausalLM, token_ids: Tensor, continuation: Tensor, *, min_tokens: int) -> None:
    if token_ids.ndim != 1 or continuation.ndim != 1:
        raise InputError("the session and its continuation must be sequences of token ids, without a batch axis")
    if continuation.numel() < min_tokens:
        remedy = "Give a longer continuation or record less of the session"
        raise InputError(f"a continuation of {continuation.numel()} tokens is shorter than {min_tokens}", remedy)
    require_room(model, token_ids.numel() + continuation.numel(), "Give a shorter session or continuation")


def _require_pair(exact: Tensor, decoded: Tensor) -> None:
    if exact.ndim != 2 or exact.shape != decoded.shape:
        raise InputError(f"logits {tuple(exact.shape)} and {tuple(decoded.shape)} are not both [tokens, vocabulary]")
    _require_numbers(exact)
    _require_numbers(decoded)


def _require_numbers(logits: Tensor) -> None:
    if bool((torch.isnan(logits) | (logits == math.inf)).any()):
        remedy = "A model that overflows in this dtype may need float32 or bfloat16"
        raise InputError("logits contain NaN or infinity", remedy)


def _log_probabilities(logits: Tensor) -> Iterator[Tensor]:
    """Yield float64 log-probabilities, a few rows at a time."""
    return (torch.log_softmax(rows.double(), dim=-1) for rows in torch.split(logits, ROW_BATCH))


def _target_log_probabilities(logits: Tensor, targets: Tensor) -> Tensor:
    _require_numbers(logits)
    if logits.ndim != 2 or tuple(targets.shape) != (logits.shape[0],):
        raise InputError(f"targets of shape {tuple(targets.shape)} do not fit logits {tuple(logits.shape)}")
    rows = zip(_log_probabilities(logits), torch.split(targets.to(logits.device), ROW_BATCH), strict=True)
    return torch.cat([log.gather(-1, target[:, None])[:, 0] for log, target in rows])
