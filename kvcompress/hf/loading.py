"""load_model: a model and its tokenizer from a local directory, offline and silent."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import logging as _logging

from kvcompress.errors import CheckpointError, InputError
from kvcompress.snapshot import CACHE_DTYPES

logging: Any = _logging  # carries no type annotations
REMEDY = "Pass a directory written by save_pretrained"
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "tokenizer.model", "vocab.json", "vocab.txt")


def load_model(path: str | Path, dtype: str = "float32") -> tuple[PreTrainedModel, PreTrainedTokenizerBase | None]:
    """Load a causal language model in evaluation mode.

    Args:
        path: Directory with `config.json`, weights and, if it has one, the tokenizer. No network is used.
        dtype: float32, bfloat16 or float16.

    Returns:
        The model on the CPU, and its tokenizer or None.

    Raises:
        CheckpointError: The directory is missing, incomplete or damaged.
        InputError: The data type is unknown.
    """
    where = Path(path)
    if dtype not in CACHE_DTYPES:
        raise InputError(f"unknown dtype {dtype!r}", f"Use one of {', '.join(CACHE_DTYPES)}")
    if not where.is_dir():
        raise CheckpointError("no such directory", REMEDY, path=where)
    if not (where / "config.json").is_file():
        raise CheckpointError("there is no config.json", REMEDY, path=where)
    with _silence():
        return _load_weights(where, dtype), load_tokenizer(where)


def _load_weights(where: Path, dtype: str) -> PreTrainedModel:
    try:
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            where, dtype=CACHE_DTYPES[dtype], local_files_only=True, output_loading_info=True
        )
    except Exception as error:  # a damaged checkpoint can fail in any of the readers below this call
        raise CheckpointError(f"the model cannot be loaded ({_first_line(error)})", REMEDY, path=where) from error
    model, report = loaded
    absent = sorted(str(name) for kind in ("missing_keys", "mismatched_keys") for name in report.get(kind) or ())
    if absent:  # transformers would fill them with random numbers
        what = f"{len(absent)} weights are missing or of the wrong shape, first {absent[0]}"
        raise CheckpointError(what, REMEDY, path=where)
    model.eval()
    return cast(PreTrainedModel, model)


def load_tokenizer(where: Path) -> PreTrainedTokenizerBase | None:
    """Load the tokenizer of a model directory, None where it has none.

    Raises:
        CheckpointError: It is damaged.
    """
    if not any((where / name).is_file() for name in TOKENIZER_FILES):
        return None
    try:
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(where, local_files_only=True)
    except Exception as error:  # as above
        raise CheckpointError(f"the tokenizer cannot be loaded ({_first_line(error)})", REMEDY, path=where) from error
    return tokenizer


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0].rstrip('.')}"


@contextmanager
def _silence() -> Iterator[None]:
    """Keep transformers from writing progress bars and warnings, and leave its settings as they were."""
    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()
