"""Python code that comes with a model: detected before transformers loads it, refused unless trusted.

A directory names its own classes under `auto_map`. Where transformers has classes for it as well these are taken, with
a line that says so: nothing of the directory is run. Where it has none the model cannot be had without its code.
"""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

from transformers import AutoConfig
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING
from transformers.models.auto.tokenization_auto import tokenizer_class_from_name

from kvcompress.errors import CheckpointError
from kvcompress.hub.trust import OPTION

CONFIG, TOKENIZER = "config.json", "tokenizer_config.json"
AUTO_MODELS = ("AutoConfig", "AutoModelForCausalLM")
REMEDY = f"Read it, and pass {OPTION} (in Python trust_remote_code=True) if you trust it"

log = logging.getLogger(__name__)


def require_no_code(where: Path, trusted: bool) -> None:
    """Refuse a model directory that cannot be loaded without running code of its own.

    Args:
        where: The directory.
        trusted: Whether its code may be run; then nothing is refused.

    Raises:
        CheckpointError: It needs its code, which is not trusted.
    """
    if trusted:
        return
    config, tokenizer = _read(where / CONFIG), _read(where / TOKENIZER)
    kind = config.get("model_type")
    native = CONFIG_MAPPING[kind] if isinstance(kind, str) and kind in CONFIG_MAPPING else None
    if native is not None and not _is_of_transformers(native):  # that of a model which was trusted before
        native = None
    named = _auto_map(config)
    if any(name in named for name in AUTO_MODELS):
        if native is None or ("AutoModelForCausalLM" in named and native not in MODEL_FOR_CAUSAL_LM_MAPPING):
            raise _refused(where / CONFIG, "the model")
        log.warning("%s: the model's own code is not run, transformers' %r is taken", where.name, kind)
    if "AutoTokenizer" in _auto_map(tokenizer) or ("AutoTokenizer" in named and "tokenizer_class" not in tokenizer):
        maker = tokenizer.get("tokenizer_class")
        names = (maker, f"{maker}Fast") if isinstance(maker, str) else ()
        makers = [tokenizer_class_from_name(name) for name in names]
        if not any(one is not None and _is_of_transformers(one) for one in makers):
            raise _refused(where / TOKENIZER, "the tokenizer")


def register(config: Any) -> None:
    """Let the configuration of a trusted model be made again from what a file says of it, in this process."""
    if not _is_of_transformers(type(config)) and config.model_type not in CONFIG_MAPPING:
        AutoConfig.register(config.model_type, type(config))


def _is_of_transformers(found: type) -> bool:
    return found.__module__.startswith("transformers.")


def names_no_code(where: Path) -> bool:
    """Return whether no class of a model directory is its own."""
    return not (_auto_map(_read(where / CONFIG)) or _auto_map(_read(where / TOKENIZER)))


def _auto_map(data: dict[str, Any]) -> dict[str, Any]:
    """Return the classes that a file names as the directory's own; older tokenizers name a bare list."""
    found = data.get("auto_map")
    return found if isinstance(found, dict) else {"AutoTokenizer": found} if found else {}


def _refused(file: Path, what: str) -> CheckpointError:
    return CheckpointError(f"{what} comes with Python code of its own, which is not run", REMEDY, path=file)


def _read(file: Path) -> dict[str, Any]:
    """Return what a JSON file says; nothing where it says nothing that can be read, which others will refuse."""
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}
