"""`kvcompress store`: what a store and its sessions are, without a model. Nothing here imports torch but `verify`."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from kvcompress.cli.console import JsonOption, show
from kvcompress.cli.store_common import AtOption, SessionArgument, StoreArgument, opened, show_entry, told

if TYPE_CHECKING:
    from kvcompress.store.log import Entry, Verdict
    from kvcompress.store.session import StoredSession

MOST_LINES = 20


def list_sessions(store: StoreArgument, as_json: JsonOption = False) -> None:
    """List the sessions."""
    with opened(store) as found:
        sessions = found.list()
    if as_json:
        show({"sessions": [one.to_json() for one in sessions]}, as_json=True)
        return
    from kvcompress.report.terminal import print_table

    if not sessions:
        sys.stdout.write("the store has no sessions\n")
        return
    rows = [(one.name, f"{one.tokens:,}", f"{one.entries:,}", _when(one.used), one.anchor) for one in sessions]
    print_table(("session", "tokens", "entries", "used", "anchor"), rows, numbers=(1, 2))


def log(
    store: StoreArgument,
    session: SessionArgument,
    entries: Annotated[int, typer.Option(help="Entries to print, the newest first; 0 prints all.", min=0)] = MOST_LINES,
    as_json: JsonOption = False,
) -> None:
    """Print the log of a session, the newest entry first."""
    from itertools import islice

    with opened(store) as found:
        held = found.session(session)
        rows = list(islice(held.entries(newest_first=True), entries or None))
        names = held.names()
        count = len(held)
    if as_json:
        show(
            {"session": session, "count": count, "names": names, "entries": [row.to_json() for row in rows]},
            as_json=True,
        )
        return
    from kvcompress.report.terminal import print_table

    lines = [
        (str(row.number), _when(float(row.context.get("time", 0))), row.kind, f"{row.end:,}", row.anchor, _said(row))
        for row in rows
    ]
    print_table(("entry", "time", "kind", "tokens", "anchor", "what"), lines, numbers=(0, 3))
    if len(rows) < count:
        sys.stdout.write(f"\n{count - len(rows):,} older entries; --entries 0 prints all\n")


def peek(store: StoreArgument, session: SessionArgument, as_json: JsonOption = False) -> None:
    """Print the last turn of the present state."""
    with opened(store) as found:
        show_entry(found.session(session).peek(), as_json=as_json, none="there is no turn")


def diff(
    store: StoreArgument,
    session: SessionArgument,
    other: Annotated[str, typer.Argument(help="Name of the other session, or of the same.", metavar="OTHER")],
    at: AtOption = None,
    other_at: Annotated[
        str | None,
        typer.Option(
            help="Name or number of an entry of the other one.", metavar="NAME|N", show_default="its present state"
        ),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Print how two states differ."""
    with opened(store) as found:
        differ = found.session(session).diff(found.session(other), at, other_at)
    sides = {"here": differ.here, "there": differ.there}
    facts: dict[str, Any] = {"shared_tokens": differ.shared_tokens, "shared_turns": differ.shared_turns}
    if as_json:
        show(facts | {side: [told(turn) for turn in turns] for side, turns in sides.items()}, as_json=True)
        return
    spoken = {
        side: f"{len(turns)} turns, entries {', '.join(str(one.number) for one in turns) or 'none'}"
        for side, turns in sides.items()
    }
    show(facts | spoken, as_json=False)


def stats(store: StoreArgument, as_json: JsonOption = False) -> None:
    """Print what the store takes on the disk and what has been written for it."""
    with opened(store) as found:
        facts = found.statistics().to_json() | {"settings": found.settings}
    if not as_json:
        settings = facts.pop("settings")
        facts |= {
            name: value for name, value in settings.items() if name in ("max_bytes", "evict", "segments") and value
        }
    show(facts, as_json=as_json)


def verify(
    store: StoreArgument,
    session: Annotated[
        str | None, typer.Argument(help="Name of the session.", metavar="SESSION", show_default="all sessions")
    ] = None,
    segments: Annotated[bool, typer.Option("--segments/--no-segments", help="Also read every segment.")] = True,
    seal: Annotated[
        Path | None, typer.Option(help="Also check the session against this seal.", show_default="none")
    ] = None,
    signer: Annotated[
        list[str] | None,
        typer.Option(metavar="KEY", help="Public key that must have signed the seal; repeat it.", show_default="any"),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Follow the chain of anchors and name the first bad entry. Exit status 1 if there is one."""
    from kvcompress.errors import InputError

    if (seal is not None and session is None) or (signer and seal is None):
        raise InputError("a seal is of one session, and a signer one of a seal", "Name SESSION and --seal FILE")
    with opened(store) as found:
        held = [found.session(session)] if session is not None else list(found)
        verdicts = {one.name: _verdict(one, segments, seal, signer) for one in held}
    if as_json:
        rows = {
            name: {"ok": one.ok, "entries": one.entries, "kind": one.kind, "bad": one.bad, "what": one.what}
            for name, one in verdicts.items()
        }
        show({"ok": all(one.ok for one in verdicts.values()), "sessions": rows}, as_json=True)
    else:
        show(
            {name: f"{one.entries} entries in order" if one.ok else one.what for name, one in verdicts.items()},
            as_json=False,
        )
    if not all(one.ok for one in verdicts.values()):
        raise typer.Exit(1)


def _verdict(session: StoredSession, segments: bool, seal: Path | None, signers: list[str] | None) -> Verdict:
    verdict = session.verify(segments=segments)
    if seal is None or not verdict.ok:
        return verdict
    from kvcompress.store.seal import Seal, verify_seal

    return verify_seal(session, Seal.load(seal), signers or None)


def _when(seconds: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(seconds))


def _said(entry: Entry) -> str:
    """Return in words what an entry says beside its kind."""
    context, said = entry.context, entry.context.get("said")
    if isinstance(said, dict) and "why" in said:
        return str(said["why"])
    for name in ("name", "to", "turns", "popped", "of", "why"):
        if name in context:
            return f"{name} {context[name]}" if name not in ("name", "why") else str(context[name])
    return ""
