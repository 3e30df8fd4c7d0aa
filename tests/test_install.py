"""The base install with one runtime does the work of a device, and brings nothing else."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

BUILD_HALF = ("torch", "transformers", "onnx", "datasets", "pandas")
OF_THE_INSTALLER = ("pip", "setuptools", "pkg_resources", "_distutils_hack")
TEXTS = ("who is the king", "where is the river", "when is the battle of a thousand days", "")


def run(*command: str | Path) -> subprocess.CompletedProcess[str]:
    """Run a command outside of the checkout, with nothing of this environment leaking in."""
    env = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    return subprocess.run(
        [str(part) for part in command],
        capture_output=True,
        text=True,
        cwd="/",
        env=env | {"COLUMNS": "200"},
        check=False,
    )


def succeed(*command: str | Path) -> str:
    done = run(*command)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_nothing_of_the_build_half_is_installed(device_environment: Path) -> None:
    listed = json.loads(
        succeed(device_environment / "python", "-m", "pip", "list", "--format", "json")
    )
    names = {each["name"].lower() for each in listed}
    assert {"compressor", "onnxruntime"} <= names
    assert not names & set(BUILD_HALF)
    script = f"import importlib.util as u; print([n for n in {BUILD_HALF} if u.find_spec(n)])"
    assert succeed(device_environment / "python", "-c", script).strip() == "[]"
    packages = next((device_environment.parent / "lib").glob("python3*")) / "site-packages"
    # What comes over the wire: pip compiles bytecode beside it, and brings itself.
    size = sum(
        path.stat().st_size
        for path in packages.rglob("*")
        if path.is_file()
        and path.suffix != ".pyc"
        and path.relative_to(packages).parts[0].partition("-")[0] not in OF_THE_INSTALLER
    )
    assert size < 200e6


def test_the_commands_of_a_device_work(
    device_environment: Path, small_bundle: Path, tmp_path: Path
) -> None:
    assert "predict" in succeed(device_environment / "compressor", "--help")
    assert "intact" in succeed(device_environment / "compressor", "verify", small_bundle)
    raw = tmp_path / "raw.json"
    options = ("--rounds", "2", "--sequence-length", "16", "--batch-size", "1", "--output", raw)
    assert "95% interval" in succeed(
        device_environment / "compressor", "bench", small_bundle, *options
    )
    [entry] = json.loads(raw.read_text())["entries"]
    result = entry["result"]
    assert not result["failures"]
    assert len(result["measurements"][0]["rounds"]) == 2
    for name in ("small.tar.zst", "small.zip"):
        archive = tmp_path / name
        assert name in succeed(device_environment / "compressor", "pack", small_bundle, archive)
        assert "intact" in succeed(device_environment / "compressor", "verify", archive)
        assert "label" in succeed(
            device_environment / "compressor", "predict", archive, "--text", TEXTS[0]
        )


def test_predictions_are_those_of_the_build_environment(
    device_environment: Path, small_bundle: Path
) -> None:
    from targets import load

    asked = [part for text in TEXTS for part in ("--text", text)]
    lines = succeed(device_environment / "compressor", "predict", small_bundle, *asked).splitlines()
    with load(small_bundle) as predictor:
        expected = [each.model_dump() for each in predictor.predict(TEXTS)]
    assert [json.loads(line) for line in lines] == expected


def test_a_command_of_the_build_half_names_the_extra(
    device_environment: Path, tmp_path: Path
) -> None:
    done = run(
        device_environment / "compressor",
        "finetune",
        tmp_path,
        tmp_path,
        "--output",
        tmp_path / "o",
    )
    assert done.returncode in (3, 7)
    assert "Traceback" not in done.stderr


def test_a_damaged_bundle_is_refused(
    device_environment: Path, small_bundle: Path, tmp_path: Path
) -> None:
    damaged = tmp_path / "damaged"
    shutil.copytree(small_bundle, damaged)
    with (damaged / "model.onnx").open("r+b") as stream:
        stream.seek(100)
        stream.write(b"x")
    done = run(device_environment / "compressor", "verify", damaged)
    assert done.returncode == 6
    assert "model.onnx" in done.stderr
