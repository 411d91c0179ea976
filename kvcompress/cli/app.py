"""The `kvcompress` command: registers the sub-commands and turns our errors into one line and exit status 1."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from kvcompress import __version__
from kvcompress.cli.calibrate import calibrate
from kvcompress.cli.codecs import codecs
from kvcompress.cli.compat import compat
from kvcompress.cli.console import loads_models, tolerant_streams
from kvcompress.cli.decode import decode
from kvcompress.cli.doctor import doctor
from kvcompress.cli.encode import encode
from kvcompress.cli.extras import WithExtras
from kvcompress.cli.fit import fit
from kvcompress.cli.harvest import harvest
from kvcompress.cli.inspect import inspect
from kvcompress.cli.record import record
from kvcompress.cli.report import report
from kvcompress.cli.resume import resume
from kvcompress.cli.stop import Stop
from kvcompress.cli.store import store
from kvcompress.cli.verify import verify
from kvcompress.errors import KVCompressError, shown

app = typer.Typer(cls=WithExtras, no_args_is_help=True, pretty_exceptions_enable=False)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"kvcompress {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """Store, move and resume the KV cache of a transformer session in a file many times smaller."""


PANELS = {
    "Sessions": (record, encode, decode, resume, inspect, verify, compat, report),
    "Codecs": (harvest, fit, calibrate),
    "Installation": (doctor,),
}

for _panel, _commands in PANELS.items():
    for _command in _commands:
        app.command(rich_help_panel=_panel)(loads_models(_command))
app.add_typer(codecs, name="codecs", rich_help_panel="Codecs")
app.add_typer(store, name="store", rich_help_panel="Sessions")


def main() -> None:
    """Run the command line."""
    stopped = Stop()
    try:
        tolerant_streams()
        app()
    except KVCompressError as error:
        stopped.end_if_set()
        sys.stderr.write(f"error: {shown(error)}\n")
        sys.exit(1)
    except OSError as error:  # a full disk or a closed directory where a library writes
        stopped.end_if_set()
        where = f"{error.filename}: " if error.filename else ""
        told = f"{where}{(error.strerror or str(error)).lower()}. Nothing is half-written."
        sys.stderr.write(f"error: {shown(told)}\n")
        sys.exit(1)
    except KeyboardInterrupt:
        Stop.end()
    except BaseException as error:
        if isinstance(error, SystemExit) and error.code in (None, 0):
            raise
        stopped.end_if_set()  # typer ends without a word, and transformers makes another error of it while it imports
        raise
