"""The reference model as a Lightning module: loss, two optimisers, learning-rate schedule."""

from __future__ import annotations

import time
from typing import Any

import lightning
import torch
from torch import Tensor
from torch.nn import functional
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from kvcompress.hf.forward import run
from train.lm.curriculum import Recipe
from train.lm.muon import Muon


def build_model(recipe: Recipe, tokenizer: PreTrainedTokenizerFast) -> LlamaForCausalLM:
    """Return a freshly initialised float32 model of the recipe's geometry."""
    torch.manual_seed(recipe.seed)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=recipe.vocab_size,
            hidden_size=recipe.hidden_size,
            intermediate_size=recipe.intermediate_size,
            num_hidden_layers=recipe.layers,
            num_attention_heads=recipe.heads,
            num_key_value_heads=recipe.kv_heads,
            head_dim=recipe.head_dim,
            max_position_embeddings=recipe.context_tokens,
            rope_parameters={"rope_type": "default", "rope_theta": recipe.rope_theta},
            tie_word_embeddings=True,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )


class LanguageModel(lightning.LightningModule):
    """Next-token training; matrices by Muon, embedding and norms by AdamW."""

    def __init__(self, model: LlamaForCausalLM, recipe: Recipe, *, compile_model: bool = False) -> None:
        super().__init__()
        self.model, self.recipe = model, recipe
        self.automatic_optimization = False
        self._forward: Any = torch.compile(model) if compile_model else model
        self._since = (0, time.perf_counter())
        self._steps_done = 0

    def configure_optimizers(self) -> list[torch.optim.Optimizer]:
        """Split the parameters: matrices inside the layers, everything else."""
        inner = [p for p in self.model.model.layers.parameters() if p.ndim == 2]
        chosen = {id(p) for p in inner}
        outer = [p for p in self.model.parameters() if id(p) not in chosen]
        return [
            Muon(inner, lr=self.recipe.matrix_lr),
            torch.optim.AdamW(outer, lr=self.recipe.embedding_lr, betas=(0.9, 0.95), weight_decay=0.01),
        ]

    def loss_nats(self, batch: Tensor) -> Tensor:
        """Return the mean cross entropy of a batch [B, T + 1] in nats per token."""
        logits = run(self._forward, batch[:, :-1])
        return functional.cross_entropy(logits.flatten(0, 1), batch[:, 1:].flatten())

    def training_step(self, batch: Tensor, batch_idx: int) -> None:
        """Take one step of both optimisers."""
        loss = self.loss_nats(batch)
        optimizers: Any = self.optimizers()
        scale = self.recipe.learning_rate_scale(self._steps_done)
        for optimizer, rate in zip(optimizers, (self.recipe.matrix_lr, self.recipe.embedding_lr), strict=True):
            for group in optimizer.param_groups:
                group["lr"] = rate * scale
            optimizer.zero_grad()
        self.manual_backward(loss)
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        for optimizer in optimizers:
            optimizer.step()
        self._steps_done += 1
        self._report(float(loss.detach()), batch)

    def _report(self, loss_nats: float, batch: Tensor) -> None:
        tokens, start = self._since
        tokens += batch[:, 1:].numel()
        self.log("loss_nats", loss_nats, prog_bar=True)
        self.log("step", float(self._steps_done))
        self.log("tokens_per_second", tokens / (time.perf_counter() - start), prog_bar=True)
        self._since = (tokens, start) if self._steps_done % 50 else (0, time.perf_counter())

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep the data position."""
        checkpoint["steps_done"] = self._steps_done

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Go on at the data position."""
        self._steps_done = int(checkpoint["steps_done"])
