"""Where the bits go: bits a value, by layer.

A latent of the joint transform belongs to all layers of its group at once. Its bits are shared out by the energy that
its synthesis row has in each layer's channels, in the metric in which the codec measures error: a layer that the output
hardly cares about is not charged for the size of its numbers.
"""

from __future__ import annotations

import torch
from torch import Tensor

from kvcompress.codec.tinyvae import TinyVAECodec
from kvcompress.snapshot import KVSnapshot


@torch.inference_mode()
def bits_by_layer(codec: TinyVAECodec, snapshot: KVSnapshot, qp: int) -> list[float]:
    """Return the mean bits spent on a value of each layer.

    Args:
        codec: A TinyVAE codec of the snapshot's model.
        snapshot: A session's cache.
        qp: Quantisation parameter.
    """
    found = torch.zeros(len(snapshot.layers), dtype=torch.float64)
    for group, layers in enumerate(codec.groups):
        symbols, levels = codec.symbols(snapshot, group, qp)
        bits = torch.from_numpy(codec.bank.code_lengths(symbols.numpy(), levels.numpy()).sum(0))
        shares = layer_shares(codec, group)
        for column, layer in enumerate(layers):
            found[layer] = bits @ shares[: len(bits), column]
    values = [layer.keys.numel() + layer.values.numel() for layer in snapshot.layers]
    return [float(total) / max(1, count) for total, count in zip(found, values, strict=True)]


def layer_shares(codec: TinyVAECodec, group: int) -> Tensor:
    """Return [R, layers of the group] float64: how each latent's bits are shared out; rows sum to 1.

    A latent is read off the channels by its analysis column and written to them by its synthesis row; the product of
    both, channel by channel, is how much of the latent each channel carries.
    """
    transform = codec.vae(group).transform
    carried = (transform.analysis.T.double() * transform.synthesis.dense.double()).abs()
    columns, start = [], 0
    for layer in codec.groups[group]:
        width = codec.shapes[layer].channels
        columns.append(carried[:, start : start + width].sum(1))
        start += width
    shares = torch.stack(columns, 1)
    return shares / shares.sum(1, keepdim=True)
