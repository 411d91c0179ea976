"""Load codecs by name or from a directory: `config.json` and `model.safetensors`, with every tensor checked."""

from __future__ import annotations

import io
from contextlib import redirect_stdout
from pathlib import Path

from kvcompress.codec.sound import REMEDY, require_buildable, require_finite, require_tables
from kvcompress.codec.tinyvae import TinyVAECodec
from kvcompress.errors import CheckpointError, InputError, about, first_line
from kvcompress.format.atomic import path_of
from kvcompress.format.atomic_directory import recover, require_directory
from kvcompress.format.default_device import on_cpu
from kvcompress.hub.bundled import DEFAULT_CODEC, codec_parts, recompute_name, require_intact
from kvcompress.hub.hub_id import SCORERS_FILE
from kvcompress.hub.places import find_codec
from tinyvae.bitstream import bitstream_marker


@on_cpu
def load_codec(name_or_path: str | Path = DEFAULT_CODEC, recompute_layers: int | None = None) -> TinyVAECodec:
    """Load a codec by name, directory or id on the Hub; `kvcompress codecs list` names those at hand.

    Args:
        name_or_path: Of the codec that codes all layers.
        recompute_layers: m. With m > 0 the codec in its subdirectory `recompute-<m>`, which leaves the first m + 1
            layers to the model. None: whatever the directory holds.

    Raises:
        CheckpointError: There is no such codec, or it is damaged.
        InputError: m is negative.
    """
    directory = codec_place(name_or_path)
    if recompute_layers is None:
        return load_tinyvae(directory)
    if recompute_layers < 0:
        raise InputError(f"{recompute_layers} layers cannot be recomputed", "Choose 0 or more")
    parts = codec_parts(directory)
    if recompute_layers not in parts:
        what = f"no codec here that recomputes {recompute_layers} layers"
        remedy = f"It has: {', '.join(map(str, parts)) or 'none'}; `kvcompress fit --recompute-layers` makes others"
        raise CheckpointError(what, remedy, path=directory)
    if directory != Path(name_or_path):
        require_intact(parts[recompute_layers])
    return load_tinyvae(parts[recompute_layers])


def codec_place(name_or_path: str | Path) -> Path:
    """Return the directory of a codec by whatever names it, as `find_codec` does.

    A directory whose replacement was killed halfway is put back first.
    """
    path = path_of(name_or_path, "a codec")
    try:
        recover(path)
        return find_codec(name_or_path)
    except (OSError, ValueError) as error:  # no file can have such a name
        raise CheckpointError(f"no codec has such a name ({first_line(error)})", "Check the name", path=path) from error


def load_parts(name_or_path: str | Path) -> list[TinyVAECodec]:
    """Load every codec of a directory, by how many layers each recomputes, ascending; named as for `load_codec`."""
    return [load_codec(name_or_path, layers) for layers in codec_parts(codec_place(name_or_path))]


def load_tinyvae(directory: Path) -> TinyVAECodec:
    """Load a codec directory.

    Raises:
        CheckpointError: It is missing, incomplete or damaged.
    """
    for name in ("config.json", "model.safetensors"):
        if not (directory / name).is_file():
            raise CheckpointError(f"no codec here: {name} is missing", "Make one with `kvcompress fit`", path=directory)
    require_buildable(directory)
    try:
        with redirect_stdout(io.StringIO()):  # the mixin prints, which would spoil --json
            codec = TinyVAECodec.from_pretrained(directory, strict=True)
    except Exception as error:  # the mixin passes on whatever its parsers raise
        raise CheckpointError(f"the codec does not load ({first_line(error)})", REMEDY, path=directory) from error
    with about(directory):
        require_finite(codec)
        require_tables(codec)
    stated = codec.fitted.get("fingerprint")
    if stated is not None and stated != codec.fingerprint:
        told = "the codec is damaged" if bitstream_marker() is None else "this version reads bits in another way"
        what = f"{told}: its digest is {codec.fingerprint[:16]}, its config.json says {str(stated)[:16]}"
        raise CheckpointError(what, REMEDY, path=directory)
    scorers = directory / SCORERS_FILE
    codec.scorers = scorers if scorers.is_file() else None
    return codec.eval()


def require_place_of_codec(output: Path) -> None:
    """Refuse a directory that a codec could not take the place of, before any work is done.

    Raises:
        InputError: It holds other things and no codec, a language model among them, or cannot be replaced.
    """
    require_directory(output, force=True)
    try:
        if not output.is_dir() or codec_parts(output):
            return
    except CheckpointError:  # a damaged codec may be replaced
        return
    parts = recompute_name(0)[:-1]
    others = sorted(entry.name for entry in output.iterdir() if not entry.name.startswith((parts, ".")))
    if others:
        what = f"holds other things than a codec, such as {others[0]}"
        raise InputError(what, "Name another directory", path=output)


class AutoCodec:
    """Loads a codec by whatever names it, as transformers' Auto classes load models."""

    @staticmethod
    def from_pretrained(name_or_path: str | Path, recompute_layers: int | None = None) -> TinyVAECodec:
        """Return the codec of a bundled name, a directory or an id on the Hub; see `load_codec`."""
        return load_codec(name_or_path, recompute_layers)
