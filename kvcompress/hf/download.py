"""Models of the Hugging Face Hub: from the local cache, or downloaded into it."""

from __future__ import annotations

import logging
from pathlib import Path

from huggingface_hub import snapshot_download

from kvcompress.errors import CheckpointError, innermost
from kvcompress.hf.quiet import silence
from kvcompress.hf.remote_code import CONFIG, names_no_code
from kvcompress.hub.hub_id import CACHE_PART, CACHE_PREFIX
from kvcompress.hub.trust import remote_code_is_trusted

FILES = ["*.json", "*.safetensors", "*.model", "*.txt", "*.jinja"]
CODE = ["*.py"]  # only where it may be run
SUBDIRECTORIES = ["*/*"]  # other formats of the same weights

log = logging.getLogger(__name__)


def from_hub(name: str) -> Path:
    """Return the directory of a model in the local Hub cache. The network is used only where it is not there yet.

    Raises:
        CheckpointError: It is not in the cache and cannot be downloaded, or has no weights as safetensors.
    """
    try:
        directory = _snapshot(name, local_files_only=True)
        if not _whole(directory):
            log.warning("%s is not in the local cache: asking the Hub", name)
            directory = _snapshot(name, local_files_only=False)
    except Exception as error:  # network, rights, names: each of the layers below has errors of its own
        why = innermost(error)
        what = f"no directory, file, bundled name or model in the Hub cache, and the Hub did not give it ({why})"
        remedy = "Check the name and the network, log in with `hf auth login` if it is gated, or pass a directory"
        raise CheckpointError(what, remedy, path=name) from error
    if directory is None or not _whole(directory):
        raise CheckpointError("the model has no config.json or no safetensors", "Pass a converted directory", path=name)
    return directory


def hub_name(directory: Path) -> str | None:
    """Return USER/MODEL of a directory in the Hub cache, which is itself named by a hash; None of any other."""
    stored = directory.parent.parent.name
    if directory.parent.name != CACHE_PART or not stored.startswith(CACHE_PREFIX):
        return None
    return stored.removeprefix(CACHE_PREFIX).replace("--", "/")


def _snapshot(name: str, *, local_files_only: bool) -> Path | None:
    wanted = FILES + (CODE if remote_code_is_trusted() else [])
    with silence():
        try:
            found = snapshot_download(
                name, allow_patterns=wanted, ignore_patterns=SUBDIRECTORIES, local_files_only=local_files_only
            )
        except FileNotFoundError:
            if local_files_only:
                return None
            raise
    return Path(found)


def _whole(directory: Path | None) -> bool:
    """Return whether there are a configuration and weights, not just what some other program asked for."""
    if directory is None or not (directory / CONFIG).is_file() or not any(directory.glob("*.safetensors")):
        return False
    return not remote_code_is_trusted() or names_no_code(directory) or any(directory.glob("*.py"))
