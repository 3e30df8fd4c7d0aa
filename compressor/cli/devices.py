"""Remote devices on the command line: ``bench --on``, and ``devices clean``."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from compressor.cli.files import check_file, write_text
from compressor.cli.options import DevicesOption, OnOption
from targets.errors import ToolkitError

if TYPE_CHECKING:
    from compressor.devices.inventory import Device
    from targets.bench import BenchReport

__all__ = ["app", "bench_on_devices", "given_options"]

LOCAL = ("on", "devices", "output")
"""Options of ``bench`` that are for this machine."""

app = typer.Typer(help="What bench --on keeps on remote devices.", no_args_is_help=True)


@app.callback()
def _group() -> None:
    """Make ``clean`` a command of its own, though it is the only one."""


@app.command()
def clean(on: OnOption = None, devices: DevicesOption = None) -> None:
    """Remove the work folders on devices, with the environments that were made there."""
    from compressor.devices.fleet import clean_devices
    from compressor.devices.inventory import select_devices

    cleaned = clean_devices(select_devices(on or (), devices))
    for name, found in cleaned.items():
        if isinstance(found, ToolkitError):
            _complain(name, found)
        else:
            typer.echo(f"{name}: removed {found}")
    failures = [each for each in cleaned.values() if isinstance(each, ToolkitError)]
    raise typer.Exit(failures[0].exit_code if failures else 0)


def bench_on_devices(
    context: typer.Context,
    bundles: Sequence[Path],
    on: Sequence[str] | None,
    devices: Path | None,
    output: Path | None,
) -> bool:
    """Measure bundles on remote devices, print a table for each, and write the raw times.

    Args:
        context: The command, whose options the devices get as they were given.
        bundles: What to measure.
        on: Addresses, or names of the devices file.
        devices: The devices file.
        output: Where to write the results of all devices, as JSON.

    Returns:
        Whether every device measured every bundle.
    """
    from compressor.cli.bench import show_bench
    from compressor.devices.fleet import bench_devices
    from compressor.devices.inventory import select_devices
    from compressor.devices.session import Job
    from targets.bundle import Bundle
    from targets.workloads import read_texts

    # It warns of each write to a connection that is gone; the error of the device says so once.
    logging.getLogger("asyncio").setLevel(logging.ERROR)
    check_file(output)
    if context.params.get("texts") is not None:
        read_texts(context.params["texts"])  # what is wrong with the file is told before any login
    selected = select_devices(on or (), devices)
    job = Job(
        bundles={str(path): Bundle.open(path) for path in bundles},
        options=tuple(given_options(context, leave_out=LOCAL)),
        threads=_most(context.params.get("threads")),
    )
    results = bench_devices(selected, job, lambda name, line: typer.echo(f"  {name}: {line}"))
    for name, found in results.items():
        if isinstance(found, ToolkitError):
            _complain(name, found)
        else:
            typer.echo(f"\n{name}")
            show_bench(found)
    if output is not None:
        document = {"devices": dict(_documents(selected, results))}
        write_text(output, json.dumps(document, indent=1) + "\n")
    return all(not isinstance(each, ToolkitError) and each.complete for each in results.values())


def given_options(context: typer.Context, *, leave_out: Sequence[str]) -> Iterator[str | Path]:
    """The options of a command as they stood on its command line, but with their long names.

    A path comes as a path, so that the file can be brought along.

    Args:
        context: The command.
        leave_out: Names of parameters that are not wanted.
    """
    for parameter in context.command.params:
        name = str(parameter.name)
        source = context.get_parameter_source(name)
        if parameter.param_type_name != "option" or name in leave_out:
            continue
        if source is None or source.name != "COMMANDLINE":
            continue
        value = context.params[name]
        if isinstance(value, bool):
            yield max(parameter.opts if value else parameter.secondary_opts, key=len)
            continue
        for each in value if isinstance(value, list | tuple) else (value,):
            yield max(parameter.opts, key=len)
            yield each if isinstance(each, Path) else str(each)


def _documents(
    devices: Mapping[str, Device], results: Mapping[str, BenchReport | ToolkitError]
) -> Iterator[tuple[str, dict[str, Any]]]:
    from targets.protocol import ErrorRecord

    for name, found in results.items():
        address = {"address": str(devices[name].address)}
        if isinstance(found, ToolkitError):
            yield name, address | {"error": ErrorRecord.of(found).model_dump(mode="json")}
        else:
            yield name, address | {"report": found.model_dump(mode="json")}


def _most(threads: Any) -> int:  # what an option may hold
    """The largest of the thread counts asked for."""
    return max(threads, default=1) if isinstance(threads, list | tuple) else int(threads or 1)


def _complain(name: str, error: ToolkitError) -> None:
    typer.echo(f"\nerror: {name}: {error}", err=True)
