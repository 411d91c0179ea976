"""GGUF files: dequantised once by transformers, and stored as an ordinary model directory beside the file.

```
SmolLM2.Q4_1.gguf ──► SmolLM2.Q4_1.gguf.dequantised/   config.json, float32 weights, tokenizer, kvcompress.json
```
Every load goes through that directory, so a model has one fingerprint however it was named. It appears whole or not at
all, and says which file it was made from: another file of the same name is converted again.
"""

from __future__ import annotations

import copy
import hashlib
import json
import logging
import mmap
import os
import shutil
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors import SafetensorError
from transformers import AutoModelForCausalLM, AutoTokenizer

from kvcompress.errors import CheckpointError, InputError, first_line
from kvcompress.format.atomic import open_regular
from kvcompress.format.atomic_directory import atomic_directory, locked_directory
from kvcompress.hf.gguf_header import require_sound
from kvcompress.hf.quiet import silence

MAGIC = b"GGUF"
TOKENIZER_KEY = b"tokenizer.ggml.model"
SUFFIX = ".dequantised"
NOTE = "kvcompress.json"
PACKAGES = ("gguf", "accelerate")
BLOCK_BYTES = 1 << 22
ONE_FILE = "1000GB"  # of weights: no index, as of the models that come with the package
FILE_KEYS = ("quantization_config", "_model_name_or_path")
REMEDY = "Download it again if it is damaged, else pass the model before quantisation, as a directory or Hub id"

log = logging.getLogger(__name__)


def dequantised(path: Path) -> Path:
    """Return the model directory of a GGUF file, made now if it was not made before.

    It lies beside the file, or in the user's cache directory where that place cannot be written to.

    Raises:
        CheckpointError: The file is no GGUF file, is damaged, holds what transformers cannot read, a package is
            missing, or there is no place for the directory.
        InputError: The file cannot be read.
    """
    digest = _digest(path)
    places = [path.with_name(path.name + SUFFIX), _cache_root() / digest[:16] / (path.name + SUFFIX)]
    for place in places:
        if _holds(place, digest):
            return place
    model, tokenizer = _read(path)
    reasons = []
    for place in places:
        try:
            _keep(place, model, tokenizer, digest)
            return place
        except (InputError, OSError, SafetensorError) as error:
            reasons.append(f"{place.parent}: {error.what if isinstance(error, InputError) else first_line(error)}")
    remedy = "Free some space, or set XDG_CACHE_HOME to a directory that can be written to"
    raise CheckpointError(f"no place for the dequantised weights ({'; '.join(reasons)})", remedy, path=path)


def gguf_name(directory: Path) -> str | None:
    """Return the name of the GGUF file, without its ending, that a directory was made from; None of any other."""
    if not directory.name.endswith(SUFFIX):
        return None
    return directory.name.removesuffix(SUFFIX).removesuffix(".gguf")


def _digest(path: Path) -> str:
    """Return the sha256 of a GGUF file."""
    digest = hashlib.sha256()
    with open_regular(path) as (file, _):
        block = file.read(BLOCK_BYTES)
        if not block.startswith(MAGIC):
            raise CheckpointError("this is no GGUF file", "Pass a GGUF file or a model directory", path=path)
        while block:
            digest.update(block)
            block = file.read(BLOCK_BYTES)
    return digest.hexdigest()


def _cache_root() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "kvcompress" / "dequantised"


def _holds(place: Path, digest: str) -> bool:
    """Return whether a directory was made from the file with this sha256 and all its files are still as long."""
    try:
        note = json.loads((place / NOTE).read_text(encoding="utf-8"))
        whole = all((place / name).stat().st_size == size for name, size in note["bytes"].items())
        return bool(note["sha256"] == digest and whole)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return False


def _read(path: Path) -> tuple[Any, Any]:
    """Return the dequantised model in float32, without anything that names the file, and its tokenizer or None."""
    absent = [name for name in PACKAGES if find_spec(name) is None]
    if absent:
        what = f"reading GGUF files needs {' and '.join(absent)}"
        raise CheckpointError(what, 'Run `pip install "kvcompress[gguf]"`', path=path)
    require_sound(path)
    log.warning("%s: dequantising the weights, once", path.name)
    try:
        with silence(streams=True):  # the conversion writes a progress bar of its own
            return _weights(path), _tokenizer(path)
    except CheckpointError:
        raise
    except Exception as error:  # a damaged file can fail in any of the readers below this call
        raise CheckpointError(f"the GGUF file cannot be used ({first_line(error)})", REMEDY, path=path) from error


def _weights(path: Path) -> Any:
    # The whole path is given: transformers looks for a bare name in the working directory first.
    options: dict[str, Any] = {"gguf_file": str(path.resolve()), "local_files_only": True, "trust_remote_code": False}
    settings = getattr(transformers, "GgufConfig", None)  # younger releases can leave weights packed
    if settings is not None:
        options["quantization_config"] = settings(dequantize=True)
    found: Any = AutoModelForCausalLM.from_pretrained(
        path.resolve().parent, dtype=torch.float32, output_loading_info=True, **options
    )
    loaded, report = found
    missing = sorted(str(name) for kind in ("missing_keys", "mismatched_keys") for name in report.get(kind) or ())
    if missing:  # transformers would fill them with random numbers
        what = f"{len(missing)} weights are missing or of the wrong shape, first {missing[0]}"
        raise CheckpointError(what, REMEDY, path=path)
    return _plain(loaded)


def _plain(loaded: Any) -> Any:
    """Return the same weights in a model of the same class that knows nothing of a file; no memory is copied."""
    config = copy.deepcopy(loaded.config)
    for name in FILE_KEYS:
        if hasattr(config, name):
            delattr(config, name)
    with torch.device("meta"):
        model = type(loaded)(config)
    model.load_state_dict(loaded.state_dict(), assign=True)
    model.tie_weights()
    model.generation_config = loaded.generation_config
    return model


def _tokenizer(path: Path) -> Any:
    """Return the tokenizer in the file, None where it holds none."""
    with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        if content.find(TOKENIZER_KEY) < 0:  # parsing the header for it would take seconds
            return None
    return AutoTokenizer.from_pretrained(
        path.resolve().parent, gguf_file=str(path.resolve()), local_files_only=True, trust_remote_code=False
    )


def _keep(place: Path, model: Any, tokenizer: Any, digest: str) -> None:
    """Write a directory that appears whole or not at all, in the place of one made from another file.

    Raises:
        InputError: It cannot be written, or something else has its name.
    """
    if place.exists() and not (place / NOTE).is_file():
        raise InputError("is something else", "Give it another name", path=place)
    with locked_directory(place, wait=True):
        if _holds(place, digest):  # another process was faster
            return
        with atomic_directory(place, force=True) as fresh:
            with silence():
                model.save_pretrained(fresh, max_shard_size=ONE_FILE)
                if tokenizer is not None:
                    tokenizer.save_pretrained(fresh)
            for file in fresh.glob("*.safetensors"):
                shutil.copymode(fresh / "config.json", file)  # safetensors lets only the owner read
            sizes = {file.name: file.stat().st_size for file in sorted(fresh.iterdir())}
            (fresh / NOTE).write_text(json.dumps({"sha256": digest, "bytes": sizes}, indent=1), encoding="utf-8")
