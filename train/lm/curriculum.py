"""Which sequences are seen when: short ones first, then longer ones, each batch a function of its number."""

from __future__ import annotations

import random
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.utils.data import Dataset
from transformers import PreTrainedTokenizerFast

from train.lm.corpus import Corpus
from train.lm.documents import document


@dataclass(frozen=True, slots=True)
class Phase:
    """A stretch of training with one sequence length."""

    steps: int
    length_tokens: int
    batch: int


@dataclass(frozen=True, slots=True)
class Recipe:
    """Everything that decides the trained weights, apart from the corpus."""

    phases: tuple[Phase, ...]
    vocab_size: int = 4096
    hidden_size: int = 256
    intermediate_size: int = 512
    layers: int = 6
    heads: int = 8
    kv_heads: int = 4
    head_dim: int = 32
    context_tokens: int = 2048
    rope_theta: float = 10000.0
    matrix_lr: float = 3e-3
    embedding_lr: float = 3e-3
    warmup_steps: int = 100
    decay_fraction: float = 0.45
    seed: int = 0

    @property
    def total_steps(self) -> int:
        """Optimiser steps of all phases."""
        return sum(phase.steps for phase in self.phases)

    @property
    def total_tokens(self) -> int:
        """Tokens seen over all phases."""
        return sum(p.steps * p.length_tokens * p.batch for p in self.phases)

    def phase_at(self, step: int) -> Phase:
        """Return the phase that optimiser step `step` belongs to."""
        for phase in self.phases:
            step -= phase.steps
            if step < 0:
                return phase
        return self.phases[-1]

    def learning_rate_scale(self, step: int) -> float:
        """Return warm-up, plateau, then a linear decay to a fiftieth."""
        decay_steps = self.decay_fraction * self.total_steps
        left = (self.total_steps - step) / decay_steps
        return min((step + 1) / self.warmup_steps, max(0.02, min(1.0, left)))


def pack(corpus: Corpus, tokenizer: PreTrainedTokenizerFast, rng: random.Random, length_tokens: int) -> list[int]:
    """Concatenate fresh documents and cut at `length_tokens + 1` (inputs and shifted targets)."""
    ids: list[int] = []
    while len(ids) < length_tokens + 1:
        ids += tokenizer(document(corpus, rng, length_tokens), add_special_tokens=False)["input_ids"]
    return ids[: length_tokens + 1]


class Batches(Dataset[Tensor]):
    """Map-style data set of whole batches: item `step` is [batch, length + 1] int64."""

    def __init__(self, corpus: Corpus, tokenizer: PreTrainedTokenizerFast, recipe: Recipe, first_step: int) -> None:
        self.corpus, self.tokenizer, self.recipe, self.first_step = corpus, tokenizer, recipe, first_step

    def __len__(self) -> int:
        """Count the steps that are left."""
        return self.recipe.total_steps - self.first_step

    def __getitem__(self, index: int) -> Tensor:
        """Build the batch of step `first_step + index`."""
        step = self.first_step + index
        phase = self.recipe.phase_at(step)
        rng = random.Random(f"{self.recipe.seed}:{step}")
        rows = [pack(self.corpus, self.tokenizer, rng, phase.length_tokens) for _ in range(phase.batch)]
        return torch.tensor(rows, dtype=torch.int64)
