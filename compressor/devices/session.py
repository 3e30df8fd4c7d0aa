"""One benchmark on one device, from the connection to the result."""

from __future__ import annotations

import asyncio
import contextlib
import re
from collections.abc import AsyncIterator, Callable, Collection, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from pydantic import ValidationError

from compressor.devices.connection import connect, printable
from compressor.devices.copying import (
    BLOCK,
    Copied,
    bundle_key,
    copy_bundle,
    copy_file,
    make_folder,
)
from compressor.devices.failures import talking
from compressor.devices.interpreter import check_interpreter, prepare_interpreter
from compressor.devices.inventory import Device
from compressor.devices.workplace import CLEAN_UP_S, Workplace, occupy
from compressor.errors import DeviceError
from targets import registry
from targets.bench import BenchReport
from targets.bundle import Bundle

__all__ = ["Job", "bench_on"]

MAX_RESULT = 256 * 2**20
"""Bytes that a result may have; what comes from a device is not trusted to be small."""
RESULT = "result.json"
LINKS = "bundles"

Say = Callable[[str], None]


@dataclass(frozen=True)
class Job:
    """What to measure.

    Attributes:
        bundles: As the user wrote it -> the opened bundle.
        options: Options of ``compressor bench``; a path stands for a file of this machine.
        threads: The most CPU threads that the options ask for.
    """

    bundles: Mapping[str, Bundle]
    options: tuple[str | Path, ...] = ()
    threads: int = 1


async def bench_on(device: Device, job: Job, wheel: Path, say: Say) -> BenchReport:
    """Run ``compressor bench`` on a device, with its bundles side by side there.

    Args:
        device: Where.
        job: What to measure.
        wheel: The wheel of this package.
        say: Is told of each step.

    Returns:
        What ``compressor bench --output`` wrote there, with the bundles named as in the job.

    Raises:
        DeviceError: The device cannot be reached, cannot do it, or was lost on the way. What was
            started there has ended or ends soon, and nothing but the environment stays, unless the
            connection was lost: then copied bundles stay for the next try.
    """
    _check_threads(device, job)
    try:
        async with asyncio.timeout(device.timeout_s), connect(device) as connection:
            version = await check_interpreter(connection)
            python = device.python or device.base_python
            async with occupy(connection, python, say) as place:
                extras = {device.runtime} if device.runtime else _extras(job)
                start = await prepare_interpreter(place, wheel, sorted(extras), version, say)
                async with _bundles(place, job, say) as names:
                    await _verify(place, start, names)
                    say("measures")
                    return await _bench(place, start, job, names)
    except TimeoutError as error:
        raise DeviceError(
            "the device took too long",
            where=device.address,
            given=f"more than {device.timeout_s:g} s",
            fix="measure less, or raise timeout_s in the devices file",
        ) from error


def _extras(job: Job) -> set[str]:
    """The extras that bring the runtimes of the bundles."""
    return {registry.get(bundle.manifest.target).extra for bundle in job.bundles.values()}


@asynccontextmanager
async def _bundles(place: Workplace, job: Job, say: Say) -> AsyncIterator[dict[str, str]]:
    """Copy the bundles, and remove them at the end.

    Yields:
        Name of each bundle in the folder of the run -> as the user wrote it.
    """
    names: dict[str, str] = {}
    folders: list[PurePosixPath] = []
    copied = Copied()
    sftp = await place.connection.sftp()
    await make_folder(place.connection, place.run_folder / LINKS)
    try:
        for given, bundle in job.bundles.items():
            folder = place.root / "bundles" / bundle_key(bundle)
            folders.append(folder)
            copied += await copy_bundle(place.connection, bundle, folder)
            name = _link_name(Path(given), names)
            names[name] = given
            with talking(place.connection.device, f"linking {name}"):
                await sftp.symlink(str(folder), str(place.run_folder / name))
        say(str(copied))
        yield names
    finally:
        # Over a lost connection nothing can be removed: what was copied is there for the next try.
        with contextlib.suppress(DeviceError, TimeoutError):
            async with asyncio.timeout(CLEAN_UP_S):
                await place.remove(*folders)


def _link_name(bundle: Path, taken: Collection[str]) -> str:
    """A name for a bundle that a person knows again, and that no other one has."""
    word = re.sub(r"[^A-Za-z0-9._]", "-", bundle.resolve().name).strip("-.") or "bundle"
    names = (f"{LINKS}/{word}{suffix}" for suffix in ("", *(f"-{n}" for n in range(2, 1000))))
    return next(name for name in names if name not in taken)


async def _verify(place: Workplace, start: Sequence[str], names: Mapping[str, str]) -> None:
    for name, given in names.items():
        command = (*start, "-m", "compressor", "verify", name)
        done = await place.run(command, doing=f"verifying {given}", cwd=place.run_folder)
        if done.code:
            raise DeviceError(
                "the copy of a bundle on the device is not intact",
                where=f"{place.connection.device.address}, {given}",
                given=done.last_words.replace("\n", "; "),
                fix="run the command again: it copies the bundle anew",
            )


async def _bench(
    place: Workplace, start: Sequence[str], job: Job, names: Mapping[str, str]
) -> BenchReport:
    options = [await _option(place, number, each) for number, each in enumerate(job.options)]
    done = await place.run(
        (
            *(*start, "-m", "compressor", "bench", *options),
            *("--output", RESULT, "--", *names),
        ),
        doing="measuring",
        cwd=place.run_folder,
    )
    text = await _fetch(place, place.run_folder / RESULT)
    if text is None:
        raise DeviceError(
            "the benchmark failed on the device",
            where=place.connection.device.address,
            given=done.last_words.replace("\n", "; ").removeprefix("error: "),
            fix="change what the message from the device names",
        )
    try:
        report = BenchReport.model_validate_json(text)
        entries = [
            each.model_copy(update={"bundle": names[each.bundle]}) for each in report.entries
        ]
    except (ValidationError, KeyError) as error:
        raise DeviceError(
            "the result of the device cannot be read",
            where=place.connection.device.address,
            given=printable(str(error)),
            fix="check the device: another program may write into its work folder",
        ) from error
    return report.model_copy(update={"entries": tuple(entries)})


async def _option(place: Workplace, number: int, option: str | Path) -> str:
    """An option as the device takes it; a file is copied there first."""
    if isinstance(option, str):
        return option
    folder = place.run_folder / "inputs" / str(number)
    await make_folder(place.connection, folder)
    await copy_file(place.connection, option, folder / option.name)
    return str(folder / option.name)


async def _fetch(place: Workplace, path: PurePosixPath) -> bytes | None:
    """The content of a small file of the device; None if there is no such file."""
    import asyncssh

    sftp = await place.connection.sftp()
    with talking(place.connection.device, f"fetching {path.name}"):
        try:
            size = (await sftp.stat(str(path))).size or 0
        except asyncssh.SFTPNoSuchFile:
            return None
        if size > MAX_RESULT:
            raise DeviceError(
                "the result of the device is too large",
                where=f"{place.connection.device.address}, {path}",
                given=f"{size / 1e6:.0f} MB",
                fix="measure less at a time",
            )
        content = bytearray()
        async with sftp.open(str(path), "rb", encoding=None, block_size=0) as stream:
            while len(content) < size and (block := await stream.read(BLOCK)):
                assert isinstance(block, bytes)  # there is no encoding
                content += block
        return bytes(content)


def _check_threads(device: Device, job: Job) -> None:
    if device.threads is not None and job.threads > device.threads:
        raise DeviceError(
            "more threads than the device allows",
            where=device.address,
            given=f"--threads {job.threads}",
            fix=f"use at most {device.threads}, or raise threads in the devices file",
        )
