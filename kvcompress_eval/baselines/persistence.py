"""Sizes of a cache in the formats that the first tools for KV persistence wrote: pickle, gzip over pickle, torch.save.

Sizes only, never a way to load: whoever unpickles a file runs what stands in it. What is measured is the cache alone,
((keys, values), ...) with one pair a layer and a batch axis of 1, as transformers used to hand it out; token ids and
origin, which those tools do not keep, are not counted.
"""

from __future__ import annotations

import io
from gzip import compress
from pickle import HIGHEST_PROTOCOL, dumps

import torch
from torch import Tensor

from kvcompress.snapshot import KVSnapshot

GZIP_LEVEL = 9  # the default of Python's gzip


def original_sizes(snapshot: KVSnapshot) -> dict[str, int]:
    """Return the size in bytes of a cache in each format, by the format's name.

    `torch.save` keeps the cache's dtype. Pickle holds NumPy arrays; NumPy has no bfloat16, so such a cache is pickled
    as float32, as those tools did; float16 and float32 stay what they are.
    """
    tensors = [(_own(layer.keys), _own(layer.values)) for layer in snapshot.layers]
    pickled = dumps(tuple((_array(keys), _array(values)) for keys, values in tensors), protocol=HIGHEST_PROTOCOL)
    file = io.BytesIO()
    torch.save(tuple(tensors), file)
    return {
        "pickle": len(pickled),
        "gzip(pickle)": len(compress(pickled, GZIP_LEVEL)),
        "torch.save": len(file.getvalue()),
    }


def _own(tensor: Tensor) -> Tensor:
    """Return [1, H, T, D] in memory of its own: torch.save writes the whole storage behind a view."""
    return tensor.detach().cpu()[None].clone(memory_format=torch.contiguous_format)


def _array(tensor: Tensor) -> object:
    return (tensor.float() if tensor.dtype == torch.bfloat16 else tensor).numpy()
