"""The base install with one runtime does the work of a device, and brings nothing else."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

RUNTIMES = ("onnxruntime", "openvino")
BUILD_HALF = ("torch", "transformers", "onnx", "datasets", "pandas")
LISTED = "import importlib.metadata as m; print(*(each.name.lower() for each in m.distributions()))"
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


@pytest.mark.parametrize(("runtime", "most_bytes"), [("onnxruntime", 200e6), ("openvino", 300e6)])
def test_nothing_but_the_base_and_one_runtime_is_installed(
    runtime: str, most_bytes: float, make_environment: Callable[[str], Path]
) -> None:
    folder = make_environment(runtime)
    names = set(succeed(folder / "python", "-c", LISTED).split())
    assert {"compressor", runtime} <= names
    others = {*BUILD_HALF, *RUNTIMES} - {runtime}
    assert not names & others
    script = f"import importlib.util as u; print([n for n in {others} if u.find_spec(n)])"
    assert succeed(folder / "python", "-c", script).strip() == "[]"
    packages = next((folder.parent / "lib").glob("python3*")) / "site-packages"
    # What comes over the wire: bytecode is made on the device.
    size = sum(
        path.stat().st_size
        for path in packages.rglob("*")
        if path.is_file() and path.suffix != ".pyc"
    )
    assert size < most_bytes


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_the_commands_of_a_device_work(
    runtime: str,
    make_environment: Callable[[str], Path],
    make_small_bundle: Callable[[str], Path],
    tmp_path: Path,
) -> None:
    command, bundle = make_environment(runtime) / "compressor", make_small_bundle(runtime)
    assert "intact" in succeed(command, "verify", bundle)
    raw = tmp_path / "raw.json"
    options = ("--rounds", "2", "--sequence-length", "16", "--batch-size", "1", "--output", raw)
    assert "95% interval" in succeed(command, "bench", bundle, *options)
    [entry] = json.loads(raw.read_text())["entries"]
    result = entry["result"]
    assert not result["failures"]
    assert len(result["measurements"][0]["rounds"]) == 2


def test_archives_are_written_and_read(
    device_environment: Path, small_bundle: Path, tmp_path: Path
) -> None:
    for name in ("small.tar.zst", "small.zip"):
        archive = tmp_path / name
        assert name in succeed(device_environment / "compressor", "pack", small_bundle, archive)
        assert "intact" in succeed(device_environment / "compressor", "verify", archive)
        assert "label" in succeed(
            device_environment / "compressor", "predict", archive, "--text", TEXTS[0]
        )


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_predictions_are_those_of_the_build_environment(
    runtime: str,
    make_environment: Callable[[str], Path],
    make_small_bundle: Callable[[str], Path],
) -> None:
    from targets import load

    command, bundle = make_environment(runtime) / "compressor", make_small_bundle(runtime)
    asked = [part for text in TEXTS for part in ("--text", text)]
    lines = succeed(command, "predict", bundle, *asked).splitlines()
    with load(bundle) as predictor:
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
