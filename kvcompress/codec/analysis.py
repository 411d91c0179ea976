"""A snapshot as latents, before any rate is chosen: what encodes of one session at several rates share.

```
snapshot ──► analyse: RoPE undone, prior subtracted, transform ──► Analysis ──► encode(rate) ──► Encoded
                                                                            ├─► reconstruct(rate) ──► KVSnapshot
                                                                            └─► tried(rate) ──► both of them
```
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from kvcompress.codec.group_code import GroupCode
from kvcompress.codec.outliers import OUTLIERS, Outliers
from kvcompress.codec.recompute import PROBE, checked_probe
from kvcompress.codec.synthesis import synthesised
from kvcompress.errors import InputError
from kvcompress.format.ans import encode_choices, encode_symbols
from kvcompress.format.container import Encoded
from kvcompress.hf.channels import group_positions, to_channels
from kvcompress.hf.rope import rope_of
from kvcompress.snapshot import KVSnapshot
from tinyvae import Context
from tinyvae.quantize import LEVELS

if TYPE_CHECKING:
    from kvcompress.codec.tinyvae import TinyVAECodec

HIGHEST_RATE = 2 * LEVELS
"""Largest rate index; the step is then 2**-20 of the coarsest, finer than any cache needs."""

OFFSETS = "offsets"
"""Section of a file whose tokens are not all coded alike."""

RESIDUAL, RESIDUAL_RATE = "residual", "residual_rate"
"""Sections of a file that also holds what no latent reaches, one a group, and the setting that says how fine."""

Latents = list[tuple[Tensor, Context]]
"""Of each group latents [T, R] float32 before quantisation and their context, before lower groups are decoded."""


@dataclass(frozen=True, eq=False)
class Analysis:
    """One session, analysed once.

    Attributes:
        codec: The codec.
        snapshot: The session.
        latents: See `Latents`.

    The methods take the same arguments:

    - rate: Rate index; 16 more halve the quantisation step.
    - offsets: [N] integer, how much finer (positive) or coarser each token is, in rate indices; a file keeps them.
    - residual_rate: Rate index of what no latent reaches, see `kvcompress.codec.residual`; None leaves it out.

    and raise `InputError` where a rate is out of range or the offsets do not fit.
    """

    codec: TinyVAECodec
    snapshot: KVSnapshot
    latents: Latents

    @cached_property
    def outliers(self) -> Outliers:
        """Tokens out of all proportion."""
        vaes = [self.codec.vae(group) for group in range(len(self.codec.groups))]
        places = [group_positions(self.snapshot, layers) for layers in self.codec.groups]
        return Outliers.find(vaes, self.latents, places, self.snapshot.tokens)

    @torch.inference_mode()
    def encode(
        self,
        rate: int,
        settings: Mapping[str, Any] | None = None,
        offsets: Tensor | None = None,
        residual_rate: int | None = None,
    ) -> Encoded:
        """Return the file at a rate; `settings` go into its header beside what decoding needs."""
        own = self._sections(self.codes(rate, offsets, residual_rate))
        if offsets is not None:
            own[OFFSETS] = encode_choices(offsets.to(torch.int16).numpy())
        own |= self._probe(checked=True)
        return self.codec.file_of(self.snapshot, rate, residual_rate, settings or {}, own)

    @torch.inference_mode()
    def reconstruct(self, rate: int, offsets: Tensor | None = None, residual_rate: int | None = None) -> KVSnapshot:
        """Return what decoding the file at a rate gives, from the same symbols but without bytes."""
        return self._rebuilt(self.codes(rate, offsets, residual_rate))

    @torch.inference_mode()
    def tried(
        self,
        rate: int,
        settings: Mapping[str, Any] | None = None,
        residual_rate: int | None = None,
        *,
        checked: bool = False,
    ) -> tuple[KVSnapshot, Encoded]:
        """Return what decoding the file at a rate gives, and the file, from one quantisation.

        Whether the model computes the layers that the file leaves out is looked at only where `checked`.
        """
        codes = self.codes(rate, None, residual_rate)
        own = self._sections(codes) | self._probe(checked=checked)
        return self._rebuilt(codes), self.codec.file_of(self.snapshot, rate, residual_rate, settings or {}, own)

    @torch.inference_mode()
    def token_bits(self, rate: int, offsets: Tensor | None = None) -> list[float]:
        """Return the bits spent on each token, summed over groups; 0 where a window dropped it."""
        bits = torch.zeros(self.snapshot.tokens, dtype=torch.float64)
        for code in self.codes(rate, offsets):
            bits[code.places] += code.bits(self.codec.bank)
        return [float(value) for value in bits]

    def symbols(self, group: int, rate: int, offsets: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Return symbols and levels, both [T, r] int32, of the tokens that a group of layers holds."""
        code = self.codes(rate, offsets)[group]
        return code.symbols, code.levels

    def codes(self, rate: int, offsets: Tensor | None = None, residual_rate: int | None = None) -> list[GroupCode]:
        """Return the code of each group, lower groups first: what is decoded of them predicts the higher ones."""
        _require_range(rate=rate, residual_rate=residual_rate)
        codec, snapshot = self.codec, self.snapshot
        lifts, finer = self.outliers.spread(snapshot.tokens)
        marked = lifts if len(self.outliers.tokens) else None
        codes, decoded = list[GroupCode](), list[tuple[Tensor, Tensor]]()
        for group, layers in enumerate(codec.groups):
            vae, places = codec.vae(group), group_positions(snapshot, layers)
            rates = (codec.rates(group, snapshot.token_ids, rate, offsets) + finer)[places]
            below = codec.lower[group].rows(decoded, places, snapshot.tokens)
            lifted = vae.lifts(snapshot.token_ids, marked)
            latents, context = self.latents[group]
            context = replace(context, lifts=None if lifted is None else lifted[places])
            context, wanted = vae.given(context, latents, below)
            symbols, levels, latent = vae.quantized(wanted, context, rates)
            decoded.append((places, context.ordinary(latent)))
            code = GroupCode(places, rates, symbols, levels, lifts=marked)
            if residual_rate is not None:
                exact = to_channels(snapshot, layers, rope_of(snapshot.origin))
                code = code.with_residual(vae, exact - vae.synthesise(context, latent), residual_rate - rate)
            codes.append(code)
        return codes

    def _probe(self, *, checked: bool) -> dict[str, bytes]:
        """Return the section by which recomputed layers are recognised; none where all layers are coded."""
        layers = self.codec.recompute_layers
        if not layers:
            return {}
        probe = checked_probe(self.snapshot, layers, self.codec.recompute if checked else None)
        return {PROBE: probe}

    def _rebuilt(self, codes: list[GroupCode]) -> KVSnapshot:
        known = self.codec.known_layers(self.snapshot)
        return synthesised(self.codec, self.snapshot.token_ids, self.snapshot.origin, known, codes)

    def _sections(self, codes: list[GroupCode]) -> dict[str, bytes]:
        """Return the sections of latents, residuals and outliers."""
        own, bank = dict[str, bytes](), self.codec.bank
        for group, code in enumerate(codes):
            own[f"latents.{group}"] = encode_symbols(code.symbols.numpy(), code.levels.numpy(), bank)
            if code.residual is not None:
                own[f"{RESIDUAL}.{group}"] = code.residual.to_bytes(bank)
        return own | ({OUTLIERS: self.outliers.to_bytes()} if len(self.outliers.tokens) else {})


def _require_range(**rates: object) -> None:
    for name, value in rates.items():
        if value is None and name != "rate":
            continue
        if not isinstance(value, int) or isinstance(value, bool):
            remedy = "Name a quality word with quality=..." if isinstance(value, str) else ""
            raise InputError(f"{name.replace('_', ' ')} {value!r} is not an integer", remedy)
        if not 0 <= value <= HIGHEST_RATE:
            raise InputError(f"{name.replace('_', ' ')} {value} is not in 0..{HIGHEST_RATE}")
