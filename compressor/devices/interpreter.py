"""The interpreter that runs a benchmark on a device: a given one, or that of an environment."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path, PurePosixPath

from compressor.devices.connection import Connection
from compressor.devices.copying import make_folder
from compressor.devices.failures import talking
from compressor.devices.workplace import Workplace
from compressor.errors import DeviceError
from targets.bundle import hash_file

__all__ = ["check_interpreter", "prepare_interpreter"]

OLDEST = (3, 11)
PROBE = "import json, sys; print(json.dumps([*sys.version_info[:3], sys.executable]))"
COMPLETE = ".complete"
"""A file in a folder that was filled to the end."""


async def check_interpreter(connection: Connection) -> str:
    """Look at the interpreter of a device.

    Returns:
        Its version and path, for the key of an environment.

    Raises:
        DeviceError: There is none, or it is too old.
    """
    device = connection.device
    python = device.python or device.base_python
    setting = "python" if device.python else "base_python"
    oldest = ".".join(map(str, OLDEST))
    done = await connection.run((python, "-c", PROBE), doing="looking for Python")
    try:
        *version, path = json.loads(done.out.strip().splitlines()[-1])
    except (ValueError, IndexError, TypeError) as error:
        raise DeviceError(
            "the device has no such Python interpreter",
            where=device.address,
            given=f"{python}: {done.last_words}",
            fix=f"install Python {oldest} or newer there, or name an interpreter: "
            f"{setting} in the devices file",
        ) from error
    shown = ".".join(map(str, version))
    if tuple(version) < OLDEST:
        raise DeviceError(
            "the Python of the device is too old",
            where=device.address,
            given=f"{python} is Python {shown}",
            fix=f"name an interpreter of Python {oldest} or newer: {setting} in the devices file",
        )
    return f"{shown} {path}"


async def prepare_interpreter(
    place: Workplace,
    wheel: Path,
    extras: Sequence[str],
    version: str,
    say: Callable[[str], None],
) -> tuple[str, ...]:
    """Make sure that an interpreter on the device has this package.

    Args:
        place: The work folder.
        wheel: This package.
        extras: Those of its extras that are needed.
        version: What `check_interpreter` found.
        say: Is told what takes long.

    Returns:
        The start of a command line: an interpreter and what it needs in its environment.

    Raises:
        DeviceError: The environment cannot be made, or the given interpreter lacks libraries.
    """
    device = place.connection.device
    if device.python is not None:
        return await _given(place, device.python, wheel)
    what = [hash_file(wheel), sorted(extras), device.pip_options, device.base_python, version]
    key = hashlib.sha256(json.dumps(what).encode()).hexdigest()[:32]
    folder = place.root / "venvs" / key
    python = str(folder / "bin" / "python")
    if not await _is_complete(place, folder):
        say("makes an environment on the device")
        await make_folder(place.connection, folder.parent)
        await _make_venv(place, folder)
        copied = await place.file(wheel)
        await _install(place, python, f"{copied}[{','.join(sorted(extras))}]")
        await _complete(place, folder)
    return (python,)


async def _given(place: Workplace, python: str, wheel: Path) -> tuple[str, ...]:
    """Unpack the package beside a given interpreter, and see whether it starts."""
    folder = place.root / "packages" / hash_file(wheel)
    if not await _is_complete(place, folder):
        await make_folder(place.connection, folder)
        copied = await place.file(wheel)
        unpack = (python, "-m", "zipfile", "-e", str(copied), str(folder))
        done = await place.run(unpack, doing="unpacking the package")
        if done.code:
            raise DeviceError(
                "the package cannot be unpacked on the device",
                where=f"{place.connection.device.address}, {folder}",
                given=done.last_words,
                fix="check that there is room, or name another workdir in the devices file",
            )
        await _complete(place, folder)
    start = ("env", f"PYTHONPATH={folder}", python)
    done = await place.run(
        (*start, "-c", "import targets.benchmark, compressor.cli.bench"),
        doing="trying the given interpreter",
    )
    if done.code:
        raise DeviceError(
            "the given interpreter lacks libraries that a benchmark needs",
            where=f"{place.connection.device.address}, {python}",
            given=done.last_words.splitlines()[-1],
            fix=f"install them there: {python} -m pip install 'compressor[RUNTIME]'; "
            "or leave python out of the devices file, so that an environment is made",
        )
    return start


async def _make_venv(place: Workplace, folder: PurePosixPath) -> None:
    python = place.connection.device.base_python
    done = await place.run(
        (python, "-m", "venv", "--clear", str(folder)), doing="making an environment"
    )
    if done.code:
        raise DeviceError(
            "no environment can be made on the device",
            where=f"{place.connection.device.address}, {folder}",
            given=done.last_words,
            fix="install the module venv there (python3-venv on Debian and Ubuntu), or name an "
            "interpreter that has all libraries: python in the devices file",
        )


async def _install(place: Workplace, python: str, requirement: str) -> None:
    options = place.connection.device.pip_options
    command = (python, "-m", "pip", "--disable-pip-version-check", "--no-input", "install")
    done = await place.run((*command, *options, requirement), doing="installing the package")
    if done.code:
        raise DeviceError(
            "the package cannot be installed on the device",
            where=place.connection.device.address,
            given=done.last_words,
            fix="check that pip can reach a package index there, or name one, or a folder of "
            "wheels, with pip_options in the devices file",
        )


async def _is_complete(place: Workplace, folder: PurePosixPath) -> bool:
    sftp = await place.connection.sftp()
    with talking(place.connection.device, f"looking for {folder}"):
        return await sftp.exists(str(folder / COMPLETE))


async def _complete(place: Workplace, folder: PurePosixPath) -> None:
    sftp = await place.connection.sftp()
    with talking(place.connection.device, f"writing {folder / COMPLETE}"):
        async with sftp.open(str(folder / COMPLETE), "wb"):
            pass
