"""`kvcompress store`: sessions that travel, and what vouches for them."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from kvcompress.cli.console import ForceOption, JsonOption, show
from kvcompress.cli.store_common import AtOption, SessionArgument, StoreArgument, opened, other_key
from kvcompress.errors import InputError

NewNameOption = Annotated[
    str | None, typer.Option("--as", metavar="NAME", help="What to call the session here.", show_default="as there")
]


def export(
    store: StoreArgument,
    session: SessionArgument,
    output: Annotated[Path, typer.Option("-o", "--output", help="File to write.")],
    force: ForceOption = False,
    as_json: JsonOption = False,
) -> None:
    """Write a session into one file that another store takes in; of an encrypted store it opens with the same key."""
    from kvcompress.store.portable import export_session

    with opened(store) as found:
        size = export_session(found.session(session), output, force=force)
    show({"output": str(output), "session": session, "file_bytes": size}, as_json=as_json)


def import_(
    store: StoreArgument,
    file: Annotated[Path, typer.Argument(help="File that `store export` wrote.", metavar="FILE", show_default=False)],
    name: NewNameOption = None,
    file_key: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Key file of an encrypted file.", show_default="the key of the store"),
    ] = None,
    file_passphrase: Annotated[
        bool, typer.Option("--file-passphrase", help="Ask for the passphrase of an encrypted file.")
    ] = False,
    readable: Annotated[
        bool, typer.Option("--readable", help="Take an encrypted session into a store that everybody can read.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Take a session out of a file: all of it, or nothing where anything in it was changed."""
    from kvcompress.store.portable import import_session

    with opened(store) as found:
        key = other_key(file_key, file_passphrase)
        show(import_session(found, file, name, key=key, readable=readable).to_json(), as_json=as_json)


def sync(
    store: StoreArgument,
    address: Annotated[
        str,
        typer.Argument(
            help="Folder or fsspec address, such as s3://bucket/place.", metavar="ADDRESS", show_default=False
        ),
    ],
    session: Annotated[
        list[str] | None,
        typer.Option("--session", help="Only this session; repeat it.", show_default="all that one side has"),
    ] = None,
    push: Annotated[bool, typer.Option("--push", help="Only send.")] = False,
    pull: Annotated[bool, typer.Option("--pull", help="Only fetch.")] = False,
    name: NewNameOption = None,
    workers: Annotated[int, typer.Option(help="Transfers at a time.", min=1, max=64)] = 8,
    place_key: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Key file of an encrypted place.", show_default="the key of the store"),
    ] = None,
    place_passphrase: Annotated[
        bool, typer.Option("--place-passphrase", help="Ask for the passphrase of an encrypted place.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Make sessions here and at an address equal; only what is missing goes over, and an interruption costs nothing."""
    from kvcompress.store.sync import BOTH, PULL, PUSH
    from kvcompress.store.sync import sync as synchronise

    if push and pull:
        raise InputError("--push and --pull exclude each other", "Leave both out to do both")
    direction = PUSH if push else PULL if pull or name is not None else BOTH
    with opened(store) as found:
        key = other_key(place_key, place_passphrase)
        done = synchronise(found, address, session, direction=direction, rename=name, workers=workers, key=key)
    if as_json:
        show({"sessions": [one.to_json() for one in done]}, as_json=True)
        return
    from kvcompress.report.terminal import print_table

    if not done:
        sys.stdout.write("there is nothing to synchronise\n")
        return
    rows = [
        (
            one.session,
            one.direction,
            str(one.entries),
            str(one.segments),
            str(one.present),
            f"{one.transferred_bytes:,}",
            f"{one.seconds:.2f} s",
            "-" if one.latency_seconds is None else f"{1000 * one.latency_seconds:.1f} ms",
            "-" if one.bytes_per_second is None else f"{one.bytes_per_second / 1e6:.2f} MB/s",
        )
        for one in done
    ]
    head = ("session", "direction", "entries", "segments", "there", "bytes", "time", "latency", "bandwidth")
    print_table(head, rows, numbers=range(2, 9))


def seal(
    store: StoreArgument,
    session: SessionArgument,
    output: Annotated[Path, typer.Option("-o", "--output", help="File to write.")] = Path("seal.json"),
    force: ForceOption = False,
    as_json: JsonOption = False,
) -> None:
    """Write a seal of the log as it is now, signed where --sign-with names a key; `store verify --seal` checks it."""
    from kvcompress.store.seal import seal as sealed_now

    with opened(store) as found:
        sealed = sealed_now(found.session(session))
    sealed.save(output, force=force)
    show(
        {"output": str(output), **(sealed.to_json() if as_json else {"count": sealed.count, "anchor": sealed.anchor})},
        as_json=as_json,
    )


def provenance(
    store: StoreArgument, session: SessionArgument, at: AtOption = None, as_json: JsonOption = False
) -> None:
    """Print where an entry comes from, as one record that a third party can check."""
    import json

    from kvcompress.store.provenance import provenance as record_of

    with opened(store) as found:
        record = record_of(found.session(session), at).to_json()
    if as_json:
        show(record, as_json=True)
        return
    show(
        {name: value if isinstance(value, str | int | float) else json.dumps(value) for name, value in record.items()},
        as_json=False,
    )
