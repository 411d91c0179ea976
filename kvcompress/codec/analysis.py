"""The latents of a snapshot before a QP is chosen; several encodes of one session share them.

```
snapshot ──► analyse: RoPE undone, prior subtracted, transform ──► Analysis ──► encode(QP) ──► Encoded
                                                                            ├─► reconstruct(QP) ──► KVSnapshot
                                                                            └─► tried(QP) ──► both of them
```
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from kvcompress.codec.group_code import GroupCode
from kvcompress.codec.outliers import OUTLIERS, Outliers
from kvcompress.codec.recompute import PROBE, checked_probe
from kvcompress.codec.settings import NOTHING_STATED, CommonSettings
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

HIGHEST_QP = 2 * LEVELS
"""Largest QP (quantisation parameter: index of the step, sixteen to the octave; unlike in video codecs a larger one is
finer). The step is then 2**-20 of the coarsest, finer than any cache needs."""

OFFSETS = "offsets"
"""Section of a file whose tokens are not all coded alike."""

RESIDUAL = "residual"
"""Sections of a file that also holds what no latent reaches, one a group."""

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

    - qp: Quantisation parameter; 16 more halve the quantisation step.
    - offsets: [N] integer, how much finer (positive) or coarser each token is, in QPs; a file keeps them.
    - residual_qp: QP of what no latent reaches, see `kvcompress.codec.residual`; None leaves it out.

    and raise `InputError` where a QP is out of range or the offsets do not fit.
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
        qp: int,
        settings: CommonSettings = NOTHING_STATED,
        offsets: Tensor | None = None,
        residual_qp: int | None = None,
    ) -> Encoded:
        """Return the file at a QP; `settings` go into its header beside what decoding needs."""
        own = self._sections(self.codes(qp, offsets, residual_qp))
        if offsets is not None:
            own[OFFSETS] = encode_choices(offsets.to(torch.int16).numpy())
        own |= self._probe(checked=True)
        return self.codec.file_of(self.snapshot, qp, residual_qp, settings, own)

    @torch.inference_mode()
    def reconstruct(self, qp: int, offsets: Tensor | None = None, residual_qp: int | None = None) -> KVSnapshot:
        """Return what decoding the file at a QP gives, from the same symbols but without bytes."""
        return self._rebuilt(self.codes(qp, offsets, residual_qp))

    @torch.inference_mode()
    def tried(
        self,
        qp: int,
        settings: CommonSettings = NOTHING_STATED,
        residual_qp: int | None = None,
        *,
        checked: bool = False,
    ) -> tuple[KVSnapshot, Encoded]:
        """Return what decoding the file at a QP gives, and the file, from one quantisation.

        Whether the model computes the layers that the file leaves out is looked at only where `checked`.
        """
        codes = self.codes(qp, None, residual_qp)
        own = self._sections(codes) | self._probe(checked=checked)
        return self._rebuilt(codes), self.codec.file_of(self.snapshot, qp, residual_qp, settings, own)

    @torch.inference_mode()
    def token_bits(self, qp: int, offsets: Tensor | None = None) -> list[float]:
        """Return the bits spent on each token, summed over groups; 0 where a window dropped it."""
        bits = torch.zeros(self.snapshot.tokens, dtype=torch.float64)
        for code in self.codes(qp, offsets):
            bits[code.places] += code.bits(self.codec.bank)
        return [float(value) for value in bits]

    def symbols(self, group: int, qp: int, offsets: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Return symbols and levels, both [T, r] int32, of the tokens that a group of layers holds."""
        code = self.codes(qp, offsets)[group]
        return code.symbols, code.levels

    def codes(self, qp: int, offsets: Tensor | None = None, residual_qp: int | None = None) -> list[GroupCode]:
        """Return the code of each group, lower groups first: what is decoded of them predicts the higher ones."""
        _require_range(qp, residual_qp)
        codec, snapshot = self.codec, self.snapshot
        lifts, finer = self.outliers.spread(snapshot.tokens)
        marked = lifts if len(self.outliers.tokens) else None
        codes, decoded = list[GroupCode](), list[tuple[Tensor, Tensor]]()
        for group, layers in enumerate(codec.groups):
            vae, places = codec.vae(group), group_positions(snapshot, layers)
            qps = (codec.qps(group, snapshot.token_ids, qp, offsets) + finer)[places]
            below = codec.lower[group].rows(decoded, places, snapshot.tokens)
            lifted = vae.lifts(snapshot.token_ids, marked)
            latents, context = self.latents[group]
            context = replace(context, lifts=None if lifted is None else lifted[places])
            context, wanted = vae.given(context, latents, below)
            symbols, levels, latent = vae.quantized(wanted, context, qps)
            decoded.append((places, context.ordinary(latent)))
            code = GroupCode(places, qps, symbols, levels, lifts=marked)
            if residual_qp is not None:
                exact = to_channels(snapshot, layers, rope_of(snapshot.origin))
                code = code.with_residual(vae, exact - vae.synthesise(context, latent), residual_qp - qp)
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
        known = self.codec.conditioning_layers(self.snapshot)
        return synthesised(self.codec, self.snapshot.token_ids, self.snapshot.origin, known, codes)

    def _sections(self, codes: list[GroupCode]) -> dict[str, bytes]:
        """Return the sections of latents, residuals and outliers."""
        own, bank = dict[str, bytes](), self.codec.bank
        for group, code in enumerate(codes):
            own[f"latents.{group}"] = encode_symbols(code.symbols.numpy(), code.levels.numpy(), bank)
            if code.residual is not None:
                own[f"{RESIDUAL}.{group}"] = code.residual.to_bytes(bank)
        return own | ({OUTLIERS: self.outliers.to_bytes()} if len(self.outliers.tokens) else {})


def _require_range(qp: int, residual_qp: int | None) -> None:
    named: list[tuple[str, object]] = [("QP", qp)]
    if residual_qp is not None:
        named.append(("residual QP", residual_qp))
    for name, value in named:
        if not isinstance(value, int) or isinstance(value, bool):
            remedy = "Name a quality word with quality=..." if isinstance(value, str) else ""
            raise InputError(f"{name} {value!r} is not an integer", remedy)
        if not 0 <= value <= HIGHEST_QP:
            raise InputError(f"{name} {value} is not in 0..{HIGHEST_QP}")
