"""Repositories of the Hugging Face Hub by id, and codecs in them; does not import transformers."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from kvcompress.errors import CheckpointError, innermost

HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}", re.ASCII)
CACHE_PREFIX, CACHE_PART = "models--", "snapshots"
CODEC_FILES = ("config.json", "model.safetensors", "README.md")
SCORERS_FILE = "scorers.json"
"""What scorers learnt of a codec's model: it may lie beside the codec's files and is no part of its fingerprint."""

COPIED_FILES = (*CODEC_FILES, SCORERS_FILE)

log = logging.getLogger(__name__)


def is_hub_id(name: str) -> bool:
    """Return whether a name could be one of a repository on the Hub: USER/REPO."""
    return HUB_ID.fullmatch(name) is not None


def codec_from_hub(name: str) -> Path:
    """Return the directory of a codec in the local Hub cache. The network is used only where it is not there yet.

    Raises:
        CheckpointError: It is not in the cache and cannot be downloaded, or the repository holds no codec.
    """
    try:
        directory = _snapshot(name, local_files_only=True)
        if not _is_whole(directory):
            log.info("%s is not in the local cache: asking the Hub", name)
            directory = _snapshot(name, local_files_only=False)
    except Exception as error:  # network, rights, names: each of the layers below has errors of its own
        what = f"no codec has this name or lies in the Hub cache, and the Hub did not give it ({innermost(error)})"
        remedy = "Check the name and the network; `kvcompress codecs list` names those at hand"
        raise CheckpointError(what, remedy, path=name) from error
    if directory is None or not _is_whole(directory):
        raise CheckpointError("the repository holds no codec", "Name one that `kvcompress fit` made", path=name)
    return directory


def cached_codecs() -> Iterator[tuple[str, Path]]:
    """Yield id and directory of each codec in the local Hub cache, of the revision that was last asked for."""
    from huggingface_hub import constants

    cache = Path(constants.HF_HUB_CACHE)
    for stored in sorted(cache.glob(f"{CACHE_PREFIX}*")):
        commit = stored / "refs" / "main"
        directory = stored / CACHE_PART / commit.read_text().strip() if commit.is_file() else None
        if _is_whole(directory) and directory is not None:
            yield stored.name.removeprefix(CACHE_PREFIX).replace("--", "/"), directory


def _snapshot(name: str, *, local_files_only: bool) -> Path | None:
    from huggingface_hub import snapshot_download

    patterns = [*COPIED_FILES, *(f"recompute-*/{file}" for file in COPIED_FILES)]
    with _no_bars():
        try:
            return Path(snapshot_download(name, allow_patterns=patterns, local_files_only=local_files_only))
        except FileNotFoundError:
            if local_files_only:
                return None
            raise


def _is_whole(directory: Path | None) -> bool:
    """Return whether there are codecs, each with its weights, and not just what another program asked for."""
    from kvcompress.hub.bundled import codec_parts

    if directory is None or not directory.is_dir():
        return False
    try:
        parts = codec_parts(directory)
    except CheckpointError:
        return False
    return bool(parts) and all((part / "model.safetensors").is_file() for part in parts.values())


@contextmanager
def _no_bars() -> Iterator[None]:
    """Keep the Hub's progress bars off standard error, where one line is expected."""
    from huggingface_hub.utils.tqdm import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars

    before = are_progress_bars_disabled()
    disable_progress_bars()
    try:
        yield
    finally:
        if not before:
            enable_progress_bars()
