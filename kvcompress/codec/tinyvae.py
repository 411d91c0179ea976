"""The TinyVAE codec: snapshots to coded sections and back, and its checkpoint directory.

A checkpoint is `config.json`, `model.safetensors` and `README.md`, written and read by the
`huggingface_hub` mixin, so `save_pretrained`, `from_pretrained` and `push_to_hub` are there.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from huggingface_hub import PyTorchModelHubMixin
from torch import Tensor, nn

from kvcompress.codec.analysis import HIGHEST_QP, Analysis
from kvcompress.codec.bitstream import read_codes, read_own_session, require_sections
from kvcompress.codec.lower_groups import Lower
from kvcompress.codec.other_weights import Adopted, own_origin
from kvcompress.codec.promising import Promising
from kvcompress.codec.quality import encode_at_quality
from kvcompress.codec.recompute import ConditioningLayers, recomputed
from kvcompress.codec.same_model import require_same_model
from kvcompress.codec.settings import NOTHING_STATED, CommonSettings, TinyVAESettings
from kvcompress.codec.synthesis import synthesised
from kvcompress.errors import FormatError, InputError, MismatchError
from kvcompress.format.ans import TableBank
from kvcompress.format.container import Encoded
from kvcompress.format.default_device import on_cpu
from kvcompress.format.origin import require_vocabulary
from kvcompress.format.session import Preset, encoded_session
from kvcompress.format.strict_json import canonical_json
from kvcompress.hf.channels import LayerShape, layer_shapes, to_channels
from kvcompress.hf.partial_prefill import Recompute
from kvcompress.hf.rope import rope_of
from kvcompress.snapshot import KVSnapshot, LayerKV, ModelFingerprint
from tinyvae import Context, TinyVAE, TinyVAEConfig
from tinyvae.bitstream import bitstream_marker
from tinyvae.offsets import PRIOR_ONLY
from tinyvae.quantize import LEVELS
from tinyvae.tables import TABLE_ENTRIES


class TinyVAECodec(
    Promising,
    nn.Module,
    PyTorchModelHubMixin,
    library_name="kvcompress",
    tags=["kv-cache-compression"],
    license="apache-2.0",
):
    """Conditional transform codec of one model's caches.

    Args:
        groups: For each group its `layers` and the fields of its `TinyVAEConfig`.
        shapes: For each layer its heads and head sizes.
        model: Fingerprint of the model whose caches it codes.
        tiers: What older versions kept of quality words, unverified QPs; not regarded.
        fitted: How it was fitted: sessions, tokens and other facts for the card.
        recompute_layers: m. With m > 0 layers 0 to m are not coded: the model runs its first m layers when a session is
            restored, see `kvcompress.codec.recompute`. A group then says which `known` layer predicts it.
        origin: Where its model's caches come from, `Origin.to_json()`; files need not repeat it. None in old codecs.
        promises: Quality word -> `Promise.to_json()`, as `kvcompress.fit.calibrate` measured it.
        shared_table: Whether all groups look tokens up in the table of the first.

    Attributes:
        recompute: Gives those layers at decode (`kvcompress.hf.recompute_with`); not needed with m = 0.
        scorers: File of what scorers learnt of its model, see `kvcompress.prune.scorers.profiles`; None for none.
        adopted: Other weights whose sessions it encodes instead of its own, see `kvcompress.fit.adopt`.
    """

    kind = "tinyvae"
    table_counts: Tensor
    table_offsets: Tensor

    def __init__(
        self,
        groups: list[dict[str, Any]],
        shapes: list[list[int]],
        model: dict[str, str | None],
        tiers: dict[str, int] | None = None,
        fitted: dict[str, Any] | None = None,
        recompute_layers: int = 0,
        origin: dict[str, Any] | None = None,
        promises: dict[str, Any] | None = None,
        shared_table: bool = False,
    ) -> None:
        super().__init__()
        self.recompute_layers = recompute_layers
        self.recompute: Recompute | None = None
        self.adopted: Adopted | None = None
        self.scorers: Path | None = None
        self.groups = [tuple(group["layers"]) for group in groups]
        self.conditioning = [ConditioningLayers.from_json(group) for group in groups]
        self.shapes = [LayerShape(*shape) for shape in shapes]
        self.model_fingerprint = ModelFingerprint.from_json(model)
        self.fitted, self._promises = dict(fitted or {}), promises or {}
        self.lower = [Lower.from_json(group) for group in groups]
        self.shared_table = shared_table
        self.vaes = nn.ModuleList()
        for group, known, lower in zip(groups, self.conditioning, self.lower, strict=True):
            table = self.vae(0).prior.table if shared_table and len(self.vaes) else None
            config = TinyVAEConfig(**group["config"])
            self.vaes.append(TinyVAE(config, known.channels(self.shapes), lower.latents, table))
        self.register_buffer("table_counts", torch.zeros(TABLE_ENTRIES, dtype=torch.int16))
        self.register_buffer("table_offsets", torch.zeros(LEVELS + 1, dtype=torch.int32))
        self.preset = Preset(canonical_json(origin) if origin else b"")
        self._fingerprint: str | None = None
        self._bank: TableBank | None = None

    def config_json(self) -> dict[str, Any]:
        """Return the arguments that rebuild this codec's geometry, as `config.json` holds them."""
        groups = [
            {"layers": list(layers), "config": self.vae(index).config.to_json()}
            | self.conditioning[index].to_json()
            | self.lower[index].to_json()
            for index, layers in enumerate(self.groups)
        ]
        config: dict[str, Any] = {
            "groups": groups,
            "shapes": [[shape.heads, shape.key_size, shape.value_size] for shape in self.shapes],
            "model": asdict(self.model_fingerprint),
            "promises": self._promises,
            "fitted": self.fitted,
        }
        if self.recompute_layers:
            config["recompute_layers"] = self.recompute_layers
        if self.shared_table:
            config["shared_table"] = True
        return config | ({"origin": json.loads(self.preset.origin)} if self.preset.origin else {})

    def __repr__(self) -> str:
        """Return one line: what it is, not the tree of its parts."""
        return f"TinyVAECodec({len(self.shapes)} layers, {self.recompute_layers} recomputed, {self.fingerprint[:16]})"

    @property
    def fingerprint(self) -> str:
        """sha256 over geometry, weights and tables, and over how bits are read, see `tinyvae.bitstream`."""
        if self._fingerprint is None:
            config = self.config_json()
            # A codec that codes all layers names none: its fingerprint is that of versions before recomputed layers.
            named = ("groups", "shapes", "model", "recompute_layers", "shared_table")
            geometry = {name: config[name] for name in named if name in config}
            marker = bitstream_marker()
            geometry |= {} if marker is None else {"bitstream": marker}
            digest = hashlib.sha256(json.dumps(geometry, sort_keys=True).encode())
            for name, tensor in sorted(self.state_dict().items()):
                digest.update(name.encode())
                digest.update(tensor.contiguous().flatten().view(torch.uint8).numpy().tobytes())
            self._fingerprint = digest.hexdigest()
        return self._fingerprint

    @property
    def bank(self) -> TableBank:
        """The frozen tables as the entropy coder sees them."""
        if self._bank is None:
            counts = self.table_counts.numpy().view(np.uint16).astype(np.int32)  # 16 bits, without a sign, on disk
            self._bank = TableBank(counts, self.table_offsets.numpy())
        return self._bank

    def store_tables(self, counts: Tensor, offsets: Tensor, centroids: Tensor) -> None:
        """Keep what `tinyvae.tables.build_tables` made."""
        self.table_counts.copy_(torch.from_numpy(counts.numpy().astype(np.uint16).view(np.int16)))
        self.table_offsets.copy_(offsets)
        for group in range(len(self.groups)):
            self.vae(group).centroids.copy_(centroids)
        self._bank = self._fingerprint = None

    def vae(self, group: int) -> TinyVAE:
        """Return the TinyVAE of a group."""
        vae = self.vaes[group]
        assert isinstance(vae, TinyVAE)
        return vae

    def require_compatible(self, snapshot: KVSnapshot) -> None:
        """Raise `MismatchError` or `InputError` where the snapshot is not of this codec's model."""
        partner = self.model_fingerprint if self.adopted is None else self.adopted.session
        partner.require_match(snapshot.origin.fingerprint)
        if list(layer_shapes(snapshot)) != self.shapes:
            raise InputError("the cache's layers have another shape than those this codec was fitted to")
        self.require_vocabulary(snapshot.token_ids)
        if self.preset.origin and self.adopted is None:
            require_same_model(own_origin(self.preset.origin), snapshot.origin)

    def require_vocabulary(self, token_ids: Tensor, failure: type[InputError] | type[FormatError] = InputError) -> None:
        """Raise `InputError`, or what is asked for, where a token id [N] has no entry in the tables."""
        require_vocabulary(token_ids, {"vocab_size": self.vae(0).config.vocab_size}, failure)

    def qps(self, group: int, token_ids: Tensor, qp: int, offsets: Tensor | None = None) -> Tensor:
        """Return the QP [N] int32 of every token of a session for a group of layers, outliers not regarded.

        Args:
            group: Index of the group.
            token_ids: [N] int64, all tokens seen.
            qp: Quantisation parameter of the session.
            offsets: [N] integer, added for each token, in levels; `PRIOR_ONLY` codes nothing of it.

        Raises:
            InputError: The offsets are not one a token, or beyond their range.
        """
        qps = self.vae(group).qps(token_ids, qp)
        if offsets is None:
            return qps
        if offsets.shape != token_ids.shape:
            raise InputError(f"{tuple(offsets.shape)} offsets do not fit {len(token_ids)} tokens")
        if offsets.numel() and (int(offsets.min()) < PRIOR_ONLY or int(offsets.max()) > HIGHEST_QP):
            raise InputError(f"offsets must lie in {PRIOR_ONLY}..{HIGHEST_QP}")
        return qps + offsets.to(torch.int32)

    @torch.inference_mode()
    def analyse(self, snapshot: KVSnapshot) -> Analysis:
        """Return the latents of a snapshot; who encodes it at several QPs does this once.

        Raises:
            MismatchError: The snapshot comes from another model.
            InputError: It has another geometry, or its layers hold different tokens.
        """
        self.require_compatible(snapshot)
        return Analysis(self, snapshot, [self.latents(snapshot, group) for group in range(len(self.groups))])

    @on_cpu
    def encode(
        self,
        snapshot: KVSnapshot,
        qp: int | None = None,
        settings: CommonSettings = NOTHING_STATED,
        offsets: Tensor | None = None,
        residual_qp: int | None = None,
        *,
        quality: str | None = None,
    ) -> Encoded:
        """Encode a snapshot at a QP, or at a quality as calibration verified it.

        Args:
            snapshot: The cache.
            qp: Quantisation parameter; 16 more halve the quantisation step.
            settings: What the header says beside the QPs.
            offsets: See `Analysis`.
            residual_qp: See `Analysis`.
            quality: "transparent", "high" or "usable" instead of a QP.

        Raises:
            MismatchError: The snapshot comes from another model.
            InputError: It has another geometry, its layers hold different tokens, the offsets do not fit, or neither
                or both of QP and quality are given.
        """
        if (qp is None) == (quality is None):
            raise InputError("encoding needs a QP or a quality", "Name one, such as quality='high'")
        if quality is not None:
            return encode_at_quality(self, snapshot, quality)
        assert qp is not None
        return self.analyse(snapshot).encode(qp, settings, offsets, residual_qp)

    def file_of(
        self,
        snapshot: KVSnapshot,
        qp: int,
        residual_qp: int | None,
        settings: CommonSettings,
        own: Mapping[str, bytes],
    ) -> Encoded:
        """Return the file of sections that were made at a QP, which its settings say."""
        stated = TinyVAESettings(
            **settings.common(),
            qp=qp,
            residual_qp=residual_qp,
            recompute_layers=self.recompute_layers,
            other_weights=None if self.adopted is None else self.adopted.statement(settings),
        )
        return encoded_session(self.kind, self.fingerprint, snapshot, stated.to_json(), own, self.preset)

    @on_cpu
    @torch.inference_mode()
    def decode(self, encoded: Encoded) -> KVSnapshot:
        """Return the snapshot of an encoded one.

        Raises:
            MismatchError: It was made by another codec.
            FormatError: A section is missing, cut or inconsistent.
        """
        if encoded.codec != self.kind:
            raise FormatError(f"a file of the codec {encoded.codec!r} is not for {self.kind!r}")
        if encoded.codec_fingerprint != self.fingerprint:
            mine, theirs = self.fingerprint[:16], encoded.codec_fingerprint[:16]
            raise MismatchError("the codec", theirs, mine, "Name its codec with --codec DIR")
        require_sections(self, encoded)
        token_ids, origin, positions = read_own_session(self, encoded)
        codes = read_codes(self, encoded, token_ids, positions)
        known = recomputed(self.recompute, self.recompute_layers, token_ids, origin, positions, encoded.sections)
        return synthesised(self, token_ids, origin, known, codes)

    @torch.inference_mode()
    def stored_bits(self, encoded: Encoded) -> list[float]:
        """Return the bits that a file spends on each token of its session; raises as `decode` does."""
        token_ids, _, positions = read_own_session(self, encoded)
        bits = torch.zeros(len(token_ids), dtype=torch.float64)
        for code in read_codes(self, encoded, token_ids, positions):
            bits[code.places] += code.bits(self.bank)
        return [float(value) for value in bits]

    def reconstruct(
        self, snapshot: KVSnapshot, qp: int, offsets: Tensor | None = None, residual_qp: int | None = None
    ) -> KVSnapshot:
        """Return what `decode` would of `encode`, see `Analysis`."""
        return self.analyse(snapshot).reconstruct(qp, offsets, residual_qp)

    def token_bits(self, snapshot: KVSnapshot, qp: int, offsets: Tensor | None = None) -> list[float]:
        """Return the bits spent on each token, see `Analysis`."""
        return self.analyse(snapshot).token_bits(qp, offsets)

    def symbols(
        self, snapshot: KVSnapshot, group: int, qp: int, offsets: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Return symbols and levels of a group, see `Analysis`."""
        return self.analyse(snapshot).symbols(group, qp, offsets)

    def latents(self, snapshot: KVSnapshot, group: int) -> tuple[Tensor, Context]:
        """Return the latents [T, R] float32 of one group of layers, before quantisation, and their context.

        Both are as they stand before anything is decoded of lower groups.
        """
        channels = to_channels(snapshot, self.groups[group], rope_of(snapshot.origin))
        place = snapshot.layers[self.groups[group][0]].positions
        self.conditioning[group].require_cover(self.conditioning_layers(snapshot), place)
        context = self.vae(group).context(snapshot.token_ids, self.conditioning_rows(snapshot, group), place)
        return self.vae(group).analyse(context, channels), context

    def conditioning_layers(self, snapshot: KVSnapshot) -> dict[int, LayerKV]:
        """Return the layers of a snapshot that this codec does not code, by index."""
        return dict(enumerate(snapshot.layers[: self.recompute_layers + 1])) if self.recompute_layers else {}

    def conditioning_rows(self, snapshot: KVSnapshot, group: int) -> Tensor | None:
        """Return the channels [N, C'] of a snapshot that predict a group beside the tokens; None if there are none."""
        return self.conditioning[group].rows(
            self.conditioning_layers(snapshot), snapshot.tokens, rope_of(snapshot.origin)
        )


__all__ = ["TinyVAECodec"]
