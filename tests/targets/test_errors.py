"""Errors: one tree, messages that say what, where, given and fix, and a way through processes."""

from __future__ import annotations

import errno
import multiprocessing
import pickle
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import pytest

import targets
from targets import Bundle
from targets.errors import (
    BundleError,
    MissingLibraryError,
    TargetError,
    ToolkitError,
    WorkerError,
    is_disk_full,
)


def classes(base: type[ToolkitError] = ToolkitError) -> Iterator[type[ToolkitError]]:
    yield base
    for each in base.__subclasses__():
        if each.__module__ == "targets.errors":
            yield from classes(each)


def test_every_error_is_in_the_tree_and_in_all() -> None:
    assert {each.__name__ for each in classes()} | {"is_disk_full", "is_of_the_machine"} == set(
        targets.errors.__all__
    )
    for each in classes():
        assert each.__name__ in str(targets.errors.__doc__)


def test_exit_codes_are_those_the_command_line_documents() -> None:
    codes = {each.__name__: each.exit_code for each in classes()}
    assert codes == {
        "ToolkitError": 1,
        "MissingLibraryError": 7,
        "PluginError": 7,
        "BundleError": 6,
        "SignatureError": 6,
        "KeyFileError": 3,
        "CheckpointError": 3,
        "InputError": 3,
        "TargetError": 6,
        "UnsupportedModelError": 6,
        "WorkerError": 6,
    }


def test_a_message_says_what_where_given_and_fix() -> None:
    error = BundleError("it broke", where="a.bin", given=3, fix="build it again")
    assert str(error) == "it broke\n  where: a.bin\n  given: 3\n  fix:   build it again"
    assert str(BundleError("it broke")) == "it broke"
    assert str(BundleError("it broke", given="")) == "it broke\n  given: "


@pytest.mark.parametrize("cls", list(classes()), ids=lambda cls: cls.__name__)
def test_errors_survive_pickling(cls: type[ToolkitError]) -> None:
    error = cls("it broke", where="a.bin", given=3, fix="build it again")
    again = pickle.loads(pickle.dumps(error))  # noqa: S301  (made on the line itself)
    assert type(again) is cls
    assert str(again) == str(error)
    assert (again.what, again.where, again.given, again.fix) == (
        "it broke",
        "a.bin",
        "3",
        "build it again",
    )


def test_errors_come_through_processes_whole(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=context) as pool:
        with pytest.raises(TargetError) as unknown:
            pool.submit(targets.get, "npu").result()
        with pytest.raises(BundleError) as absent:
            pool.submit(Bundle.open, tmp_path).result()
    with pytest.raises(TargetError) as here:
        targets.get("npu")
    assert str(unknown.value) == str(here.value)
    assert absent.value.where == str(tmp_path / "manifest.json")


def test_a_missing_library_names_who_needs_it_and_the_extra() -> None:
    error = MissingLibraryError.for_extra("openvino", "openvino", "the target openvino")
    assert str(error) == (
        "the target openvino needs the library openvino, which is not installed\n"
        "  fix:   pip install 'compressor[openvino]'"
    )


def chained(error: BaseException, *, explicit: bool) -> BaseException:
    """``error``, wrapped as libraries and this toolkit wrap errors."""
    try:
        try:
            raise error
        except BaseException as inner:
            if explicit:
                raise WorkerError("outer") from inner
            raise RuntimeError("outer")  # noqa: B904  (that is what is tested)
    except (WorkerError, RuntimeError) as outer:
        return outer


@pytest.mark.parametrize("explicit", [True, False])
@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_is_known_through_wrapping(code: int, explicit: bool) -> None:
    error = OSError(code, "no")
    assert is_disk_full(error)
    assert is_disk_full(chained(error, explicit=explicit))
    assert is_disk_full(chained(chained(error, explicit=explicit), explicit=explicit))


def test_a_full_disk_is_known_by_its_words() -> None:
    assert is_disk_full(RuntimeError("write: No space left on device (os error 28)"))


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.EACCES, "no"),
        OSError(),
        ValueError("x"),
        KeyboardInterrupt(),
        WorkerError("x"),
    ],
)
def test_other_errors_are_no_full_disk(error: BaseException) -> None:
    assert not is_disk_full(error)
    assert not is_disk_full(chained(OSError(errno.EACCES, "no"), explicit=True))
