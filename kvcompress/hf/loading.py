"""load_model: load a model and its tokenizer by name, directory, file or Hub id, without running foreign code.

```
"reference-lm"   a bundled name          "model.gguf"   a GGUF file, dequantised once
"path/to/dir"    written by              "user/repo"    a model of the Hub, from its local cache
                 save_pretrained                        or else downloaded into it
```
All of them end as a directory, and there is one way to load a directory: weights come from safetensors alone, and code
of its own is run only where the user trusts it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from kvcompress.errors import CheckpointError, FormatError, InputError, first_line
from kvcompress.format.atomic import path_of
from kvcompress.format.origin import require_possible_config
from kvcompress.format.safetensors_file import tensors_in
from kvcompress.hf.dequantise import dequantised, gguf_name
from kvcompress.hf.download import from_hub, hub_name
from kvcompress.hf.quiet import silence
from kvcompress.hf.remote_code import register, require_no_code
from kvcompress.hub.bundled import DEFAULT_MODEL, find_checkpoint, is_bundled
from kvcompress.hub.hub_id import is_hub_id
from kvcompress.hub.trust import remote_code_is_trusted, trusting_remote_code
from kvcompress.snapshot import CACHE_DTYPES

REMEDY = (
    "Pass a directory written by save_pretrained, a GGUF file, "
    f"a Hub id such as HuggingFaceTB/SmolLM2-135M-Instruct, or {DEFAULT_MODEL}"
)
SHARD_INDEX = "model.safetensors.index.json"
LAYER_COUNTS = ("num_hidden_layers", "num_layers", "n_layer", "n_layers")
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "tokenizer.model", "vocab.json", "vocab.txt")


def load_model(
    name_or_path: str | Path, dtype: str = "float32", *, trust_remote_code: bool = False
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase | None]:
    """Load a causal language model in evaluation mode.

    Args:
        name_or_path: Bundled name, directory with `config.json`, weights and, if it has one, the tokenizer, Hub id, or
            GGUF file. The network is used only for a Hub id that is not in the local cache.
        dtype: float32, bfloat16 or float16.
        trust_remote_code: Run Python code that lies in the model's directory, where it needs it. Nobody is ever asked.

    Returns:
        The model on the CPU, and its tokenizer or None.

    Raises:
        CheckpointError: There is no such model, it is incomplete, damaged or of a kind that cannot be read, or it needs
            code of its own that is not trusted.
        InputError: The data type is unknown.
    """
    if not isinstance(dtype, str) or dtype not in CACHE_DTYPES:
        raise InputError(f"unknown dtype {dtype!r}", f"Use one of {', '.join(CACHE_DTYPES)}")
    trusted = trust_remote_code or remote_code_is_trusted()
    with trusting_remote_code(trusted):
        where = _with_config(name_or_path)
        with silence():
            model, tokenizer = _load_weights(where, dtype), load_tokenizer(where)
    if trusted:
        register(model.config)
    spoken = gguf_name(where) or hub_name(where)
    if spoken is not None:
        model.config.name_or_path = spoken
    return model, tokenizer


def model_directory(name_or_path: str | Path) -> Path:
    """Return the directory of a model, whatever names it; see `load_model`.

    Raises:
        CheckpointError: There is no such model, or its file or download cannot be used.
    """
    path, name = path_of(name_or_path, "a model"), str(name_or_path)
    try:
        is_directory, exists = path.is_dir(), path.exists()
    except OSError as error:
        raise CheckpointError(f"cannot be read ({first_line(error)})", REMEDY, path=path) from error
    if is_directory:
        return _inside(path)
    if exists:
        return dequantised(path)
    if is_bundled(name):
        return find_checkpoint(name)
    if is_hub_id(name):
        return from_hub(name)
    raise CheckpointError("no such directory, GGUF file or bundled model", REMEDY, path=path)


def model_config(name_or_path: str | Path) -> Any:
    """Return the configuration of a model's decoder, without reading its weights; names and errors as `load_model`."""
    where = _with_config(name_or_path)
    try:
        with silence():
            config: Any = AutoConfig.from_pretrained(
                where, local_files_only=True, trust_remote_code=remote_code_is_trusted()
            )
    except Exception as error:  # as in _load_weights
        raise CheckpointError(f"config.json cannot be used ({first_line(error)})", REMEDY, path=where) from error
    return config.get_text_config(decoder=True)


def model_tokenizer(name_or_path: str | Path) -> PreTrainedTokenizerBase | None:
    """Return a model's tokenizer, None where it has none; names and errors as `load_model`."""
    return load_tokenizer(model_directory(name_or_path))


def _with_config(name_or_path: str | Path) -> Path:
    """Return the directory of a model, raising `CheckpointError` unless it holds a configuration."""
    where = model_directory(name_or_path)
    if not (where / "config.json").is_file():
        files = ", ".join(sorted(file.name for file in where.glob("*.gguf"))[:3])
        raise CheckpointError("there is no config.json", f"Name one of {files}" if files else REMEDY, path=where)
    require_no_code(where, remote_code_is_trusted())
    _require_possible(where)
    return where


def _require_possible(where: Path) -> None:
    """Raise `CheckpointError` where the configuration's numbers would make lists without end in the library's classes.

    Also where the index of a sharded checkpoint names anything but safetensors files beside it: others are pickles.
    """
    config = _object(where / "config.json")
    try:
        require_possible_config(config)
    except FormatError as error:
        raise CheckpointError(error.what, REMEDY, path=where) from error
    _require_layers(where, config)
    index = where / SHARD_INDEX
    shards = _object(index).get("weight_map") if index.is_file() else {}
    if not isinstance(shards, Mapping):
        raise CheckpointError(f"{SHARD_INDEX} names no weights", REMEDY, path=where)
    for shard in shards.values():
        if not isinstance(shard, str) or Path(shard).name != shard or not shard.endswith(".safetensors"):
            what = f"{SHARD_INDEX} names {str(shard)[:80]!r}, which is no safetensors file beside it"
            raise CheckpointError(what, "Convert the weights with save_pretrained", path=where)


def _require_layers(where: Path, config: Mapping[str, Any]) -> None:
    """Raise `CheckpointError` where a configuration has more layers than its weights have tensors.

    The library would build all of them, some seconds for each thousand, before it found their weights missing.
    """
    parts = [config, *(part for part in config.values() if isinstance(part, Mapping))]
    stated = [(part[name], name) for part in parts for name in LAYER_COUNTS if type(part.get(name)) is int]
    layers, name = max(stated, default=(0, ""))
    held = tensors_in(where.glob("*.safetensors"))
    if held and layers > held:
        what = f"config.json says {name} = {layers}, and the weights are {held} tensors in all"
        raise CheckpointError(what, REMEDY, path=where)


def _object(file: Path) -> dict[str, Any]:
    """Return the JSON object of a file, in the library's own dialect, which takes infinity."""
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{file.name} cannot be used ({first_line(error)})", REMEDY, path=file.parent) from error
    if not isinstance(found, dict):
        raise CheckpointError(f"{file.name} is no JSON object", REMEDY, path=file.parent)
    return found


def _inside(path: Path) -> Path:
    """Return a directory itself, or the dequantised model of the one GGUF file in it if it holds no other model."""
    files = [] if (path / "config.json").exists() else list(path.glob("*.gguf"))
    return dequantised(files[0]) if len(files) == 1 else path


def _load_weights(where: Path, dtype: str) -> PreTrainedModel:
    if not any(where.glob("*.safetensors")):  # the other format is a pickle, which runs what it names
        others = any(where.glob("*.bin")) or any(where.glob("*.pt"))
        what = "the weights are not safetensors" if others else "there are no weights"
        raise CheckpointError(what, "Convert them with save_pretrained" if others else REMEDY, path=where)
    try:
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            where,
            dtype=CACHE_DTYPES[dtype],
            local_files_only=True,
            trust_remote_code=remote_code_is_trusted(),
            use_safetensors=True,
            output_loading_info=True,
        )
    except Exception as error:  # a damaged checkpoint can fail in any of the readers below this call
        raise CheckpointError(f"the model cannot be loaded ({first_line(error)})", REMEDY, path=where) from error
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
        CheckpointError: It is damaged, or needs code of its own that is not trusted.
    """
    if not any((where / name).is_file() for name in TOKENIZER_FILES):
        return None
    require_no_code(where, remote_code_is_trusted())
    try:
        with silence():
            tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
                where, local_files_only=True, trust_remote_code=remote_code_is_trusted()
            )
    except Exception as error:  # as above
        raise CheckpointError(f"the tokenizer cannot be loaded ({first_line(error)})", REMEDY, path=where) from error
    return tokenizer
