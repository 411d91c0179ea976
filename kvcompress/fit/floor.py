"""The error floor of a codec: the KL that remains when its latents are not quantised."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

from kvcompress.codec.tinyvae import TinyVAECodec
from kvcompress.hf.channels import group_positions, layer_from_channels
from kvcompress.hf.generation import feed
from kvcompress.hf.restore import restore
from kvcompress.hf.rope import rope_of
from kvcompress.hf.types import CausalLM, Tokenizer
from kvcompress.metrics.fidelity import kl_nats
from kvcompress.snapshot import KVSnapshot

if TYPE_CHECKING:
    from kvcompress.fit.trials import TrialSource

FLOOR_SESSIONS = 4


def unquantised(codec: TinyVAECodec, snapshot: KVSnapshot) -> KVSnapshot:
    """Return a snapshot as its latents would give it back if they were stored exactly."""
    rope, layers = rope_of(snapshot.origin), dict(codec.conditioning_layers(snapshot))
    decoded: list[tuple[torch.Tensor, torch.Tensor]] = []
    for group, (latents, context) in enumerate(codec.analyse(snapshot).latents):
        vae, places = codec.vae(group), group_positions(snapshot, codec.groups[group])
        below = codec.lower[group].rows(decoded, places, snapshot.tokens)
        context, latents = vae.given(context, latents, below)
        decoded.append((places, context.ordinary(latents)))
        widths = [codec.shapes[index].channels for index in codec.groups[group]]
        for index, part in zip(codec.groups[group], vae.synthesise_parts(context, latents, widths), strict=True):
            layers[index] = layer_from_channels(part, index, codec.shapes[index], places, rope, snapshot.origin.dtype)
    return KVSnapshot(tuple(layers[i] for i in range(len(layers))), snapshot.token_ids, snapshot.origin)


@torch.inference_mode()
def floor_nats(
    model: CausalLM, codec: TinyVAECodec, trials: Sequence[TrialSource], tokenizer: Tokenizer | None = None
) -> float | None:
    """Return the mean KL over the continuations of a few sessions, None without any."""
    found = []
    for trial in trials[:FLOOR_SESSIONS]:
        snapshot, continuation = trial.snapshot, trial.continuation
        exact = feed(model, restore(snapshot, model, tokenizer=tokenizer), continuation, snapshot.tokens)
        cache = restore(unquantised(codec, snapshot), model)
        found.append(float(kl_nats(exact, feed(model, cache, continuation, snapshot.tokens)).mean()))
    return float(f"{sum(found) / len(found):.4g}") if found else None
