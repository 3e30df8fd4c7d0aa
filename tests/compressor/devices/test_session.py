"""Benchmarks on real devices: SSH servers, cables and interpreters are real."""

from __future__ import annotations

import asyncio
import fcntl
import hashlib
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

import compressor
from compressor.devices import connection, fleet, session, workplace
from compressor.devices.connection import connect
from compressor.devices.copying import bundle_key, copy_file, make_folder
from compressor.devices.session import Job, bench_on
from compressor.errors import DeviceError
from compressor.wheel import make_wheel
from targets.bench import BenchReport
from targets.bundle import Bundle

pytest.importorskip("asyncssh")
pytestmark = pytest.mark.slow

OPTIONS = ("--rounds", "2", "--sequence-length", "16", "--batch-size", "1")
LONG = ("--rounds", "200", "--sequence-length", "16", "--batch-size", "1")
BASE_PYTHON = str(Path(sys.base_prefix) / "bin" / "python3")
KEPT = {"lock", "packages"}


@pytest.fixture(scope="session")
def wheel(tmp_path_factory):
    return make_wheel(tmp_path_factory.mktemp("made"))


@pytest.fixture
def python(device_environment):
    return str(device_environment / "python")


@pytest.fixture
def said():
    """What a device did, as told while it went on."""
    return []


@pytest.fixture
def bench(small_bundle, wheel, said):
    """Measure the small bundle on a device."""

    def run(device, options=OPTIONS, **job):
        whole = Job({"given/name": Bundle.open(small_bundle)}, options, **job)
        return asyncio.run(bench_on(device, whole, wheel, said.append))

    return run


@pytest.fixture
def once_it_measures():
    """Listens to what a device does, and does something as soon as a model runs there."""

    def listen(server, do):
        def look():
            if any("targets.worker" in each for each in server.commands()):
                do()
            else:
                asyncio.get_running_loop().call_later(0.05, look)

        def say(line):
            if line == "measures":
                look()

        return say

    return listen


@pytest.fixture
def fails(bench):
    """The error of a benchmark."""

    def run(*arguments, **job):
        with pytest.raises(DeviceError) as caught:
            bench(*arguments, **job)
        return caught.value

    return run


# From the connection to the result


def test_the_result_is_that_of_a_bench_at_home(bench, server, python, small_bundle, tmp_path):
    report = bench(server.device(python=python))
    local = tmp_path / "local.json"
    command = [python, "-m", "compressor", "bench", small_bundle, *OPTIONS, "--output", local]
    env = os.environ | {"PYTHONPATH": str(Path(compressor.__file__).parents[1])}
    subprocess.run(command, check=True, capture_output=True, cwd="/", env=env)
    expected = BenchReport.model_validate_json(local.read_text())
    assert report.complete
    assert report.settings == expected.settings
    assert report.sweep == expected.sweep
    assert report.environment.machine == expected.environment.machine
    [entry] = report.entries
    assert entry.bundle == "given/name"
    assert entry.identity == expected.entries[0].identity
    assert len(entry.result.measurements[0].rounds) == 2
    assert server.left_over() == KEPT
    assert server.commands() == []


def test_an_environment_is_made_to_the_end_and_once_and_a_wrong_option_is_told(
    bench, fails, server, device_wheels, said, tmp_path
):
    wheels = tmp_path / "wheels"
    wheels.mkdir()
    options = ["--no-index", "--find-links", str(wheels), "--no-compile"]
    device = server.device(base_python=BASE_PYTHON, pip_options=options)
    error = fails(device)
    assert error.what == "the package cannot be installed on the device"
    assert "No matching distribution" in error.given
    assert server.left_over() == KEPT | {"venvs"}
    for each in device_wheels.iterdir():
        (wheels / each.name).symlink_to(each)
    assert bench(device).complete
    assert server.left_over() == KEPT | {"venvs"}
    [venv] = (server.workdir / "venvs").iterdir()
    packages = next(venv.glob("lib/python3*/site-packages"))
    assert (packages / "onnxruntime").is_dir()
    assert not (packages / "torch").exists()
    # The next one finds it, even where it comes to nothing.
    error = fails(device, ("--sequence-length", "1000"))
    assert error.what == "the benchmark failed on the device"
    assert "the model takes no text of this length" in error.given
    assert server.left_over() == KEPT | {"venvs"}
    assert said.count("makes an environment on the device") == 2
    assert fleet.clean_devices({"a": device}) == {"a": str(server.workdir)}
    assert not server.workdir.exists()


def test_a_file_that_an_option_names_comes_along(server, python, tmp_path, said):
    texts = tmp_path / "texts.txt"
    texts.write_text("who")

    async def bring():
        async with connect(server.device()) as there:
            device = workplace.occupy(there, python, said.append)
            async with device as place:
                option = await session._option(place, 3, texts)
                return Path(option).read_text(), option

    text, option = asyncio.run(bring())
    assert text == "who"
    assert not Path(option).exists()


def test_a_bundle_that_cannot_be_measured_is_in_the_result(
    server, python, small_bundle, wheel, said, tmp_path
):
    shutil.copytree(small_bundle, tmp_path / "foreign")
    manifest = Bundle.open(small_bundle).manifest.model_copy(
        update={"cpu_features": ("of-no-cpu",)}
    )
    Bundle.create(tmp_path / "foreign", manifest)
    opened = {str(path): Bundle.open(path) for path in (tmp_path / "foreign", small_bundle)}
    device = server.device(python=python)
    report = asyncio.run(bench_on(device, Job(opened, OPTIONS), wheel, said.append))
    assert not report.complete
    foreign, good = report.entries
    assert [foreign.bundle, good.bundle] == list(opened)
    assert "this CPU lacks instructions" in foreign.result.failures[0].error.what
    assert good.result.measurements
    assert server.left_over() == KEPT


def test_one_benchmark_waits_for_the_other(server, python, small_bundle, wheel, said):
    server.workdir.mkdir(parents=True)
    with (server.workdir / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)

        def say(line):
            said.append(line)
            fcntl.flock(lock, fcntl.LOCK_UN)

        job = Job({"bundle": Bundle.open(small_bundle)}, OPTIONS)
        assert asyncio.run(bench_on(server.device(python=python), job, wheel, say)).complete
    assert said[0] == "waits for another run on the device to end"


# What a device may be unable to do


def test_a_folder_of_somebody_else_is_left_alone(fails, server):
    (server.workdir / "files").mkdir(parents=True)
    (server.workdir / "files" / "letter.txt").write_text("dear")
    (server.workdir / "photos").mkdir()
    error = fails(server.device())
    assert error.what == "the work folder of the device contains other files"
    assert error.given == "photos"
    assert "to a folder of its own" in error.fix
    found = fleet.clean_devices({"a": server.device()})["a"]
    assert isinstance(found, DeviceError)
    assert found.what == error.what
    assert (server.workdir / "files" / "letter.txt").read_text() == "dear"


def test_no_interpreter(fails, server):
    error = fails(server.device(base_python="python9"))
    assert error.what == "the device has no such Python interpreter"
    assert error.given.startswith("python9: ")
    assert "base_python in the devices file" in error.fix
    error = fails(server.device(python="/usr/bin/false"))
    assert error.given == "/usr/bin/false: exit code 1"
    assert server.left_over() == set()


def test_an_interpreter_that_is_too_old(fails, server, tmp_path):
    old = tmp_path / "python"
    old.write_text('#!/bin/sh\necho "[3, 9, 18, \\"/usr/bin/python3\\"]"\n')
    old.chmod(0o755)
    error = fails(server.device(base_python=str(old)))
    assert error.what == "the Python of the device is too old"
    assert error.given == f"{old} is Python 3.9.18"
    assert "3.11 or newer" in error.fix


def test_a_given_interpreter_without_the_libraries(fails, server, tmp_path):
    subprocess.run([BASE_PYTHON, "-m", "venv", "--without-pip", tmp_path / "env"], check=True)
    error = fails(server.device(python=str(tmp_path / "env" / "bin" / "python")))
    assert error.what == "the given interpreter lacks libraries that a benchmark needs"
    assert error.given.startswith("ModuleNotFoundError")
    assert server.left_over() == KEPT


def test_more_threads_than_allowed(fails, server):
    error = fails(server.device(threads=2), threads=3)
    assert error.what == "more threads than the device allows"
    assert error.given == "--threads 3"


def test_a_device_that_takes_too_long_is_stopped(
    server, python, small_bundle, wheel, once_it_measures
):
    job = Job({"bundle": Bundle.open(small_bundle)}, LONG)

    async def measure():
        loop = asyncio.get_running_loop()

        def let_an_hour_pass():
            loop.time = lambda: time.monotonic() + 3600

        say = once_it_measures(server, let_an_hour_pass)
        await bench_on(server.device(python=python, timeout_s=3600), job, wheel, say)

    with pytest.raises(DeviceError) as caught:
        asyncio.run(measure())
    error = caught.value
    assert error.what == "the device took too long"
    assert error.given == "more than 3600 s"
    assert server.commands() == []
    assert server.left_over() == KEPT


def test_a_damaged_copy_is_found_and_copied_anew(bench, fails, server, python, small_bundle):
    bundle = Bundle.open(small_bundle)
    folder = server.workdir / "bundles" / bundle_key(bundle)
    folder.mkdir(parents=True)
    size = bundle.model_path.stat().st_size
    (folder / bundle.manifest.model).write_bytes(bytes(size))
    error = fails(server.device(python=python))
    assert error.what == "the copy of a bundle on the device is not intact"
    assert "was changed after it was built" in error.given
    assert bench(server.device(python=python)).complete


# Connections that break


@pytest.fixture
def impatient(monkeypatch):
    """Find out within seconds that the other end is gone."""
    monkeypatch.setattr(connection, "BEAT_S", 0.5)
    monkeypatch.setattr(workplace, "SILENCE_S", 2.0)


@pytest.mark.parametrize("how", ["server", "cable"])
def test_a_device_that_drops_is_an_error_and_the_other_goes_on(
    how, server, other_server, python, small_bundle, impatient, until, once_it_measures
):
    devices = {"a": server.device(python=python), "b": other_server.device(python=python)}
    job = Job({"bundle": Bundle.open(small_bundle)}, ("--rounds", "20", *OPTIONS[2:]))
    measuring = set()

    def cut():
        server.drop() if how == "server" else server.plug("down")

    say_of_a = once_it_measures(server, cut)

    def say(name, line):
        if line == "measures":
            measuring.add(name)
        if name == "a":
            say_of_a(line)

    results = fleet.bench_devices(devices, job, say)
    assert measuring == {"a", "b"}
    error = results["a"]
    assert isinstance(error, DeviceError)
    assert error.what == "the connection to the device was lost"
    assert error.where == server.url
    assert "measuring" in error.given
    assert results["b"].complete
    assert other_server.left_over() == KEPT
    # The device notices by itself, ends what it does, and keeps the copy for the next try.
    until(lambda: server.commands() == [])
    until(lambda: not [each for each in server.left_over() if each.startswith("runs")])
    assert f"bundles/{bundle_key(job.bundles['bundle'])}" in server.left_over()


@pytest.mark.parametrize("how", ["server", "cable"])
def test_a_copy_goes_on_where_it_was_cut(how, server, tmp_path, impatient):
    size = 48 * 2**20
    source = tmp_path / "large.bin"
    source.write_bytes(os.urandom(size))
    goal = server.workdir / "bundles" / "x" / "large.bin"
    part = goal.with_name("large.bin.part")

    async def copy():
        async with connect(server.device()) as there:
            await make_folder(there, goal.parent)
            return await copy_file(there, source, goal)

    async def copy_and_cut():
        copying = asyncio.create_task(copy())
        while not part.exists() or part.stat().st_size < size // 3:
            assert not copying.done()
            await asyncio.sleep(0.001)
        server.drop() if how == "server" else server.plug("down")
        await copying

    with pytest.raises(DeviceError) as caught:
        asyncio.run(copy_and_cut())
    assert "lost" in caught.value.what
    assert "copying large.bin" in caught.value.given
    assert not goal.exists()
    server.plug("up")
    there, before = part.stat().st_size, server.received_bytes()
    copied = asyncio.run(copy())
    assert size // 3 - 2**20 <= there - 2**20 <= copied.found_bytes <= there < size
    assert copied.sent_bytes + copied.found_bytes == size
    assert server.received_bytes() - before < copied.sent_bytes * 1.1 + 2**17
    assert (
        hashlib.sha256(goal.read_bytes()).digest() == hashlib.sha256(source.read_bytes()).digest()
    )
    assert asyncio.run(copy()).sent_bytes == 0
