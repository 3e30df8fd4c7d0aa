"""The base install with one runtime does the work of a device, and brings nothing else."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import venv
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[1]
CONSTRAINTS = ROOT / "scripts" / "constraints.txt"
BUILD_HALF = ("torch", "transformers", "onnx", "datasets", "pandas")
TEXTS = ("who is the king", "where is the river", "when is the battle of a thousand days", "")
# How pip says that it reached no index, as opposed to an index without the package.
UNREACHABLE = ("NewConnectionError", "ConnectTimeoutError", "Name or service not known")


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


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel of this checkout, built from a copy, because a build writes beside its source."""
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    for package in ("compressor", "targets"):
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / package, source / package, ignore=ignored)
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copyfile(ROOT / name, source / name)
    pip = (sys.executable, "-m", "pip", "wheel", "--no-deps", "--wheel-dir", folder)
    # With the setuptools of this environment and no index: the source is a path, never a name.
    succeed(*pip, "--no-build-isolation", "--no-index", source)
    [built] = folder.glob("compressor-*.whl")
    return built


@pytest.fixture(scope="module")
def device(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The ``bin`` folder of a fresh environment with the wheel and ONNX Runtime."""
    folder = tmp_path_factory.mktemp("device") / "env"
    venv.create(folder, with_pip=True)
    done = run(
        folder / "bin" / "python",
        *("-m", "pip", "install", "--constraint", CONSTRAINTS, f"{wheel}[onnxruntime]"),
    )
    if done.returncode and any(sign in done.stdout + done.stderr for sign in UNREACHABLE):
        pytest.skip("pip reaches no package index here")
    assert done.returncode == 0, done.stdout + done.stderr
    return folder / "bin"


@pytest.fixture(scope="module")
def bundle(make_classifier: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle of a small classifier for ONNX Runtime, made by the build half."""
    from compressor.export import export_onnx
    from compressor.lowering import lower
    from compressor.model import OnnxModel
    from compressor.store import RunStore
    from compressor.tasks import get_task
    from targets import registry

    folder = tmp_path_factory.mktemp("bundle")
    model = make_classifier()
    signature = get_task(model.task).signature(model)
    store = RunStore(folder / "store")

    def keep(files: Path, work: Path) -> dict[str, Any]:
        export_onnx(model, signature, files / "model.onnx")
        model.tokenizer.save_pretrained(files)
        ranges = {"batch": (1, 1, 8), "sequence": (1, 16, 32)}
        OnnxModel(files, signature, "fp32", model.task, model.labels, 32, ranges).save(files)
        return {"form": "onnx", "precision": "fp32"}

    step = store.step("model", {}, keep)
    made = lower(
        "small", "candidate", registry.get("onnxruntime"), [step], store=store, hand_over=folder
    )
    assert made.bundle is not None, made.reason
    return made.bundle.folder


def test_nothing_of_the_build_half_is_installed(
    device: Path, record_property: Callable[[str, object], None]
) -> None:
    listed = json.loads(succeed(device / "python", "-m", "pip", "list", "--format", "json"))
    names = {each["name"].lower() for each in listed}
    assert {"compressor", "onnxruntime"} <= names
    assert not names & set(BUILD_HALF)
    script = f"import importlib.util as u; print([n for n in {BUILD_HALF} if u.find_spec(n)])"
    assert succeed(device / "python", "-c", script).strip() == "[]"
    packages = next((device.parent / "lib").glob("python3*")) / "site-packages"
    size = sum(
        path.stat().st_size
        for path in packages.rglob("*")
        if path.is_file() and path.relative_to(packages).parts[0].partition("-")[0] != "pip"
    )
    record_property("installed_size_mb", round(size / 1e6, 1))
    print(f"installed: {len(names)} distributions, {size / 1e6:.1f} MB")


def test_the_commands_of_a_device_work(device: Path, bundle: Path, tmp_path: Path) -> None:
    assert "predict" in succeed(device / "compressor", "--help")
    assert "intact" in succeed(device / "compressor", "verify", bundle)
    raw = tmp_path / "raw.json"
    options = ("--rounds", "2", "--sequence-length", "16", "--batch-size", "1", "--output", raw)
    assert "95% interval" in succeed(device / "compressor", "bench", bundle, *options)
    [result] = json.loads(raw.read_text())["bundles"].values()
    assert not result["failures"]
    assert len(result["measurements"][0]["rounds"]) == 2
    for name in ("small.tar.zst", "small.zip"):
        archive = tmp_path / name
        assert name in succeed(device / "compressor", "pack", bundle, archive)
        assert "intact" in succeed(device / "compressor", "verify", archive)
        assert "label" in succeed(device / "compressor", "predict", archive, "--text", TEXTS[0])


def test_predictions_are_those_of_the_build_environment(device: Path, bundle: Path) -> None:
    from targets import load

    asked = [part for text in TEXTS for part in ("--text", text)]
    lines = succeed(device / "compressor", "predict", bundle, *asked).splitlines()
    with load(bundle) as predictor:
        expected = [each.model_dump() for each in predictor.predict(TEXTS)]
    assert [json.loads(line) for line in lines] == expected


def test_a_command_of_the_build_half_names_the_extra(device: Path, tmp_path: Path) -> None:
    done = run(device / "compressor", "finetune", tmp_path, tmp_path, "--output", tmp_path / "o")
    assert done.returncode in (3, 7)
    assert "Traceback" not in done.stderr


def test_a_damaged_bundle_is_refused(device: Path, bundle: Path, tmp_path: Path) -> None:
    damaged = tmp_path / "damaged"
    shutil.copytree(bundle, damaged)
    with (damaged / "model.onnx").open("r+b") as stream:
        stream.seek(100)
        stream.write(b"x")
    done = run(device / "compressor", "verify", damaged)
    assert done.returncode == 6
    assert "model.onnx" in done.stderr
