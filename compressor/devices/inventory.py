"""The devices that a command works on: addresses, and entries of a devices file."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Annotated, Any, Self

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    field_validator,
    model_validator,
)

from compressor.devices.address import Address
from compressor.errors import InventoryError, Problem, choices
from compressor.recipe.document import parse_yaml, shown
from compressor.recipe.problems import problem_of
from targets.errors import InputError

__all__ = ["Device", "read_devices", "select_devices"]

NAME = r"[A-Za-z0-9][A-Za-z0-9._-]*"
FIX = "write a name for each device, and below it at least `address: ssh://user@host`"
OF_A_VENV = ("base_python", "runtime", "pip_options")


def _address(value: Any) -> Any:
    return Address.parse(value) if isinstance(value, str) else value


class Device(BaseModel):
    """How a device is reached, and what may be used of it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    address: Annotated[Address, BeforeValidator(_address)]
    """``ssh://user@host:port``; user and port may come from the SSH configuration."""
    runtime: str | None = Field(default=None, pattern=r"^[a-z0-9][a-z0-9-]*$")
    """The extra to install, such as ``onnxruntime``; None for those that the bundles need."""
    python: str | None = Field(default=None, min_length=1)
    """An interpreter on the device that has all libraries; None to make an environment there."""
    base_python: str = Field(default="python3", min_length=1)
    """The interpreter that makes the environment."""
    pip_options: tuple[str, ...] = ()
    """Options of ``pip install``, such as an index."""
    threads: int | None = Field(default=None, ge=1)
    """The most CPU threads that may be asked for."""
    timeout_s: float = Field(default=3600.0, gt=0)
    """The longest that all of the work on the device may take, in seconds."""
    connect_timeout_s: float = Field(default=15.0, gt=0)
    """The longest wait for the connection and login, in seconds."""
    identity_file: Path | None = None
    """The private key; None for those of the SSH configuration and the agent."""
    known_hosts: Path | None = None
    """The file of trusted host keys; None for that of the SSH configuration."""
    workdir: str = "~/.cache/compressor-devices"
    """A folder on the device, made if absent; ``~/`` stands for the home folder."""

    @field_validator("workdir")
    @classmethod
    def _check_workdir(cls, workdir: str) -> str:
        path = PurePosixPath(workdir.removeprefix("~/"))
        if ".." in path.parts or path.name in ("", "~") or workdir.startswith("~~"):
            raise ValueError("workdir must be a folder of its own, such as ~/bench or /data/bench")
        if not workdir.startswith(("~/", "/")):
            raise ValueError("workdir must begin with ~/ or /")
        return workdir

    @model_validator(mode="after")
    def _check_effect(self) -> Self:
        idle = [name for name in OF_A_VENV if name in self.model_fields_set]
        if self.python is not None and idle:
            raise ValueError(
                f"{idle[0]} has no effect beside python: nothing is installed for a given "
                "interpreter; leave one of them out"
            )
        return self


def select_devices(asked: Sequence[str], inventory: Path | None) -> dict[str, Device]:
    """The devices that a command line names.

    Args:
        asked: Addresses, or names of the devices file; all of its names where there are none.
        inventory: The devices file.

    Returns:
        Name or address -> device, in the order of ``asked``.

    Raises:
        InputError: Something asked for is neither an address nor a known name.
        InventoryError: The devices file does not hold.
    """
    known = {} if inventory is None else read_devices(inventory)
    if not asked and not known:
        raise InputError(
            "no device is named",
            fix="pass --on ssh://user@host, or --devices FILE",
        )
    return {each: _select(each, known, inventory) for each in asked or known}


def _select(asked: str, known: Mapping[str, Device], inventory: Path | None) -> Device:
    if asked in known:
        return known[asked]
    if "://" in asked:
        try:
            return Device(address=Address.parse(asked))
        except ValueError as error:
            raise InputError(str(error).partition(";")[0], given=asked, fix=_fix(error)) from error
    if inventory is None:
        raise InputError(
            "this is not the address of a device",
            given=asked,
            fix="write it as ssh://user@host, or pass --devices FILE and one of its names",
        )
    raise InputError(
        f"there is no device {asked!r}", where=inventory, given=asked, fix=choices(asked, known)
    )


def _fix(error: ValueError) -> str | None:
    return str(error).partition("; ")[2] or None


def read_devices(path: Path) -> dict[str, Device]:
    """Read a devices file; relative paths in it are resolved against its folder.

    Returns:
        Name -> device.

    Raises:
        InventoryError: Carries everything that is wrong with it.
    """
    try:
        document = parse_yaml(path, fix="correct it there")
    except Problem as invalid:
        raise InventoryError([invalid], where=path) from invalid
    if not isinstance(document, dict) or not document:
        problem = Problem(
            "a devices file is a mapping from names to devices", given=shown(document), fix=FIX
        )
        raise InventoryError([problem], where=path)
    problems: list[Problem] = []
    devices = {
        str(name): device
        for name, entry in document.items()
        if (device := _device(name, entry, problems)) is not None
    }
    if problems:
        raise InventoryError(problems, where=path)
    return {name: _resolve(device, path.resolve().parent) for name, device in devices.items()}


def _device(name: object, entry: object, problems: list[Problem]) -> Device | None:
    if not isinstance(name, str) or not re.fullmatch(NAME, name):
        problems.append(
            Problem(
                "this cannot be the name of a device",
                given=repr(name),
                fix="use letters, digits, '.', '_' and '-'; put words such as 'no' in quotes",
            )
        )
        return None
    if not isinstance(entry, dict):
        problems.append(
            Problem("a device is a mapping of settings", where=name, given=shown(entry), fix=FIX)
        )
        return None
    try:
        return Device.model_validate(entry)
    except ValidationError as error:
        problems += [problem_of(each, Device, name) for each in error.errors()]
        return None


def _resolve(device: Device, base: Path) -> Device:
    paths = {"identity_file": device.identity_file, "known_hosts": device.known_hosts}
    found = {name: base / path.expanduser() for name, path in paths.items() if path is not None}
    return device.model_copy(update=found)
