"""Train the reference model: tokenizer, curriculum, held-out bits per byte, checkpoint in transformers' layout."""

from __future__ import annotations

import json
import math
import random
from dataclasses import asdict
from pathlib import Path
from typing import Any, cast

import lightning
import torch
from lightning.pytorch.callbacks import Callback, ModelCheckpoint, TQDMProgressBar
from lightning.pytorch.loggers import CSVLogger
from torch.utils.data import DataLoader
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM, PreTrainedTokenizerFast

from kvcompress.hf.forward import run
from train.lm.corpus import Corpus, load_corpus
from train.lm.curriculum import Batches, Recipe
from train.lm.facts import invent_fact, state
from train.lm.history import write_history
from train.lm.module import LanguageModel, build_model
from train.lm.tokenizer import render, train_tokenizer


def make_tokenizer(corpus: Corpus, recipe: Recipe, directory: Path) -> PreTrainedTokenizerFast:
    """Load the run's tokenizer, or train it on a sample of the corpus and save it."""
    if (directory / "tokenizer.json").exists():
        return cast(PreTrainedTokenizerFast, AutoTokenizer.from_pretrained(directory, trust_remote_code=False))
    chats = corpus.dialogues[:6000] + corpus.problems[:3000]
    sample = [m["content"] for chat in chats for m in chat] + [text[50_000:150_000] for text in corpus.texts]
    rng = random.Random(recipe.seed)
    sample += [m["content"] for _ in range(8000) for m in state([invent_fact(rng)], rng)]
    tokenizer = train_tokenizer(sample, recipe.vocab_size, recipe.context_tokens)
    tokenizer.save_pretrained(directory)
    return tokenizer


@torch.inference_mode()
def bits_per_byte(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, corpus: Corpus, count: int = 40
) -> float:
    """Return held-out cross entropy in bits per UTF-8 byte over whole documents, at most 512 tokens of each."""
    nats, size_bytes = 0.0, 0
    texts = [render(chat) for chat in (corpus.dialogues + corpus.problems)[:count]]
    texts += [text[60_000:61_500] for text in corpus.texts[:8]]
    for text in texts:
        ids = torch.tensor([tokenizer(text, add_special_tokens=False)["input_ids"][:512]])
        logits = run(model, ids[:, :-1])
        nats += float(torch.nn.functional.cross_entropy(logits[0], ids[0, 1:], reduction="sum"))
        size_bytes += len(str(tokenizer.decode(ids[0], skip_special_tokens=True)).encode())
    return nats / math.log(2) / size_bytes


def save_model(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, directory: Path) -> None:
    """Write bfloat16 safetensors with tokenizer, for `AutoModelForCausalLM.from_pretrained`."""
    weights = {name: tensor.detach().to(torch.bfloat16) for name, tensor in model.state_dict().items()}
    half: Any = LlamaForCausalLM(model.config)
    half.to(torch.bfloat16)
    half.load_state_dict(weights)
    half.save_pretrained(directory)
    tokenizer.save_pretrained(directory)


def _checkpoints(directory: Path, every: int) -> ModelCheckpoint:
    # Without a version counter: a resumed run must overwrite the checkpoint that the next one resumes from.
    return ModelCheckpoint(
        dirpath=directory, every_n_train_steps=every, save_last=True, save_top_k=0, enable_version_counter=False
    )


class _Progress(Callback):
    """Print held-out bits per byte and save a usable model every `every` steps."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast, held_out: Corpus, out: Path, every: int) -> None:
        self.tokenizer, self.held_out, self.out, self.every = tokenizer, held_out, out, every

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        if pl_module._steps_done % self.every:
            return
        score = bits_per_byte(pl_module.model, self.tokenizer, self.held_out)
        metrics = {key: round(float(value), 4) for key, value in trainer.callback_metrics.items()}
        line = {"step": pl_module._steps_done, "held_out_bits_per_byte": round(score, 4), **metrics}
        print(json.dumps(line), flush=True)
        with (self.out / "progress.jsonl").open("a") as handle:
            handle.write(json.dumps(line) + "\n")
        save_model(pl_module.model, self.tokenizer, self.out)


def train_lm(
    paths: list[Path],
    out: Path,
    recipe: Recipe,
    *,
    threads: int,
    compile_model: bool = False,
    report_every: int = 100,
    stop_after: int | None = None,
    start_from: Path | None = None,
) -> None:
    """Train, or go on with a run that was cut off, and leave a loadable model in `out`.

    Args:
        paths: Corpus files.
        out: Directory of the model and of the run's state.
        recipe: What decides the weights.
        threads: Of torch.
        compile_model: See `torch.compile`.
        report_every: Steps between checkpoints.
        stop_after: Stop after so many steps of this call.
        start_from: A model whose weights and tokenizer a fresh run starts from, instead of chance.
    """
    torch.set_num_threads(threads)
    out.mkdir(parents=True, exist_ok=True)
    corpus, held_out = load_corpus(paths), load_corpus(paths, held_out=True)
    if start_from is not None and not (out / "tokenizer.json").exists():
        AutoTokenizer.from_pretrained(start_from, trust_remote_code=False).save_pretrained(out)
        write_history(start_from, out)
    tokenizer = make_tokenizer(corpus, recipe, out)
    (out / "recipe.json").write_text(json.dumps(asdict(recipe), indent=1) + "\n")
    last = out / "run" / "last.ckpt"
    first_step = int(torch.load(last, weights_only=False)["steps_done"]) if last.exists() else 0
    model = build_model(recipe, tokenizer)
    if start_from is not None:
        options: dict[str, Any] = {"dtype": torch.float32, "trust_remote_code": False}
        model.load_state_dict(AutoModelForCausalLM.from_pretrained(start_from, **options).state_dict())
    module = LanguageModel(model, recipe, compile_model=compile_model)
    loader = DataLoader(Batches(corpus, tokenizer, recipe, first_step), batch_size=None, shuffle=False)
    trainer = lightning.Trainer(
        accelerator="auto",
        max_epochs=-1,
        max_steps=2 * min(recipe.total_steps, first_step + (stop_after or recipe.total_steps)),  # two optimisers
        logger=CSVLogger(out / "run", name="log"),
        log_every_n_steps=10,
        callbacks=[
            _Progress(tokenizer, held_out, out, report_every),
            _checkpoints(out / "run", report_every),
            TQDMProgressBar(refresh_rate=10),
        ],
        enable_model_summary=False,
        num_sanity_val_steps=0,
    )
    trainer.fit(module, loader, ckpt_path=str(last) if last.exists() else None, weights_only=False)
    save_model(module.model.cpu(), tokenizer, out)
    print(json.dumps({"held_out_bits_per_byte": bits_per_byte(module.model, tokenizer, held_out)}))
