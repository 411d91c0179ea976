"""The TinyVAE codec: snapshots to coded sections and back, and its checkpoint directory.

A checkpoint is `config.json`, `model.safetensors` and `README.md`, written and read by the
`huggingface_hub` mixin, so `save_pretrained`, `from_pretrained` and `push_to_hub` are there.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any, Protocol

import numpy as np
import torch
from huggingface_hub import PyTorchModelHubMixin
from torch import Tensor, nn

from kvcompress.codec.group_code import GroupCode
from kvcompress.codec.lower_groups import Lower
from kvcompress.codec.other_weights import Adopted, require_recorded
from kvcompress.codec.outliers import OUTLIERS, Outliers
from kvcompress.codec.promise import FALLBACK, LATENTS, OTHER_WEIGHTS, Promise, promises_from_json, unpromised
from kvcompress.codec.recompute import PROBE, Known, checked_probe, pack_probe, recomputed
from kvcompress.codec.residual import Residual
from kvcompress.errors import FormatError, InputError, MismatchError
from kvcompress.format.ans import TableBank, decode_choices, decode_symbols, encode_choices, encode_symbols
from kvcompress.format.container import Encoded
from kvcompress.format.json_section import canonical_json
from kvcompress.format.session import Preset, encoded_session, own_sections, read_session
from kvcompress.hf.channels import LayerShape, group_positions, layer_from_channels, layer_shapes, to_channels
from kvcompress.hf.partial_prefill import Recompute
from kvcompress.hf.rope import rope_of
from kvcompress.snapshot import KVSnapshot, LayerKV, ModelFingerprint, Origin
from tinyvae import Context, TinyVAE, TinyVAEConfig
from tinyvae.offsets import PRIOR_ONLY
from tinyvae.quantize import LEVELS
from tinyvae.tables import TABLE_ENTRIES

HIGHEST_RATE = 2 * LEVELS
"""Largest rate index; the step is then 2**-20 of the coarsest, finer than any cache needs."""


OFFSETS = "offsets"
"""Section of a file whose tokens are not all coded alike."""

RESIDUAL, RESIDUAL_RATE = "residual", "residual_rate"
"""Sections of a file that also holds what no latent reaches, one a group, and the setting that says how fine."""


class Codec(Protocol):
    """What every codec offers."""

    kind: str

    @property
    def fingerprint(self) -> str:
        """What a file must name to be this codec's."""
        ...

    def decode(self, encoded: Encoded) -> KVSnapshot:
        """Return the snapshot that an encoded one stands for."""
        ...


class TinyVAECodec(
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
        tiers: What older versions kept of quality words, unverified rates; not regarded.
        fitted: How it was fitted: sessions, tokens and other facts for the card.
        recompute_layers: m. With m > 0 layers 0 to m are not coded: the model runs its first m layers when a session is
            restored, see `kvcompress.codec.recompute`. A group then says which `known` layer predicts it.
        origin: Where its model's caches come from, `Origin.to_json()`; files need not repeat it. None in old codecs.
        promises: Quality word -> `Promise.to_json()`, as `kvcompress.fit.calibrate` measured it.
        shared_table: Whether all groups look tokens up in the table of the first.

    Attributes:
        recompute: Gives those layers at decode (`kvcompress.hf.recompute_with`); not needed with m = 0.
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
        self.groups = [tuple(group["layers"]) for group in groups]
        self.known = [Known.from_json(group) for group in groups]
        self.shapes = [LayerShape(*shape) for shape in shapes]
        self.model_fingerprint = ModelFingerprint.from_json(model)
        self.fitted, self._promises = dict(fitted or {}), promises or {}
        self.lower = [Lower.from_json(group) for group in groups]
        self.shared_table = shared_table
        self.vaes = nn.ModuleList()
        for group, known, lower in zip(groups, self.known, self.lower, strict=True):
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
            | self.known[index].to_json()
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

    @property
    def fingerprint(self) -> str:
        """sha256 over geometry, weights and tables."""
        if self._fingerprint is None:
            config = self.config_json()
            # A codec that codes all layers names none, so that its fingerprint is that of versions before the dial.
            named = ("groups", "shapes", "model", "recompute_layers", "shared_table")
            geometry = {name: config[name] for name in named if name in config}
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

    def require_partner(self, snapshot: KVSnapshot) -> None:
        """Raise `MismatchError` or `InputError` where the snapshot is not of this codec's model."""
        partner = self.model_fingerprint if self.adopted is None else self.adopted.session
        partner.require_match(snapshot.origin.fingerprint)
        if list(layer_shapes(snapshot)) != self.shapes:
            raise InputError("the cache's layers have another shape than those this codec was fitted to")
        self._require_vocabulary(snapshot.token_ids)

    def _require_vocabulary(self, token_ids: Tensor) -> None:
        limit = self.vae(0).config.vocab_size
        if token_ids.numel() and int(token_ids.max()) >= limit:
            raise InputError(f"token id {int(token_ids.max())} lies outside the vocabulary of {limit}")

    @property
    def promises(self) -> dict[str, Promise]:
        """What is promised of each quality word, with other weights what was measured with them.

        Read when it is asked for, so that a codec whose promises are damaged, a `CheckpointError`, still decodes and
        can be calibrated again.
        """
        return self.own_promises if self.adopted is None else dict(self.adopted.promises)

    @promises.setter
    def promises(self, promises: Mapping[str, Promise]) -> None:
        self._promises = {name: promise.to_json() for name, promise in promises.items()}

    @property
    def own_promises(self) -> dict[str, Promise]:
        """The same with the weights that it was fitted to, whatever it is tried on."""
        return promises_from_json(self._promises)

    @property
    def ordinary_sessions(self) -> Any:
        """What ordinary sessions look like, see `kvcompress.fit.out_of_distribution`; None where nothing is known."""
        return self.fitted.get("known") if self.adopted is None else self.adopted.known

    @property
    def tiers(self) -> dict[str, int]:
        """Rate index of each quality word that latents alone are promised to keep."""
        found = {name: promise.setting for name, promise in self.promises.items() if name != FALLBACK}
        return {
            name: setting.rate
            for name, setting in found.items()
            if setting.kind == LATENTS and setting.rate is not None
        }

    def promise_of(self, quality: str) -> Promise:
        """Return what is promised of a quality word; raises `InputError` where it was never verified."""
        promises = self.promises
        if quality not in promises or quality == FALLBACK:
            raise unpromised(quality, promises) if self.adopted is None else self.adopted.refusal(quality)
        return promises[quality]

    def rate_of(self, quality: str) -> int:
        """Return the rate index at which latents alone keep a quality word; raises `InputError` where none does."""
        promise = self.promise_of(quality)
        if quality not in self.tiers:
            what = f"latents alone do not keep {quality!r} on this model: it is stored as {promise.setting.words()}"
            raise InputError(what, "Use --max-kl or --size-ratio here")
        return self.tiers[quality]

    def rates(self, group: int, token_ids: Tensor, rate: int, offsets: Tensor | None = None) -> Tensor:
        """Return the rate index [N] int32 of every token of a session for a group of layers, outliers not regarded.

        Args:
            group: Index of the group.
            token_ids: [N] int64, all tokens seen.
            rate: Rate index of the session.
            offsets: [N] integer, added for each token, in levels; `PRIOR_ONLY` codes nothing of it.

        Raises:
            InputError: The offsets are not one a token, or beyond their range.
        """
        rates = self.vae(group).rates(token_ids, rate)
        if offsets is None:
            return rates
        if offsets.shape != token_ids.shape:
            raise InputError(f"{tuple(offsets.shape)} offsets do not fit {len(token_ids)} tokens")
        if offsets.numel() and (int(offsets.min()) < PRIOR_ONLY or int(offsets.max()) > HIGHEST_RATE):
            raise InputError(f"offsets must lie in {PRIOR_ONLY}..{HIGHEST_RATE}")
        return rates + offsets.to(torch.int32)

    @torch.inference_mode()
    def encode(
        self,
        snapshot: KVSnapshot,
        rate: int,
        settings: dict[str, Any] | None = None,
        offsets: Tensor | None = None,
        latents: Sequence[tuple[Tensor, Context]] | None = None,
        residual_rate: int | None = None,
    ) -> Encoded:
        """Code a snapshot at a rate index.

        Args:
            snapshot: The cache.
            rate: Rate index; 16 more halve the quantisation step.
            settings: Goes into the header.
            offsets: [N] integer, how much finer (positive) or coarser each token is, in rate indices; see
                `rates`. The file keeps them.
            latents: Of each group, as `latents` gives them, where they are known: encoding one session at several
                rates takes them once.
            residual_rate: Rate index of what no latent reaches, see `kvcompress.codec.residual`; None leaves it out.

        Raises:
            MismatchError: The snapshot comes from another model.
            InputError: It has another geometry, its layers hold different tokens, or the offsets do not fit.
        """
        latents = latents or self.analyse(snapshot)
        for name, value in (("rate", rate), ("residual rate", residual_rate)):
            if value is not None and not 0 <= value <= HIGHEST_RATE:
                raise InputError(f"{name} {value} is not in 0..{HIGHEST_RATE}")
        own = self._sections(snapshot, latents, self._codes(snapshot, rate, offsets, latents, residual_rate))
        if offsets is not None:
            own[OFFSETS] = encode_choices(offsets.numpy().astype(np.int16))
        if self.recompute_layers:
            own[PROBE] = checked_probe(snapshot, self.recompute_layers, self.recompute)
        return self._encoded(snapshot, rate, residual_rate, settings or {}, own)

    def _encoded(
        self,
        snapshot: KVSnapshot,
        rate: int,
        residual_rate: int | None,
        settings: Mapping[str, Any],
        own: Mapping[str, bytes],
    ) -> Encoded:
        """Return the file of sections that were made at a rate, which its settings say."""
        stated: dict[str, Any] = {"rate": rate}
        if residual_rate is not None:
            stated[RESIDUAL_RATE] = residual_rate
        if self.recompute_layers:
            stated["recompute_layers"] = self.recompute_layers
        if self.adopted is not None:
            stated[OTHER_WEIGHTS] = self.adopted.statement(settings)
        return encoded_session(self.kind, self.fingerprint, snapshot, {**stated, **settings}, own, self.preset)

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
            raise MismatchError(
                "the codec",
                encoded.codec_fingerprint[:16],
                self.fingerprint[:16],
                "Name its codec with --codec DIR",
            )
        parts = ["latents", *([RESIDUAL] if RESIDUAL_RATE in encoded.settings else [])]
        names = {f"{part}.{group}" for part in parts for group in range(len(self.groups))}
        names |= {PROBE} if self.recompute_layers else set()
        odd = names ^ (own_sections(encoded) - {OFFSETS, OUTLIERS})
        if odd:
            raise FormatError(f"the file's sections are not those of its codec: {', '.join(sorted(odd))}")
        token_ids, origin, positions = read_session(encoded, self.preset)
        codes = self._read(encoded, token_ids, origin, positions)
        known = recomputed(self.recompute, self.recompute_layers, token_ids, origin, positions, encoded.sections)
        return self._rebuild(token_ids, origin, known, codes)

    @torch.inference_mode()
    def stored_bits(self, encoded: Encoded) -> list[float]:
        """Return the bits that a file spends on each token of its session; raises as `decode` does."""
        token_ids, origin, positions = read_session(encoded, self.preset)
        bits = torch.zeros(len(token_ids), dtype=torch.float64)
        for code in self._read(encoded, token_ids, origin, positions):
            bits[code.places] += code.bits(self.bank)
        return [float(value) for value in bits]

    def _read(
        self, encoded: Encoded, token_ids: Tensor, origin: Origin, positions: Sequence[Tensor]
    ) -> list[GroupCode]:
        """Return what a file holds of each group."""
        rate = _stated_rate(encoded, "rate")
        finer = _stated_rate(encoded, RESIDUAL_RATE) - rate if RESIDUAL_RATE in encoded.settings else None
        codes, all_rates = [], self._stored_rates(encoded, token_ids, rate)
        lifts = self._stored_lifts(encoded, len(token_ids))
        require_recorded(encoded.settings, self.model_fingerprint, self.preset.origin, origin)
        for group, places in enumerate(self._places(token_ids, positions)):
            rates, residual = all_rates[group][places], None
            lifted = self.vae(group).lifts(token_ids, lifts)
            lifted = None if lifted is None else lifted[places]
            levels = self.vae(group).levels(token_ids[places], rates, lifted)
            symbols = decode_symbols(encoded.sections[f"latents.{group}"], levels.numpy(), self.bank)
            if finer is not None:
                data, channels = encoded.sections[f"{RESIDUAL}.{group}"], self.vae(group).config.channels
                residual = Residual.from_bytes(data, len(places), channels, self.bank)
            codes.append(GroupCode(places, rates, torch.from_numpy(symbols), levels, residual, finer or 0, lifts))
        return codes

    def _stored_lifts(self, encoded: Encoded, tokens: int) -> Tensor | None:
        """Return the lifts [N] of a file's outliers; None where it has none."""
        if OUTLIERS not in encoded.sections:
            return None
        return Outliers.from_bytes(encoded.sections[OUTLIERS], tokens).spread(tokens)[0]

    def _stored_rates(self, encoded: Encoded, token_ids: Tensor, rate: int) -> list[Tensor]:
        """Return the rate index [N] of every token for each group, as the file says."""
        offsets = None
        if OFFSETS in encoded.sections:
            offsets = torch.from_numpy(decode_choices(encoded.sections[OFFSETS], len(token_ids)))
        try:
            rates = [self.rates(group, token_ids, rate, offsets) for group in range(len(self.groups))]
        except InputError as error:
            raise FormatError(f"the section {OFFSETS!r}: {error.what}") from error
        if OUTLIERS not in encoded.sections:
            return rates
        finer = Outliers.from_bytes(encoded.sections[OUTLIERS], len(token_ids)).spread(len(token_ids))[1]
        return [of_group + finer for of_group in rates]

    def _places(self, token_ids: Tensor, positions: Sequence[Tensor]) -> list[Tensor]:
        """Return the positions of each group, refusing files that this codec cannot have made."""
        if len(positions) != len(self.shapes):
            raise FormatError(f"the file holds {len(positions)} layers, its codec codes {len(self.shapes)}")
        self._require_vocabulary(token_ids)
        for layers in self.groups:
            if any(not torch.equal(positions[i], positions[layers[0]]) for i in layers):
                raise FormatError("layers of one group hold different tokens")
        return [positions[layers[0]] for layers in self.groups]

    @torch.inference_mode()
    def reconstruct(
        self,
        snapshot: KVSnapshot,
        rate: int,
        offsets: Tensor | None = None,
        latents: Sequence[tuple[Tensor, Context]] | None = None,
        residual_rate: int | None = None,
    ) -> KVSnapshot:
        """Return what `decode` would, from the same symbols but without bytes; arguments as those of `encode`."""
        self.require_partner(snapshot)
        codes = self._codes(snapshot, rate, offsets, latents, residual_rate)
        return self._rebuild(snapshot.token_ids, snapshot.origin, self.known_layers(snapshot), codes)

    @torch.inference_mode()
    def tried(
        self, snapshot: KVSnapshot, rate: int, latents: Sequence[tuple[Tensor, Context]], residual_rate: int | None
    ) -> tuple[KVSnapshot, Encoded]:
        """Return what a file would give back, and what it would hold, with nothing decoded from bytes."""
        codes = self._codes(snapshot, rate, None, latents, residual_rate)
        own = self._sections(snapshot, latents, codes)
        if self.recompute_layers:
            own[PROBE] = pack_probe(snapshot.layers[self.recompute_layers])
        decoded = self._rebuild(snapshot.token_ids, snapshot.origin, self.known_layers(snapshot), codes)
        return decoded, self._encoded(snapshot, rate, residual_rate, {}, own)

    def _sections(
        self, snapshot: KVSnapshot, latents: Sequence[tuple[Tensor, Context]], codes: Sequence[GroupCode]
    ) -> dict[str, bytes]:
        """Return the sections of latents, residuals and outliers."""
        own = dict[str, bytes]()
        for group, code in enumerate(codes):
            own[f"latents.{group}"] = encode_symbols(code.symbols.numpy(), code.levels.numpy(), self.bank)
            if code.residual is not None:
                own[f"{RESIDUAL}.{group}"] = code.residual.to_bytes(self.bank)
        outliers = self.outliers(snapshot, latents)
        return own | ({OUTLIERS: outliers.to_bytes()} if len(outliers.tokens) else {})

    @torch.inference_mode()
    def token_bits(self, snapshot: KVSnapshot, rate: int, offsets: Tensor | None = None) -> list[float]:
        """Return the bits spent on each token, summed over groups; 0 where a window dropped it."""
        bits = torch.zeros(snapshot.tokens, dtype=torch.float64)
        for code in self._codes(snapshot, rate, offsets):
            bits[code.places] += code.bits(self.bank)
        return [float(value) for value in bits]

    def symbols(
        self, snapshot: KVSnapshot, group: int, rate: int, offsets: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Return symbols and levels, both [T, r] int32, of the tokens that a group of layers holds."""
        code = self._codes(snapshot, rate, offsets)[group]
        return code.symbols, code.levels

    def _codes(
        self,
        snapshot: KVSnapshot,
        rate: int,
        offsets: Tensor | None = None,
        latents: Sequence[tuple[Tensor, Context]] | None = None,
        residual_rate: int | None = None,
    ) -> list[GroupCode]:
        """Return the code of each group, lower groups first: what is decoded of them predicts the higher ones."""
        found = latents or self.analyse(snapshot)
        outliers = self.outliers(snapshot, found)
        lifts, finer = outliers.spread(snapshot.tokens)
        marked = lifts if len(outliers.tokens) else None
        codes, decoded = list[GroupCode](), list[tuple[Tensor, Tensor]]()
        for group, layers in enumerate(self.groups):
            vae, places = self.vae(group), group_positions(snapshot, layers)
            rates = (self.rates(group, snapshot.token_ids, rate, offsets) + finer)[places]
            below = self.lower[group].rows(decoded, places, snapshot.tokens)
            lifted = vae.lifts(snapshot.token_ids, marked)
            context = replace(found[group][1], lifts=None if lifted is None else lifted[places])
            context, wanted = vae.given(context, found[group][0], below)
            symbols, levels, latent = vae.quantized(wanted, context, rates)
            decoded.append((places, context.ordinary(latent)))
            code = GroupCode(places, rates, symbols, levels, lifts=marked)
            if residual_rate is not None:
                exact = to_channels(snapshot, layers, rope_of(snapshot.origin))
                code = code.with_residual(vae, exact - vae.synthesise(context, latent), residual_rate - rate)
            codes.append(code)
        return codes

    @torch.inference_mode()
    def analyse(self, snapshot: KVSnapshot) -> list[tuple[Tensor, Context]]:
        """Return of each group the latents [T, R] float32 before quantisation and their context, see `latents`.

        They do not depend on the rate, so who codes a session at several takes them once.
        """
        self.require_partner(snapshot)
        return [self.latents(snapshot, group) for group in range(len(self.groups))]

    def outliers(self, snapshot: KVSnapshot, latents: Sequence[tuple[Tensor, Context]]) -> Outliers:
        """Return the tokens out of all proportion, given what `analyse` returns."""
        vaes = [self.vae(group) for group in range(len(self.groups))]
        places = [group_positions(snapshot, layers) for layers in self.groups]
        return Outliers.find(vaes, latents, places, snapshot.tokens)

    @torch.no_grad()  # not inference_mode: what is cached on the way is used in training
    def below(self, snapshot: KVSnapshot, rate: int) -> list[Tensor | None]:
        """Return of each group what is decoded of lower groups at a rate, [T, B] float32; None where there is none."""
        if not any(lower.groups for lower in self.lower):
            return [None] * len(self.groups)
        found, decoded = list[Tensor | None](), list[tuple[Tensor, Tensor]]()
        for group, layers in enumerate(self.groups):
            (latents, context), places = self.latents(snapshot, group), group_positions(snapshot, layers)
            found.append(self.lower[group].rows(decoded, places, snapshot.tokens))
            context, wanted = self.vae(group).given(context, latents, found[-1])
            rates = self.rates(group, snapshot.token_ids, rate)[places]
            decoded.append((places, context.ordinary(self.vae(group).quantized(wanted, context, rates)[2])))
        return found

    def latents(self, snapshot: KVSnapshot, group: int) -> tuple[Tensor, Context]:
        """Return the latents [T, R] float32 of one group of layers, before quantisation, and their context.

        Both are as they stand before anything is decoded of lower groups.
        """
        channels = to_channels(snapshot, self.groups[group], rope_of(snapshot.origin))
        place = snapshot.layers[self.groups[group][0]].positions
        self.known[group].require_cover(self.known_layers(snapshot), place)
        context = self.vae(group).context(snapshot.token_ids, self.known_rows(snapshot, group), place)
        return self.vae(group).analyse(context, channels), context

    def known_layers(self, snapshot: KVSnapshot) -> dict[int, LayerKV]:
        """Return the layers of a snapshot that this codec does not code, by index."""
        return dict(enumerate(snapshot.layers[: self.recompute_layers + 1])) if self.recompute_layers else {}

    def known_rows(self, snapshot: KVSnapshot, group: int) -> Tensor | None:
        """Return the channels [N, C'] of a snapshot that predict a group beside the tokens; None if there are none."""
        return self.known[group].rows(self.known_layers(snapshot), snapshot.tokens, rope_of(snapshot.origin))

    def _rebuild(
        self, token_ids: Tensor, origin: Origin, known: Mapping[int, LayerKV], codes: Sequence[GroupCode]
    ) -> KVSnapshot:
        """Return the snapshot of decoded symbols and their levels: the one path of `decode` and `reconstruct`."""
        rope, layers, decoded = rope_of(origin), dict(known), list[tuple[Tensor, Tensor]]()
        for group, code in enumerate(codes):
            vae = self.vae(group)
            rows = self.known[group].rows(known, len(token_ids), rope)
            context = vae.context(token_ids, rows, code.places, code.lifts)
            below = self.lower[group].rows(decoded, code.places, len(token_ids))
            context = vae.below(context, below)
            latents = vae.dequantize(code.symbols, context, code.rates, code.levels)
            decoded.append((code.places, context.ordinary(latents)))
            widths = [self.shapes[index].channels for index in self.groups[group]]
            left = code.residual_channels(vae)
            lefts = [None] * len(widths) if left is None else torch.split(left, widths, 1)
            parts = zip(self.groups[group], vae.synthesise_parts(context, latents, widths), lefts, strict=True)
            for index, part, rest in parts:
                whole = part if rest is None else part + rest
                layers[index] = layer_from_channels(whole, index, self.shapes[index], code.places, rope, origin.dtype)
        return KVSnapshot(tuple(layers[i] for i in range(len(layers))), token_ids, origin)


def _stated_rate(encoded: Encoded, name: str) -> int:
    """Return a rate index that a file's settings name."""
    rate = encoded.settings.get(name)
    if not isinstance(rate, int) or isinstance(rate, bool) or not 0 <= rate <= HIGHEST_RATE:
        raise FormatError(f"the file names the impossible {name.replace('_', ' ')} {rate!r}")
    return rate


__all__ = ["HIGHEST_RATE", "Codec", "TinyVAECodec"]
