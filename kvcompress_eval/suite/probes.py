"""What a codec is asked beyond the true continuation: the greedy path, perturbed prompts, planted numbers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from kvcompress.format.container import from_bytes, to_bytes
from kvcompress.hf import restore
from kvcompress_eval.baselines.protocol import Baseline
from kvcompress_eval.suite.greedy import GreedyPath, follow, greedy_path
from kvcompress_eval.suite.planted import Planted, answers, planted
from kvcompress_eval.suite.prompts import Prompt, perturbed_prompts, prompt_figures
from kvcompress_eval.suite.subject import Subject

GREEDY_TOKENS = 48


@dataclass(frozen=True, slots=True, eq=False)
class Probes:
    """The questions of one session, with what the exact cache answers.

    Attributes:
        path: Its greedy path.
        prompts: Perturbed prompts.
        planted: The session again with numbers in it, or None.
    """

    path: GreedyPath
    prompts: tuple[Prompt, ...]
    planted: Planted | None


@torch.inference_mode()
def prepare_probes(model: Any, tokenizer: Any, subject: Subject, *, plant: bool) -> Probes:
    """Return the questions of a session.

    Args:
        model: The model.
        tokenizer: Its tokenizer, or None.
        subject: The session.
        plant: Whether numbers are to be planted.
    """
    tokens, opening = subject.snapshot.tokens, subject.continuation[:1].tolist()
    twin = planted(model, tokenizer, subject.snapshot.token_ids, subject.session.id) if plant else None
    path = greedy_path(model, subject.cache, tokens, opening, GREEDY_TOKENS)
    return Probes(path, perturbed_prompts(model, tokenizer, subject), twin)


@torch.inference_mode()
def probe_row(model: Any, baseline: Baseline, probes: Probes, cache: Any, tokens: int) -> dict[str, Any]:
    """Return what a decoded cache of `tokens` tokens answers, as part of a row."""
    parting = follow(model, cache, probes.path)
    return {
        "first_divergence_tokens": parting.divergence_tokens,
        "trajectory_tokens": len(probes.path.tokens),
        "divergence_margin_nats": parting.margin_nats,
        "perturbed": prompt_figures(model, cache, probes.prompts, tokens),
        "planted": [] if probes.planted is None else _planted(model, baseline, probes.planted),
    }


def _planted(model: Any, baseline: Baseline, twin: Planted) -> list[list[Any]]:
    """Return of each planted number its distance, and whether the decoded and the exact cache give it."""
    decoded = baseline.decode(from_bytes(to_bytes(baseline.encode(twin.snapshot))))
    given = answers(model, restore(decoded, model, copy=False), twin.asked, twin.snapshot.tokens)
    return [
        [one.distance_tokens, ours, exact] for one, ours, exact in zip(twin.asked, given, twin.recalled, strict=True)
    ]
