"""`kvcompress store`: the group of commands about stored sessions."""

from __future__ import annotations

import typer

from kvcompress.cli import store_change, store_look, store_move, store_resume
from kvcompress.cli.console import loads_models
from kvcompress.cli.store_common import unlocking

GROW, STATES, KEEP, MOVE, TRUST = "Grow", "States", "Keep", "Move", "Trust"

store = typer.Typer(no_args_is_help=True, help=unlocking.__doc__)
store.callback()(unlocking)

for _name, _command, _panel in (
    ("init", store_change.init, GROW),
    ("append", store_change.append, GROW),
    ("resume", store_resume.resume, GROW),
    ("list", store_look.list_sessions, STATES),
    ("log", store_look.log, STATES),
    ("checkpoint", store_change.checkpoint, STATES),
    ("forget", store_change.forget, STATES),
    ("rewind", store_change.rewind, STATES),
    ("peek", store_look.peek, STATES),
    ("pop", store_change.pop, STATES),
    ("branch", store_change.branch, STATES),
    ("diff", store_look.diff, STATES),
    ("stats", store_look.stats, KEEP),
    ("gc", store_change.gc, KEEP),
    ("remove", store_change.remove, KEEP),
    ("export", store_move.export, MOVE),
    ("import", store_move.import_, MOVE),
    ("sync", store_move.sync, MOVE),
    ("verify", store_look.verify, TRUST),
    ("seal", store_move.seal, TRUST),
    ("provenance", store_move.provenance, TRUST),
    ("rekey", store_change.rekey, TRUST),
):
    store.command(_name, rich_help_panel=_panel)(loads_models(_command))
