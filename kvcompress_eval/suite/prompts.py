"""Perturbed prompts: what comes next is mistyped, in odd case or in other words, and the model has to cope.

A codec may keep what a session makes likely and lose what only shows when something unlikely is said. So the first
words that really followed are perturbed by rule (`kvcompress_eval.suite.perturb`), fed after the session, and the true
words after them behind that. Exact and decoded cache get the same tokens; their predictions are compared at each of
them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from kvcompress.data.sessions import text_ids
from kvcompress.hf.generation import context_limit
from kvcompress.metrics.fidelity import continuation_logits
from kvcompress_eval.suite.damage import damage
from kvcompress_eval.suite.perturb import PERTURBATIONS
from kvcompress_eval.suite.subject import Subject, context_worth, log_probabilities

PROMPT_TOKENS, AFTER_TOKENS = 32, 32
"""Tokens whose text is perturbed, and true tokens fed behind them."""


@dataclass(frozen=True, slots=True, eq=False)
class Prompt:
    """A perturbed prompt of one session.

    Attributes:
        rule: Its name.
        ids: [T] int64, the prompt and what follows it.
        exact: [T, V] float32 log-probabilities from the exact cache.
        worth_nats: What the context before it is worth over it.
    """

    rule: str
    ids: Tensor
    exact: Tensor
    worth_nats: float


@torch.inference_mode()
def perturbed_prompts(model: Any, tokenizer: Any, subject: Subject) -> tuple[Prompt, ...]:
    """Return a prompt for each rule; none without a tokenizer, or where the model's context has no room for one."""
    if tokenizer is None:
        return ()
    text = tokenizer.decode(subject.continuation[:PROMPT_TOKENS].tolist())
    after = subject.continuation[PROMPT_TOKENS : PROMPT_TOKENS + AFTER_TOKENS]
    tokens, limit, found = subject.snapshot.tokens, context_limit(model), list[Prompt]()
    for rule, change in PERTURBATIONS.items():
        ids = torch.cat([torch.tensor(text_ids(tokenizer, change(text)), dtype=torch.int64), after])
        if limit is not None and tokens + len(ids) > limit:
            return ()
        exact = log_probabilities(model, subject.cache, ids, tokens)
        worth = context_worth(model, subject.snapshot.token_ids, ids, exact, subject.worth_stride)
        found.append(Prompt(rule, ids, exact, float(worth.mean())))
    return tuple(found)


@torch.inference_mode()
def prompt_figures(model: Any, cache: Any, prompts: tuple[Prompt, ...], tokens: int) -> dict[str, dict[str, float]]:
    """Return for each rule the mean KL over the prompt from a decoded cache, beside what the context is worth there.

    Args:
        model: The model.
        cache: The cache as decoded; left as it was.
        prompts: Of the session.
        tokens: That the cache stands for.
    """
    found = {}
    for prompt in prompts:
        moved = damage(prompt.exact, continuation_logits(model, cache, prompt.ids, tokens))
        found[prompt.rule] = {"kl_nats": float(moved.kl_nats.mean()), "worth_nats": prompt.worth_nats}
    return found
