"""Several devices at the same time: what fails on one is its result, and the others go on."""

from __future__ import annotations

import asyncio
import functools
import tempfile
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import TypeVar

from compressor.devices.connection import connect, require_ssh
from compressor.devices.inventory import Device
from compressor.devices.session import Job, bench_on
from compressor.devices.workplace import remove_workplace
from compressor.wheel import make_wheel
from targets.bench import BenchReport
from targets.errors import ToolkitError

__all__ = ["bench_devices", "clean_devices"]

T = TypeVar("T")

Say = Callable[[str, str], None]
"""Called with the name of a device and a line on what is done there."""


def bench_devices(
    devices: Mapping[str, Device], job: Job, say: Say
) -> dict[str, BenchReport | ToolkitError]:
    """Measure on every device.

    Args:
        devices: Name -> device.
        job: What to measure.
        say: Is told of each step.

    Returns:
        Name -> what came back, or why nothing did.

    Raises:
        MissingLibraryError: The SSH library is not installed.
    """
    require_ssh()
    with tempfile.TemporaryDirectory(prefix="wheel-") as folder:
        wheel = make_wheel(Path(folder))

        async def bench(name: str) -> BenchReport:
            return await bench_on(devices[name], job, wheel, functools.partial(say, name))

        return asyncio.run(_all(devices, bench))


def clean_devices(devices: Mapping[str, Device]) -> dict[str, str | ToolkitError]:
    """Remove the work folder of every device, with its environments.

    Returns:
        Name -> the folder that was removed, or why it could not be.

    Raises:
        MissingLibraryError: The SSH library is not installed.
    """
    require_ssh()

    async def clean(name: str) -> str:
        async with connect(devices[name]) as connection:
            return str(await remove_workplace(connection))

    return asyncio.run(_all(devices, clean))


async def _all(
    devices: Mapping[str, Device], work: Callable[[str], Awaitable[T]]
) -> dict[str, T | ToolkitError]:
    async def one(name: str) -> T | ToolkitError:
        try:
            return await work(name)
        except ToolkitError as error:
            return error

    try:
        async with asyncio.TaskGroup() as group:
            tasks = {name: group.create_task(one(name)) for name in devices}
    except ExceptionGroup as failures:  # a bug: it is told as itself
        raise failures.exceptions[0] from failures
    return {name: task.result() for name, task in tasks.items()}
