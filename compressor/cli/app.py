"""The command tree, and how errors become messages and exit codes."""

from __future__ import annotations

import sys
import traceback
from typing import Annotated

import typer

from compressor import distributed, interruption
from compressor.cli import (
    auto,
    build,
    device,
    devices,
    explain,
    gate,
    inspect,
    package,
    profile,
    report,
    runs,
    search,
    track,
)
from compressor.interruption import INTERRUPTED, TERMINATED
from targets.errors import ToolkitError, is_disk_full

__all__ = ["app", "main"]

BUG = 1
STORAGE = 8

INTERRUPTED_MESSAGE = "interrupted; finished work is kept, and the same command resumes from there"

app = typer.Typer(
    name="compressor",
    help="Compress fine-tuned models for the hardware they will run on, and measure the result.",
    epilog="Exit codes: 0 bundles exist and meet the budget, 2 command line, 3 recipe, data or "
    "checkpoint, 4 a pass failed, 5 budget not met, 6 target, bundle or device, 7 missing "
    "library, 8 run store, 9 gate on a noisy machine, 10 tracking, 130 or 143 interrupted, "
    "1 a bug.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _version(show: bool) -> None:
    if show:
        import importlib.metadata

        typer.echo(importlib.metadata.version("compressor"))
        raise typer.Exit


@app.callback()
def _options(
    debug: Annotated[bool, typer.Option(help="Show the traceback of an error.")] = False,
    version: Annotated[
        bool,
        typer.Option("--version", callback=_version, is_eager=True, help="Print the version."),
    ] = False,
) -> None:
    """Options of every command; ``main`` reads ``--debug`` itself."""


build.add_commands(app)
auto.add_commands(app)
search.add_commands(app)
device.add_commands(app)
gate.add_commands(app)
track.add_commands(app)
package.add_commands(app)
profile.add_commands(app)
report.add_commands(app)
explain.add_commands(app)
inspect.add_commands(app)
app.add_typer(devices.app, name="devices")
app.add_typer(runs.app, name="runs")


def main(arguments: list[str] | None = None) -> None:
    """Run the command line and leave with its exit code."""
    arguments = sys.argv[1:] if arguments is None else arguments
    debug = "--debug" in arguments
    if distributed.is_follower():
        distributed.follow(debug=debug)
    with distributed.leading():
        _run(arguments, debug)


def _run(arguments: list[str], debug: bool) -> None:
    # --debug may stand anywhere: it is wanted after a command has failed.
    rest = [each for each in arguments if each != "--debug"]
    try:
        with interruption.remembered():
            app(args=rest, prog_name="compressor", standalone_mode=True)
    except ToolkitError as error:
        _fail_if_interrupted(debug)
        _fail(str(error), error.exit_code, debug)
    except (KeyboardInterrupt, typer.Abort):
        _fail(INTERRUPTED_MESSAGE, INTERRUPTED, debug)
    except SystemExit as leaving:
        if leaving.code in (INTERRUPTED, TERMINATED):  # typer turns Ctrl-C into this
            _fail(INTERRUPTED_MESSAGE, int(leaving.code), debug)
        raise
    except Exception as error:  # the last resort: a bug must not look like a verdict
        _fail_if_interrupted(debug)
        if is_disk_full(error):
            _fail(f"the disk is full\n  given: {error}\n  fix:   free some space", STORAGE, debug)
        _fail(
            f"unexpected {type(error).__name__}: {error}\n"
            "  fix:   this is a bug; run again with --debug and report what it prints",
            BUG,
            debug,
        )


def _fail_if_interrupted(debug: bool) -> None:
    """An error after an interruption is what some library made of it."""
    code = interruption.asked()
    if code is not None:
        _fail(INTERRUPTED_MESSAGE, code, debug)


def _fail(message: str, code: int, debug: bool) -> None:
    if debug:
        traceback.print_exc()
    typer.echo(f"error: {message}", err=True)
    sys.exit(code)
