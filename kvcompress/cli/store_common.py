"""What the sub-commands of `kvcompress store` share: which store, which session, and what opens it."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from kvcompress.cli.console import show
from kvcompress.errors import InputError

if TYPE_CHECKING:
    from kvcompress.hf.types import CausalLM, Tokenizer
    from kvcompress.snapshot import KVSnapshot
    from kvcompress.store.keys import StoreKey
    from kvcompress.store.log import Entry
    from kvcompress.store.store import Store

StoreArgument = Annotated[Path, typer.Argument(help="Folder of the store.", metavar="STORE", show_default=False)]
SessionArgument = Annotated[str, typer.Argument(help="Name of the session.", metavar="SESSION", show_default=False)]
AtOption = Annotated[
    str | None,
    typer.Option("--at", help="Name or number of an entry.", metavar="NAME|N", show_default="the present state"),
]
QualityOption = Annotated[
    str | None,
    typer.Option("--quality", help="transparent, high or usable.", show_default="transparent, unless --lossless"),
]
LosslessOption = Annotated[bool, typer.Option("--lossless", help="Store the identical bits.")]
KEY_VARIABLE = "KVCOMPRESS_STORE_KEY"


@dataclass(frozen=True, slots=True)
class Unlocking:
    """What the options of the group say of keys and trust."""

    key_file: Path | None = None
    passphrase: bool = False
    policy: Path | None = None
    signer: Path | None = None


_UNLOCKING: ContextVar[Unlocking | None] = ContextVar("kvcompress_store_unlocking", default=None)


def unlocking(
    key_file: Annotated[
        Path | None,
        typer.Option(help="Key file of an encrypted store.", show_default=f"the key in ${KEY_VARIABLE}, if it is set"),
    ] = None,
    passphrase: Annotated[
        bool, typer.Option("--passphrase", help="Ask for the passphrase of an encrypted store.")
    ] = False,
    trust_policy: Annotated[
        Path | None, typer.Option(help="Refuse what this file does not trust, TOML or JSON.", show_default="trust all")
    ] = None,
    sign_with: Annotated[
        Path | None, typer.Option(help="Sign what is added with this Ed25519 key, PEM.", show_default="unsigned")
    ] = None,
) -> None:
    """Sessions that grow turn by turn: append, go back, branch, check, move. These options stand before the command."""
    if key_file is not None and passphrase:
        raise InputError("a key file and a passphrase exclude each other", "Name one of them")
    _UNLOCKING.set(Unlocking(key_file, passphrase, trust_policy, sign_with))


def key_of(key_file: Path | None, passphrase: bool, *, confirm: bool = False) -> StoreKey | None:
    """Return the key that options or the environment name, None for none."""
    import os

    if key_file is None and not passphrase and KEY_VARIABLE not in os.environ:
        return None
    from kvcompress.store.keys import StoreKey

    if passphrase:
        if not sys.stdin.isatty():
            return StoreKey.from_passphrase(sys.stdin.readline().rstrip("\n"))
        return StoreKey.from_passphrase(typer.prompt("passphrase", hide_input=True, confirmation_prompt=confirm))
    return StoreKey.from_file(key_file) if key_file is not None else StoreKey.from_environment()


def other_key(key_file: Path | None, passphrase: bool) -> StoreKey | None:
    """Return the key that options name for a file or a place; None for that of the store."""
    if key_file is not None and passphrase:
        raise InputError("a key file and a passphrase exclude each other", "Name one of them")
    return key_of(key_file, passphrase) if key_file is not None or passphrase else None


@contextmanager
def opened(path: Path, **options: Any) -> Iterator[Store]:
    """Open a store with the key, the policy and the signer that the options of the group name."""
    from kvcompress.store.store import Store

    said = _UNLOCKING.get() or Unlocking()
    found: dict[str, Any] = {"key": key_of(said.key_file, said.passphrase, confirm=bool(options.get("create")))}
    if said.policy is not None:
        from kvcompress.store.policy import Policy

        found["policy"] = Policy.from_file(said.policy)
    if said.signer is not None:
        from kvcompress.store.signing import Signer

        found["signer"] = Signer.from_file(said.signer)
    with Store(path, **found, **options) as store:
        yield store


def told(entry: Entry | None) -> dict[str, Any]:
    """Return what is printed of an entry."""
    if entry is None:
        return {"entry": None}
    named = {"name": entry.name} if entry.name else {}
    return {
        "entry": entry.number,
        "kind": entry.kind,
        **named,
        "start": entry.start,
        "tokens": entry.end,
        "anchor": entry.anchor,
        "segment": entry.segment,
    }


def show_entry(entry: Entry | None, *, as_json: bool, none: str = "the session is empty", **more: Any) -> None:
    """Print an entry."""
    if entry is None and not as_json:
        sys.stdout.write(f"{none}\n")
        return
    show(told(entry) | more, as_json=as_json)


def grown_from(store: Path, name: str, model: CausalLM, tokenizer: Tokenizer, ids: list[int]) -> KVSnapshot | None:
    """Return the cache of tokens that a stored session begins, read on from there; None where they do not go on."""
    import torch

    from kvcompress.store.resume import grower

    with opened(store, create=True) as found:
        session = found.session(name, create=True)
        held = session.token_ids()
        if not 0 < len(held) < len(ids) or held.tolist() != ids[: len(held)]:
            return None
        return grower(model, tokenizer)(session.snapshot(model=model, tokenizer=tokenizer), torch.tensor(ids))


def append_to(store: Path, name: str, snapshot: KVSnapshot, quality: str | None, lossless: bool) -> dict[str, Any]:
    """Append to a stored session; return what is told of it."""
    with opened(store, create=True) as found:
        session = found.session(name, create=True)
        entry = session.append(snapshot, quality=quality, lossless=lossless)
        size = found.objects.size(entry.segment) if entry.segment else 0
    return {"store": str(store), "name": name, "entry": entry.number, "start": entry.start, "segment_bytes": size}
