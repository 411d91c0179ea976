"""Whether a model may go on from a recorded session, field by field: allowed, degraded, or refused.

A cache means something to the weights that computed it and to no others. A fine-tune takes the cache of its base
without an error and answers from another model's thoughts, so it is refused like any other model; who asks for it gets
it measured (`measure`).

```
weights, adapter       refused where they differ; degraded where other weights were asked for
tokenizer              likewise: ids that another one splits texts into
rope, layer kinds,     refused where they differ, whatever was asked for
geometry, architecture
dtype                  degraded where it differs
```
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

from kvcompress.errors import InputError, MismatchError
from kvcompress.format.container import read_header
from kvcompress.hf.architecture import Architecture
from kvcompress.hf.families import layer_kinds, new_cache
from kvcompress.hf.fingerprint import config_json, configured_rope_digest, fingerprint, loaded_weights_digest
from kvcompress.hf.rope import parse_config
from kvcompress.snapshot import ModelFingerprint, Origin

if TYPE_CHECKING:
    from kvcompress.format.atomic import PathLike
    from kvcompress.hf.types import CausalLM, Tokenizer

ALLOWED, DEGRADED, REFUSED = "allowed", "degraded", "refused"
VERDICTS = (ALLOWED, DEGRADED, REFUSED)
"""From good to bad; the worst field decides."""

DIGESTS = ("weights", "tokenizer", "rope", "architecture")
"""Fields that are compared by digest."""

GEOMETRY = ("num_hidden_layers", "num_attention_heads", "num_key_value_heads", "head_dim", "hidden_size", "vocab_size")
MANTISSA_BITS = {"float32": 24, "float16": 11, "bfloat16": 8}
LEAST_DIGITS = 16
_OTHERS_MODEL = "Use the model that recorded the session"
_SPELLING = "the same in another spelling"
_ASKING = f"{_OTHERS_MODEL}, or ask for other weights, which is then measured"


@dataclass(frozen=True, slots=True)
class Identity:
    """What a cache has to match.

    Attributes:
        fingerprint: Of the model; digests may be the first digits alone, and those of one side decide then.
        config: Its configuration; None where only digests are known.
        layer_kinds: Kind of each layer; None likewise.
        dtype: Data type of the cache; None likewise.
        adapters: Names of active adapters, none for none; None where it is not known, as of recorded sessions.
    """

    fingerprint: ModelFingerprint
    config: Mapping[str, Any] | None = None
    layer_kinds: tuple[str, ...] | None = None
    dtype: str | None = None
    adapters: tuple[str, ...] | None = None

    @classmethod
    def of_origin(cls, origin: Origin) -> Identity:
        """Return that of a recorded session's model."""
        return cls(origin.fingerprint, origin.config, origin.layer_kinds, origin.dtype)

    @classmethod
    def of_model(
        cls, model: CausalLM, tokenizer: Tokenizer | None = None, recorded: Identity | None = None
    ) -> Identity:
        """Return that of a model at hand.

        Args:
            model: The model.
            tokenizer: Its tokenizer.
            recorded: What it is to be compared with: older files name the weights as they lay in memory, not as they
                are stored.
        """
        kinds, dtype, found = layer_kinds(new_cache(model)), str(model.dtype).removeprefix("torch."), None
        mine = fingerprint(model, tokenizer)
        if recorded is not None and not _alike(recorded.fingerprint.weights, mine.weights):
            found = loaded_weights_digest(model)
        if found is not None and recorded is not None and _alike(recorded.fingerprint.weights, found):
            mine = replace(mine, weights=found)
        return cls(mine, config_json(model), kinds, dtype, _adapters(model))

    @classmethod
    def of_file(cls, path: PathLike) -> Identity:
        """Return what the header of a `.kvz` file tells: digests alone; raises as `read_header`."""
        try:
            return cls(ModelFingerprint.from_json(read_header(path).model))
        except (KeyError, ValueError) as error:
            raise InputError("the file does not say which model it is of", _OTHERS_MODEL, path=path) from error


@dataclass(frozen=True, slots=True)
class Field:
    """One thing that was compared.

    Attributes:
        name: weights, tokenizer, rope, layer kinds, geometry, architecture, dtype or adapter.
        verdict: "allowed", "degraded" or "refused".
        recorded: What the session was recorded with, short; "" where it is not known.
        at_hand: What is to go on from it.
        what: What is lost, or why; "" where both are the same.
    """

    name: str
    verdict: str
    recorded: str = ""
    at_hand: str = ""
    what: str = ""


@dataclass(frozen=True, slots=True)
class Compatibility:
    """What `compare` found.

    Attributes:
        fields: All of them, in a fixed order.
    """

    fields: tuple[Field, ...]

    @property
    def verdict(self) -> str:
        """The worst verdict of all."""
        return max((one.verdict for one in self.fields), key=VERDICTS.index)

    def to_json(self) -> dict[str, Any]:
        """Return the same, JSON-able."""
        return {"verdict": self.verdict, "fields": [asdict(one) for one in self.fields]}

    def require(self) -> None:
        """Raise `MismatchError` naming the first field that is refused."""
        for one in self.fields:
            if one.verdict == REFUSED:
                asked = one.name in ("weights", "adapter", "tokenizer")
                remedy = _ASKING if asked else f"{_OTHERS_MODEL}: {one.what}" if one.what else _OTHERS_MODEL
                raise MismatchError(f"the model's {one.name}", one.recorded, one.at_hand, remedy)


def compare(recorded: Identity, at_hand: Identity, *, other_weights: bool = False) -> Compatibility:
    """Compare what recorded a session with what is to go on from it.

    Args:
        recorded: The former.
        at_hand: The latter.
        other_weights: Whether the user asks for weights, adapters and a tokenizer that differ; they are then degraded
            where the rest is the same.
    """
    return Compatibility(tuple(_fields(recorded, at_hand, DEGRADED if other_weights else REFUSED)))


def _fields(recorded: Identity, at_hand: Identity, differing: str) -> Iterator[Field]:
    ours, theirs = recorded.fingerprint, at_hand.fingerprint
    same_weights, lost = _alike(ours.weights, theirs.weights), "the cache is another model's: answers drift from either"
    yield _by_digest("weights", ours.weights, theirs.weights, differing, lost)
    yield _tokenizer(ours.tokenizer, theirs.tokenizer, differing)
    architecture = _architecture(recorded, at_hand)
    turned = _alike(ours.rope, theirs.rope) or (architecture.verdict == ALLOWED and _as_configured(recorded, at_hand))
    yield (
        Field("rope", ALLOWED) if turned else _differs("rope", ours.rope[:16], theirs.rope[:16], "keys turn otherwise")
    )
    yield _layer_kinds(recorded.layer_kinds, at_hand.layer_kinds)
    yield _geometry(recorded.config, at_hand.config)
    yield architecture
    yield _dtype(recorded.dtype, at_hand.dtype)
    yield _adapter(recorded.adapters, at_hand.adapters, same_weights, differing)


def _alike(ours: str, theirs: str) -> bool:
    """Compare digests of which one may be the first digits of itself alone."""
    count = min(len(ours), len(theirs))
    return ours[:count] == theirs[:count] and (count >= LEAST_DIGITS or ours == theirs)


def _by_digest(name: str, ours: str, theirs: str, verdict: str, lost: str) -> Field:
    same = _alike(ours, theirs)
    return Field(name, ALLOWED if same else verdict, ours[:16], theirs[:16], "" if same else lost)


def _differs(name: str, ours: str, theirs: str, what: str) -> Field:
    return Field(name, REFUSED, ours, theirs, what)


def _tokenizer(ours: str | None, theirs: str | None, verdict: str) -> Field:
    if ours is None or theirs is None:
        return Field("tokenizer", ALLOWED, (ours or "")[:16], (theirs or "")[:16], "not known on both sides")
    return _by_digest(
        "tokenizer", ours, theirs, verdict, "what is said next is split by other rules than what was said"
    )


def _architecture(recorded: Identity, at_hand: Identity) -> Field:
    """Compare configurations by what they mean; `Architecture` says how."""
    name, ours, theirs = "architecture", recorded.fingerprint.config, at_hand.fingerprint.config
    if _alike(ours, theirs):
        return Field(name, ALLOWED, ours[:16], theirs[:16])
    if recorded.config is None or at_hand.config is None:
        return _differs(name, ours[:16], theirs[:16], "the configurations differ, and one is known by its digest alone")
    try:
        Architecture(recorded.config, "").require_same(Architecture(at_hand.config, ""))
    except MismatchError as error:
        return _differs(name, error.expected, error.found, f"they differ in {error.part}")
    return Field(name, ALLOWED, ours[:16], theirs[:16], _SPELLING)


def _as_configured(*sides: Identity) -> bool:
    """Tell whether models rotate as their configurations say, which mean the same."""
    try:
        return all(
            side.config is not None and side.fingerprint.rope == configured_rope_digest(side.config) for side in sides
        )
    except InputError:
        return False


def _layer_kinds(ours: tuple[str, ...] | None, theirs: tuple[str, ...] | None) -> Field:
    if ours is None or theirs is None:
        return Field("layer kinds", ALLOWED, what="not known on both sides; the architecture tells them")
    same, short = ours == theirs, (_counted(ours), _counted(theirs))
    return (
        Field("layer kinds", ALLOWED, *short) if same else _differs("layer kinds", *short, "layers hold other tokens")
    )


def _counted(kinds: tuple[str, ...]) -> str:
    return ", ".join(f"{kinds.count(kind)} {kind}" for kind in sorted(set(kinds)))


def _geometry(ours: Mapping[str, Any] | None, theirs: Mapping[str, Any] | None) -> Field:
    if ours is None or theirs is None:
        return Field("geometry", ALLOWED, what="not known on both sides; the architecture tells it")
    mine, other = _sizes(ours), _sizes(theirs)
    odd = [name for name in GEOMETRY if mine[name] != other[name]]
    if not odd:
        return Field("geometry", ALLOWED)
    told = [", ".join(f"{name} {side[name]}" for name in odd) for side in (mine, other)]
    return _differs("geometry", told[0], told[1], "keys and values are of other shapes or ids of other tokens")


def _sizes(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the sizes of a configuration by their common names, whatever its family calls them."""
    try:
        parsed: Any = parse_config(json.dumps(dict(config), sort_keys=True, default=str))
    except InputError:  # of a family that this version does not know: names as they stand
        return {name: config.get(name) for name in GEOMETRY}
    return {name: getattr(parsed, name, None) for name in GEOMETRY}


def _dtype(ours: str | None, theirs: str | None) -> Field:
    if ours is None or theirs is None or ours == theirs:
        return Field("dtype", ALLOWED, ours or "", theirs or "")
    here, there = MANTISSA_BITS.get(ours, 0), MANTISSA_BITS.get(theirs, 0)
    lost = [f"values keep {there} of {here} significant bits"] if there < here else []
    lost += ["values beyond 65,504 overflow"] if theirs == "float16" else []
    lost.append("predictions differ by rounding, and the session cannot be appended to in this type")
    return Field("dtype", DEGRADED, ours, theirs, "; ".join(lost))


def _adapter(ours: tuple[str, ...] | None, theirs: tuple[str, ...] | None, same_weights: bool, differing: str) -> Field:
    told = _listed(ours), _listed(theirs)
    if same_weights:
        return Field("adapter", ALLOWED, *told, "" if ours == theirs else "told by the digest of the weights")
    if ours is not None and theirs is not None and ours != theirs:
        return Field("adapter", differing, *told, "the cache was computed through other adapters")
    if theirs and ours is None:
        return Field("adapter", differing, *told, "an adapter is active, and the weights are not those that recorded")
    return Field("adapter", ALLOWED, *told)


def _listed(names: tuple[str, ...] | None) -> str:
    return "" if names is None else ", ".join(names) or "none"


def _adapters(model: Any) -> tuple[str, ...]:
    """Return the names of a model's active adapters, as PEFT and transformers keep them."""
    if not getattr(model, "peft_config", None):
        return ()
    active = getattr(model, "active_adapters", None)
    found = active() if callable(active) else active
    return tuple(sorted([found] if isinstance(found, str) else map(str, found or model.peft_config)))
