"""Copy or download a codec as a whole, after checking its digests."""

from __future__ import annotations

import shutil
from pathlib import Path

from kvcompress.codec.directory import codec_place, load_tinyvae, require_place_of_codec
from kvcompress.codec.facts import CodecFacts, read_facts
from kvcompress.errors import CheckpointError, about
from kvcompress.format.atomic_directory import atomic_directory
from kvcompress.hub.bundled import require_intact
from kvcompress.hub.hub_id import COPIED_FILES
from kvcompress.hub.places import codecs_home


def pull(name: str, output: Path | None = None, *, force: bool = False) -> CodecFacts:
    """Copy a codec, all that its directory holds for sessions with recomputed layers too.

    What is copied is loaded, and its digest over geometry, weights and tables compared with the one that its fit
    stated; weights that came with the project are compared with their index as well.

    Args:
        name: Of a codec, its directory, or its id on the Hub.
        output: Directory to make; of its own name among the user's codecs if not given.
        force: Whether an existing directory may be replaced.

    Returns:
        What the copy says of itself.

    Raises:
        CheckpointError: There is no such codec, or it is damaged.
        InputError: The directory exists, holds other things than a codec, or cannot be written.
    """
    source = codec_place(name)
    facts = read_facts(source)
    target = codecs_home() / _own_name(name, source) if output is None else output
    if force:
        require_place_of_codec(target)
    with atomic_directory(target, force=force) as fresh, about(source):
        for part in facts.parts:
            require_intact(part.directory)
            copy = fresh / part.directory.relative_to(source)
            copy.mkdir(exist_ok=True)
            for file in COPIED_FILES:
                if (part.directory / file).is_file():
                    shutil.copyfile(part.directory / file, copy / file)  # follows links, which a Hub cache is made of
            if part.fingerprint is None:
                raise CheckpointError("its fit stated no digest", "Write one with `kvcompress calibrate`")
            load_tinyvae(copy)
    return read_facts(target)


def _own_name(name: str, source: Path) -> str:
    """Return the last part of a name; a directory may be named "." and one in a Hub cache has that of a commit."""
    return source.resolve().name if Path(name).is_dir() else Path(name).name
