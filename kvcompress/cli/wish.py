"""What `kvcompress encode` is asked for, checked before anything is loaded, and how it is fulfilled."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kvcompress.cli.console import progress_bar
from kvcompress.errors import InputError
from kvcompress.hub.bundled import DEFAULT_MODEL

if TYPE_CHECKING:
    from kvcompress.codec.tinyvae import TinyVAECodec
    from kvcompress.format.container import Encoded
    from kvcompress.rate.link import Choice
    from kvcompress.snapshot import KVSnapshot


@dataclass(frozen=True, slots=True)
class Wish:
    """The options of `kvcompress encode` that decide what the file holds; None where one was not given."""

    codec: str
    quality: str | None
    size_ratio: float | None
    max_kl_nats: float | None
    lossless: bool
    recompute_layers: int | None
    link_megabits: float | None
    model: str | None
    planned: bool = False
    other_weights: bool = False
    sessions: Path | None = None

    def check(self) -> None:
        """Raise `InputError` where options contradict each other or a number is impossible."""
        named = (self.quality is not None, self.size_ratio is not None, self.max_kl_nats is not None, self.lossless)
        if sum(named) > 1:
            raise InputError("name only one of --quality, --size-ratio, --max-kl and --lossless")
        if self.recompute_layers is not None and self.link_megabits is not None:
            raise InputError("--link chooses what --recompute-layers names", "Give only one of them")
        if self.lossless and (self.recompute_layers or self.link_megabits is not None):
            raise InputError("--lossless stores every layer", "Leave --recompute-layers and --link away")
        if self.recompute_layers is not None and self.recompute_layers < 0:
            raise InputError(f"{self.recompute_layers} layers cannot be recomputed", "Choose 0 or more")
        if self.planned and (self.recompute_layers or self.link_megabits is not None):
            raise InputError("a plan is of all layers", "Leave --recompute-layers and --link away, or the plan")
        self._check_other_weights()
        if self.model is not None and not self.runs_model:
            what = "--model needs --max-kl, --recompute-layers, --link, --allow-other-weights or a plan"
            raise InputError(what, "Without them no model is run")
        if self.max_kl_nats is not None:
            from kvcompress.rate.max_kl import require_bound

            require_bound(self.max_kl_nats)
        if self.link_megabits is not None:
            from kvcompress.rate.link import require_link

            require_link(self.link_megabits)

    def _check_other_weights(self) -> None:
        if self.sessions is not None and not self.other_weights:
            raise InputError("--sessions is what --allow-other-weights is measured on", "Give both or neither")
        if not self.other_weights:
            return
        if self.lossless or self.size_ratio is not None or self.planned:
            what = "--lossless" if self.lossless else "a plan" if self.planned else "--size-ratio"
            remedy = "Use --max-kl, or --quality with --sessions"
            raise InputError(f"{what} measures nothing, and --allow-other-weights takes nothing unmeasured", remedy)
        if self.max_kl_nats is not None and self.sessions is not None:
            raise InputError("--max-kl measures on the session itself", "Leave --sessions away")

    @property
    def runs_model(self) -> bool:
        """Whether a model is needed: to measure, or to see that it can recompute what the file leaves out."""
        dial = bool(self.recompute_layers) or self.link_megabits is not None
        return self.max_kl_nats is not None or dial or self.planned or self.other_weights


def fulfil(wish: Wish, snapshot: KVSnapshot) -> tuple[Encoded, Choice | None]:
    """Return the coded session, and how all points of the dial did where a link chose among them."""
    if wish.lossless:
        from kvcompress.codec.lossless import LosslessCodec

        return LosslessCodec().encode(snapshot), None
    codecs = _codecs(wish)
    if not (wish.runs_model or any(codec.recompute_layers for codec in codecs)):
        return _encoded(wish, codecs[0], snapshot), None
    from kvcompress.hf import load_model, recompute_with

    model, tokenizer = load_model(wish.model or DEFAULT_MODEL, snapshot.origin.dtype)
    for codec in codecs:
        codec.recompute = recompute_with(model, tokenizer)
    if wish.other_weights:
        codecs = [_adopted(wish, codec, model, tokenizer) for codec in codecs]
    if wish.link_megabits is None:
        return _encoded(wish, codecs[0], snapshot, model, tokenizer), None
    from kvcompress.rate.link import choose

    choice = choose(
        model,
        codecs,
        snapshot,
        lambda codec: _encoded(wish, codec, snapshot, model, tokenizer),
        wish.link_megabits,
    )
    return choice.encoded, choice


def _codecs(wish: Wish) -> list[TinyVAECodec]:
    """Return the codec that is asked for, or all at hand where a link chooses."""
    from kvcompress.codec.directory import load_codec
    from kvcompress.hub.bundled import recompute_choices
    from kvcompress.hub.places import find_codec

    if wish.link_megabits is None:
        return [load_codec(wish.codec, wish.recompute_layers)]
    return [load_codec(wish.codec, layers) for layers in recompute_choices(find_codec(wish.codec))]


def _adopted(wish: Wish, own: TinyVAECodec, model: Any, tokenizer: Any) -> TinyVAECodec:
    """Return a codec for the weights that recorded the session, measured with them where a quality word is asked."""
    from kvcompress.fit.adopt import adopt, measured

    codec = adopt(own, model, tokenizer)
    if wish.max_kl_nats is not None:
        return codec
    with progress_bar("measure") as progress:
        return measured(codec, model, tokenizer, wish.sessions, progress)


def _encoded(
    wish: Wish, codec: TinyVAECodec, snapshot: KVSnapshot, model: Any = None, tokenizer: Any = None
) -> Encoded:
    """Code a session with one codec."""
    from kvcompress.rate.targets import encode_at_quality, encode_at_size_ratio

    if wish.max_kl_nats is not None:
        from kvcompress.rate.max_kl import Race, hold_back

        tail = hold_back(model, snapshot, tokenizer)  # every refusal comes before the bar
        with progress_bar("encode") as progress:
            return Race(codec, model, snapshot, tail, wish.max_kl_nats, progress).winner()
    if wish.size_ratio is not None:
        return encode_at_size_ratio(codec, snapshot, wish.size_ratio)
    return encode_at_quality(codec, snapshot, wish.quality or "transparent")
