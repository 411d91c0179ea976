"""`kvcompress store`: make a store, let sessions grow, go back, branch and be forgotten."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from kvcompress.cli.console import CodecOption, JsonOption, show
from kvcompress.cli.store_common import (
    AtOption,
    LosslessOption,
    QualityOption,
    SessionArgument,
    StoreArgument,
    key_of,
    opened,
    show_entry,
)
from kvcompress.errors import InputError

if TYPE_CHECKING:
    from kvcompress.snapshot import KVSnapshot
    from kvcompress.store.session import StoredSession

EVICTION = "Evict"
NameArgument = Annotated[str, typer.Argument(help="Name of the checkpoint.", metavar="NAME", show_default=False)]


def init(
    store: StoreArgument,
    max_bytes: Annotated[
        str | None,
        typer.Option(
            metavar="SIZE", help="Never take more on the disk: 4GB, 512MB or a number.", show_default="no limit"
        ),
    ] = None,
    evict: Annotated[str, typer.Option(help="What makes room first: use (not used for longest) or age.")] = "use",
    segments: Annotated[
        str | None,
        typer.Option(metavar="ADDRESS", help="fsspec address where segments are to lie.", show_default="in the folder"),
    ] = None,
    new_key: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Encrypt the store with a new key, written here.", show_default="none"),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Make a store; with --key-file, --passphrase or a key in the environment an encrypted one."""
    from kvcompress.format.limits import parse_bytes
    from kvcompress.store.store import DATABASE

    if (store / DATABASE).is_file():
        raise InputError("there is a store already", "Choose another folder", path=store)
    limit = None if max_bytes is None else parse_bytes(max_bytes)
    if new_key is not None:
        from kvcompress.store.keys import StoreKey
        from kvcompress.store.store import Store

        key = StoreKey.generate()
        key.save(new_key)
        found = Store(store, create=True, max_bytes=limit, evict=evict, segments=segments, key=key)
        found.close()
    else:
        with opened(store, create=True, max_bytes=limit, evict=evict, segments=segments) as found:
            pass
    more = {"key": str(new_key)} if new_key is not None else {}
    show({"store": str(store), "max_bytes": limit, "encrypted": bool(found.digest_key), **more}, as_json=as_json)


def append(
    store: StoreArgument,
    session: SessionArgument,
    snapshot: Annotated[Path, typer.Argument(help="Raw snapshot, as `record` writes it.", metavar="FILE.safetensors")],
    quality: QualityOption = None,
    lossless: LosslessOption = False,
    codec: CodecOption = None,
    floor_model: Annotated[
        str | None,
        typer.Option(
            metavar="MODEL",
            help="Store as token ids what this model reads sooner than it is restored; measured once.",
            show_default="store all",
        ),
    ] = None,
    floor_tokens: Annotated[
        int | None,
        typer.Option(help="Store as token ids what is shorter, whatever was measured.", min=0, show_default="measured"),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Add what a snapshot holds beyond the session's present state; the session is made where it is missing."""
    from kvcompress.format.raw_snapshot import load_raw

    held = load_raw(snapshot)
    with opened(store, codec=codec) as found:
        talk = found.session(session, create=True)
        before = len(talk)
        floor = _floor(talk, held, floor_model, floor_tokens, quality)
        if floor is not None and not lossless:
            from kvcompress.store.floor import append_above

            entry = append_above(talk, held, floor, quality=quality)
        else:
            entry = talk.append(held, quality=quality, lossless=lossless)
        new = len(talk) - before
    show_entry(entry, as_json=as_json, new_entries=new)


def _floor(session: StoredSession, held: KVSnapshot, model: str | None, tokens: int | None, quality: str | None) -> Any:
    if tokens is None and model is None:
        return None
    from kvcompress.store.floor import Floor, floor_of

    if tokens is not None:
        return Floor.at(tokens)
    from kvcompress.hf import load_model

    assert model is not None
    return floor_of(session.store, load_model(model, held.origin.dtype)[0], held, quality=quality)


def checkpoint(store: StoreArgument, session: SessionArgument, name: NameArgument, as_json: JsonOption = False) -> None:
    """Give the present state a name; what is named stays."""
    with opened(store) as found:
        show_entry(found.session(session).checkpoint(name), as_json=as_json)


def forget(store: StoreArgument, session: SessionArgument, name: NameArgument, as_json: JsonOption = False) -> None:
    """Take a checkpoint's name away; what nothing else leads to goes with the next `gc`."""
    with opened(store) as found:
        show_entry(found.session(session).forget(name), as_json=as_json)


def rewind(
    store: StoreArgument,
    session: SessionArgument,
    to: Annotated[
        str | None, typer.Option(metavar="NAME|N", help="Name or number of an entry.", show_default="by --turns")
    ] = None,
    turns: Annotated[int | None, typer.Option(help="Turns to go back.", min=0, show_default="to --to")] = None,
    as_json: JsonOption = False,
) -> None:
    """Go back to an earlier state; the log keeps what came after it."""
    with opened(store) as found:
        show_entry(found.session(session).rewind(to, turns=turns), as_json=as_json)


def pop(store: StoreArgument, session: SessionArgument, as_json: JsonOption = False) -> None:
    """Take the last turn away and print it; the log keeps it, with a tombstone."""
    with opened(store) as found:
        show_entry(found.session(session).pop(), as_json=as_json, none="there is no turn")


def branch(
    store: StoreArgument,
    session: SessionArgument,
    name: Annotated[str, typer.Argument(help="Name of the new session.", metavar="NEW")],
    at: AtOption = None,
    as_json: JsonOption = False,
) -> None:
    """Make a session that goes on from a state of this one; nothing is copied."""
    with opened(store) as found:
        made = found.session(session).branch(name, at)
        show({"session": name, "of": session, "tokens": made.tokens}, as_json=as_json)


def remove(store: StoreArgument, session: SessionArgument, as_json: JsonOption = False) -> None:
    """Forget a session; what nothing else leads to goes with the next `gc`."""
    with opened(store) as found:
        found.remove(session)
    show({"removed": session}, as_json=as_json)


def gc(
    store: StoreArgument,
    keep_last: Annotated[
        int | None,
        typer.Option(help="Automatic checkpoints that each session keeps beside its names.", min=0, show_default="all"),
    ] = None,
    grace: Annotated[float, typer.Option(help="Seconds; what is younger stays.", min=0.0)] = 3600.0,
    max_bytes: Annotated[
        str | None,
        typer.Option(metavar="SIZE", help="Set the store's limit; 'none' lifts it.", show_default="as it is"),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Delete what nothing leads to, and make room where the store has a limit."""
    from dataclasses import asdict

    from kvcompress.format.limits import parse_bytes

    with opened(store) as found:
        if max_bytes is not None:
            evict = str(found.settings.get("evict", "use"))
            found.set_limit(None if max_bytes == "none" else parse_bytes(max_bytes), evict=evict)
        show(asdict(found.gc(grace_seconds=grace, keep_last=keep_last)), as_json=as_json)


def rekey(
    store: StoreArgument,
    new_key_file: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Existing key file of the new key.", show_default="none")
    ] = None,
    new_key: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Make a new key and write it here.", show_default="none")
    ] = None,
    new_passphrase: Annotated[bool, typer.Option("--new-passphrase", help="Ask for a new passphrase.")] = False,
    keyring_only: Annotated[
        bool, typer.Option("--keyring-only", help="Exchange the key at once, and encrypt nothing anew.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Give an encrypted store another key."""
    if sum((new_key_file is not None, new_key is not None, new_passphrase)) != 1:
        raise InputError("name one new key", "Use --new-key FILE, --new-key-file FILE or --new-passphrase")
    from kvcompress.store.keyring import rekey as exchange
    from kvcompress.store.keys import StoreKey

    with opened(store) as found:
        if not found.digest_key:  # before a key is written that nothing needs
            remedy = "Make an encrypted one and append its sessions there"
            raise InputError("the store is not encrypted, so it has no key to change", remedy, path=store)
        if new_key is not None:
            key = StoreKey.generate()
            key.save(new_key)
        else:
            named = key_of(new_key_file, new_passphrase, confirm=True)
            assert named is not None
            key = named
        count = exchange(found, key, everything=not keyring_only)
    show({"store": str(store), "encrypted_anew": count}, as_json=as_json)
