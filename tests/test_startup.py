"""Nothing heavy is loaded before it is needed: naming a thing costs nothing."""

from __future__ import annotations

import subprocess
import sys

import pytest

HEAVY = {
    "accelerate",
    "datasets",
    "jinja2",
    "matplotlib",
    "nncf",
    "onnx",
    "onnx_ir",
    "onnxruntime",
    "onnxscript",
    "openvino",
    "optuna",
    "pandas",
    "pyarrow",
    "ray",
    "scipy",
    "sklearn",
    "tensorrt",
    "tensorrt_rtx",
    "torch",
    "torch_pruning",
    "transformers",
}


def loaded_by(code: str) -> set[str]:
    """Top-level modules that a fresh interpreter tries to load."""
    command = [sys.executable, "-X", "importtime", "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    lines = [line for line in done.stderr.splitlines() if line.startswith("import time:")]
    return {line.rpartition("|")[2].strip().partition(".")[0] for line in lines}


@pytest.mark.parametrize(
    "module", ["targets", "compressor", "compressor.passes", "compressor.recipe"]
)
def test_importing_loads_nothing_heavy(module: str) -> None:
    found = loaded_by(f"import {module}")
    assert module.partition(".")[0] in found
    assert not found & HEAVY


@pytest.mark.parametrize(
    "arguments",
    [["--help"], ["run", "--help"], ["search", "--help"], ["passes"], ["targets"], ["schema"]],
)
def test_commands_that_explain_load_nothing_heavy(arguments: list[str]) -> None:
    found = loaded_by(f"from compressor.cli import main; main({arguments!r})")
    assert "typer" in found
    assert not found & HEAVY


def test_the_device_half_loads_nothing_of_the_build_half() -> None:
    modules = ("targets", "targets.benchmark", "targets.worker", "targets.worker_client")
    found = loaded_by(f"import {', '.join(modules)}; targets.available()")
    assert "targets" in found
    assert "compressor" not in found
