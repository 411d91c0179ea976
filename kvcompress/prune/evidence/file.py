"""Evidence in a file of its own, collected once and read by every plan of the session.

A safetensors file that names the session that it is of and the codec whose latents its gradients are taken of. A kind
that was not collected is left out.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor

from kvcompress.errors import FormatError, MismatchError
from kvcompress.format.atomic import PathLike, atomic_path
from kvcompress.format.safetensors_file import opened, require_format, write_tensors
from kvcompress.format.strict_json import canonical_json
from kvcompress.prune.evidence.record import Evidence, QueryStatistics
from kvcompress.snapshot import KVSnapshot

FORMAT = "kvcompress.evidence"
VERSION = "1"
_OF_TOKENS = ("surprise", "sensitivity", "ages_seconds")
_OF_LAYERS = ("window_attention", "reconstruction")
_MOMENTS = ("queries.mean", "queries.covariance", "queries.scaling")


def save_evidence(path: PathLike, evidence: Evidence, codec_fingerprint: str = "", *, force: bool = False) -> None:
    """Write what was collected; the file appears whole or not at all.

    Args:
        path: The file.
        evidence: Of one session.
        codec_fingerprint: Of the codec that the sensitivity was collected with, "" for none.
        force: Replace a file.

    Raises:
        InputError: The file exists and `force` is not given, or it cannot be written.
    """
    metadata = {
        "format": FORMAT,
        "version": VERSION,
        "session": _session(evidence.snapshot),
        "codec": codec_fingerprint,
    }
    tensors = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in _tensors(evidence)}
    with atomic_path(path, force=force) as temporary:
        write_tensors(temporary, tensors, metadata)


def load_evidence(path: PathLike, snapshot: KVSnapshot) -> tuple[Evidence, str]:
    """Return stored evidence of a snapshot, and the fingerprint of the codec of its sensitivity.

    Raises:
        InputError: There is no such file.
        FormatError: It is damaged, no evidence file, or of another version.
        MismatchError: It is of another session or model.
    """
    with opened(path, "evidence") as file:
        metadata = file.metadata() or {}
        require_format(metadata, FORMAT, VERSION, path, "evidence", "`kvcompress record --evidence`")
        _require_session(metadata, snapshot, path)
        found = {name: file.get_tensor(name).clone() for name in list(file.keys())}
    _require_shapes(found, snapshot, path)
    layers = range(len(snapshot.layers))
    parts: dict[str, Any] = {name: found.get(name) for name in _OF_TOKENS}
    for name in _OF_LAYERS:
        parts[name] = tuple(found[f"{name}.{i}"] for i in layers) if f"{name}.0" in found else None
    if f"{_MOMENTS[0]}.0" in found:
        parts["queries"] = tuple(_moments(found, index) for index in layers)
    return Evidence(snapshot, **parts), metadata.get("codec", "")


def _session(snapshot: KVSnapshot) -> str:
    """Return a hash of what the evidence is of: tokens and model."""
    ids = snapshot.token_ids.cpu().numpy().astype("<i8").tobytes()
    return hashlib.sha256(canonical_json(asdict(snapshot.origin.fingerprint)) + ids).hexdigest()


def _tensors(evidence: Evidence) -> Iterator[tuple[str, Tensor]]:
    for name in _OF_TOKENS:
        value = getattr(evidence, name)
        if value is not None:
            yield name, value.float()
    for name in _OF_LAYERS:
        for index, value in enumerate(getattr(evidence, name) or ()):
            yield f"{name}.{index}", value.float()
    for index, moments in enumerate(evidence.queries or ()):
        values = (moments.mean, moments.covariance, torch.tensor([moments.scaling], dtype=torch.float64))
        yield from zip((f"{name}.{index}" for name in _MOMENTS), values, strict=True)


def _moments(found: dict[str, Tensor], index: int) -> QueryStatistics:
    mean, covariance, scaling = (found[f"{name}.{index}"] for name in _MOMENTS)
    return QueryStatistics(mean, covariance, float(scaling))


def _require_session(metadata: dict[str, str], snapshot: KVSnapshot, path: PathLike) -> None:
    wanted, found = _session(snapshot), metadata.get("session", "")
    if wanted != found:
        remedy = "Name the evidence that was recorded with this snapshot"
        raise MismatchError("the evidence's session", wanted[:16], found[:16], remedy, path=path)


def _require_shapes(found: dict[str, Tensor], snapshot: KVSnapshot, path: PathLike) -> None:
    """Refuse tensors that belong to no kind, kinds that lack a layer, other shapes and values that are not finite."""
    kinds = {name.rpartition(".")[0] for name in found if "." in name}
    if kinds & set(_MOMENTS):
        kinds |= set(_MOMENTS)
    layered = {f"{kind}.{i}" for kind in kinds & {*_OF_LAYERS, *_MOMENTS} for i in range(len(snapshot.layers))}
    odd = (layered | (set(_OF_TOKENS) & set(found))) ^ set(found)
    if odd:
        raise FormatError(f"the tensor {min(odd)!r} is missing or does not belong there", path=path)
    for name, tensor in found.items():
        kind, _, index = name.rpartition(".") if name in layered else (name, "", "0")
        if not (_fits(kind, tensor, snapshot, int(index)) and bool(torch.isfinite(tensor).all())):
            what = f"the tensor {name!r} of shape {tuple(tensor.shape)} is no evidence of {snapshot.tokens} tokens"
            raise FormatError(what, "Record the session again", path=path)
    for i in range(len(snapshot.layers)):
        of_layer = [name for name in layered if name.endswith(f".{i}") and "scaling" not in name]
        if len({len(found[name]) for name in of_layer}) > 1:
            raise FormatError(f"the evidence of layer {i} is of different numbers of heads", path=path)


def _fits(kind: str, tensor: Tensor, snapshot: KVSnapshot, index: int) -> bool:
    """Tell whether a tensor has the type and shape of its kind; queries have as many heads as keys, or times more."""
    if not tensor.is_floating_point() or not tensor.ndim or not snapshot.layers:
        return False
    heads, tokens, (kv_heads, _, size) = len(tensor), snapshot.tokens, snapshot.layers[index].keys.shape
    shapes: dict[str, tuple[int, ...]] = {
        **dict.fromkeys(_OF_TOKENS, (tokens,)),
        **dict.fromkeys(_OF_LAYERS, (heads, tokens)),
        "queries.mean": (heads, size),
        "queries.covariance": (heads, size, size),
        "queries.scaling": (1,),
    }
    whole_groups = len(shapes[kind]) == 1 or heads % max(1, kv_heads) == 0
    return tuple(tensor.shape) == shapes[kind] and whole_groups
