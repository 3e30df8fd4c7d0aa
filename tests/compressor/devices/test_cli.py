"""``compressor bench --on`` and ``compressor devices``, as one calls them."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import typer
import yaml

from compressor import device_latency
from compressor.cli import main
from compressor.cli.devices import given_options
from compressor.devices import fleet
from targets.bench import BenchReport
from targets.benchmark import BenchmarkSettings
from targets.preprocessing import FIXED_SIZE

# A test runner in the background hands an ignored SIGINT down to its children.
INTERRUPTIBLE = """
import signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)
from compressor.cli import main
main(sys.argv[1:])
"""
OPTIONS = ("--rounds", "2", "--sequence-length", "16", "--batch-size", "1", "--batch-size", "2")


@pytest.fixture
def call(capsys, monkeypatch):
    """Run the command line in this process: exit code, output, errors."""
    monkeypatch.setenv("COLUMNS", "200")

    def run(*arguments):
        capsys.readouterr()
        with pytest.raises(SystemExit) as caught:
            main([str(each) for each in arguments])
        return (caught.value.code or 0, *capsys.readouterr())

    return run


@pytest.fixture
def devices_file(tmp_path):
    def write(**devices):
        path = tmp_path / "devices.yaml"
        path.write_text(yaml.safe_dump(devices, sort_keys=False))
        return path

    return write


# Options


@pytest.fixture
def forwarded():
    """The options that a small command would forward."""

    def run(*arguments):
        app = typer.Typer()
        found = []

        @app.command()
        def measure(
            context: typer.Context,
            bundles: list[Path],
            threads: int = 1,
            batch_size: list[int] = typer.Option(None, "--batch-size", "-b"),  # noqa: B008
            cold: bool = typer.Option(True),
            texts: Path | None = None,
            on: list[str] = typer.Option(None),  # noqa: B008
        ) -> None:
            found.extend(given_options(context, leave_out=("on",)))

        app(list(map(str, arguments)), standalone_mode=False)
        return found

    return run


def test_options_are_forwarded_as_they_were_given(forwarded):
    assert forwarded("a", "b") == []
    assert forwarded("a", "--threads", "1", "--on", "x") == ["--threads", "1"]
    assert forwarded("a", "-b", "1", "-b", "4") == ["--batch-size", "1", "--batch-size", "4"]
    assert forwarded("a", "--no-cold") == ["--no-cold"]
    assert forwarded("a", "--cold") == ["--cold"]
    assert forwarded("a", "--texts", "t.txt") == ["--texts", Path("t.txt")]


# What is wrong before anything is connected


def test_a_missing_library_names_its_extra(call, monkeypatch, small_bundle):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    code, _, err = call("bench", small_bundle, "--on", "ssh://board")
    assert code == 7
    assert "work on remote devices needs the library asyncssh" in err
    assert "pip install 'compressor[ssh]'" in err


def test_a_missing_file_of_texts_is_told_before_any_login(call, small_bundle, tmp_path):
    texts = tmp_path / "none.txt"
    code, _, err = call("bench", small_bundle, "--on", "ssh://board.invalid", "--texts", texts)
    assert code == 3
    assert "the file of texts cannot be read" in err
    assert str(texts) in err


def test_a_bug_on_one_device_is_told_as_itself():
    async def work(name: str) -> str:
        raise LookupError(name)

    with pytest.raises(LookupError, match="board"):
        asyncio.run(fleet._all({"board": None}, work))


def test_a_bundle_is_looked_at_first(call, small_bundle, tmp_path):
    code, _, err = call("bench", tmp_path / "absent", "--on", "ssh://board.invalid")
    assert code == 6
    assert "there is no such bundle" in err
    old = tmp_path / "old"
    old.mkdir()
    manifest = json.loads((small_bundle / "manifest.json").read_text())
    (old / "manifest.json").write_text(json.dumps(manifest | {"schema_version": 0}))
    code, _, err = call("bench", old, "--on", "ssh://board.invalid")
    assert code == 6
    assert "the bundle has another schema version" in err


def test_a_devices_file_is_a_document_with_problems(call, devices_file, small_bundle):
    code, _, err = call("bench", small_bundle, "--devices", devices_file(a={"adress": "ssh://a"}))
    assert code == 3
    assert "the devices file has 2 problems" in err


@pytest.mark.parametrize("command", [("bench", "BUNDLE"), ("devices", "clean")])
def test_an_address_that_is_none(call, command, small_bundle):
    words = [str(small_bundle) if each == "BUNDLE" else each for each in command]
    code, _, err = call(*words, "--on", "board")
    assert code == 3
    assert "this is not the address of a device" in err


# Real devices


@pytest.mark.slow
def test_every_device_is_measured_and_one_that_fails_is_told(
    call, devices_file, server, other_server, device_environment, small_bundle, tmp_path
):
    pytest.importorskip("asyncssh")
    python = str(device_environment / "python")
    path = devices_file(
        near=server.settings(python=python),
        far=other_server.settings(python=python),
        gone=server.settings(address=f"ssh://root@{server.address}:1"),
    )
    output = tmp_path / "all.json"
    code, out, err = call("bench", small_bundle, *OPTIONS, "--devices", path, "--output", output)
    assert code == 6
    assert "near: measures" in out
    assert "far: measures" in out
    assert out.count("95% interval") == 2
    assert out.count(f"1  {small_bundle}\n") == 2
    assert err.startswith("\nerror: gone: the device cannot be reached\n")
    found = json.loads(output.read_text())["devices"]
    assert list(found) == ["near", "far", "gone"]
    assert found["gone"]["error"]["type"] == "DeviceError"
    for name in ("near", "far"):
        assert found[name]["address"].startswith("ssh://root@198.18.")
        report = BenchReport.model_validate(found[name]["report"])
        assert report.sweep.batch_sizes == (1, 2)
        assert [entry.bundle for entry in report.entries] == [str(small_bundle)]
        assert len(report.entries[0].result.measurements) == 2
    code, out, _ = call("devices", "clean", "--devices", path, "--on", "near")
    assert (code, out) == (0, f"near: removed {server.workdir}\n")
    assert not server.workdir.exists()
    assert other_server.workdir.exists()
    code, _, err = call("devices", "clean", "--devices", path, "--on", "gone")
    assert code == 6
    assert "cannot be reached" in err


@pytest.mark.slow
def test_an_interrupt_ends_what_runs_on_the_device(
    devices_file, server, device_environment, small_bundle, until
):
    pytest.importorskip("asyncssh")
    path = devices_file(a=server.settings(python=str(device_environment / "python")))
    command = [sys.executable, "-c", INTERRUPTIBLE, "bench", small_bundle, "--rounds", "1000"]
    with subprocess.Popen(
        [*command, "--sequence-length", "16", "--devices", path],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
    ) as process:
        while "a: measures" not in process.stdout.readline():
            assert process.poll() is None
        with contextlib.suppress(AssertionError):
            until(lambda: any("targets.worker" in each for each in server.commands()))
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert err.startswith("error: interrupted")
    until(lambda: server.commands() == [])
    assert server.left_over() == {"lock", "packages"}


def test_a_device_is_asked_for_no_length_where_all_inputs_have_one_size():
    options = device_latency._options(BenchmarkSettings(sequence_length=FIXED_SIZE))
    assert options == ("--threads", "1", "--rounds", "9", "--batch-size", "1", "--batch-size", "4")
    options = device_latency._options(BenchmarkSettings(sequence_length=16, batch_sizes=(1,)))
    assert options[-4:] == ("--sequence-length", "16", "--batch-size", "1")
