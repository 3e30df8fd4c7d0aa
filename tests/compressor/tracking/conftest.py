"""A real server of MLflow with sqlite, and what was tracked on it."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from targets.bundle import Bundle, Manifest

if TYPE_CHECKING:
    from mlflow import MlflowClient


REPORT = Path(__file__).parents[3] / "benchmarks" / "results" / "trec6_minilm_balanced_avx2.json"


@pytest.fixture(autouse=True, scope="session")
def no_settings_of_the_user() -> Iterator[None]:
    """Whoever runs the tests may have a server; and none is to be waited for."""
    with pytest.MonkeyPatch.context() as patch:
        for name in [each for each in os.environ if each.startswith("MLFLOW_")]:
            patch.delenv(name)
        patch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
        patch.setenv("NO_PROXY", "127.0.0.1")
        yield


@pytest.fixture(scope="session")
def mlflow_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a server, on a free port of this machine."""
    folder = tmp_path_factory.mktemp("mlflow")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    # What `mlflow server` sets for its application, which is up sooner without the command.
    settings = {
        "_MLFLOW_SERVER_FILE_STORE": f"sqlite:///{folder / 'mlflow.db'}",
        "_MLFLOW_SERVER_ARTIFACT_ROOT": "mlflow-artifacts:/",
        "_MLFLOW_SERVER_ARTIFACT_DESTINATION": str(folder / "artifacts"),
        "_MLFLOW_SERVER_SERVE_ARTIFACTS": "true",
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
        "MLFLOW_DISABLE_TELEMETRY": "true",
    }
    command = [sys.executable, "-m", "flask", "--app", "mlflow.server:app", "run"]
    with (folder / "log").open("w", encoding="utf-8") as log:
        process = subprocess.Popen(
            [*command, "--host", "127.0.0.1", "--port", str(port)],
            env={**os.environ, **settings},
            cwd=folder,
            stdout=log,
            stderr=log,
        )
    try:
        uri = f"http://127.0.0.1:{port}"
        _wait_for(f"{uri}/health", process, folder / "log")
        yield uri
    finally:
        process.kill()
        process.wait()


def _wait_for(url: str, process: subprocess.Popen[bytes], log: Path) -> None:
    until = time.monotonic() + 120
    while process.poll() is None and time.monotonic() < until:
        try:
            urllib.request.urlopen(url, timeout=10).close()  # noqa: S310  (of this machine)
        except (urllib.error.URLError, OSError):
            time.sleep(0.1)
        else:
            return
    raise AssertionError(f"the server did not start:\n{log.read_text(encoding='utf-8')}")


@pytest.fixture(scope="session")
def client(mlflow_server: str) -> MlflowClient:
    from mlflow import MlflowClient

    return MlflowClient(tracking_uri=mlflow_server, registry_uri=mlflow_server)


@dataclass(frozen=True)
class Released:
    """A report that was judged, tracked and registered, as a release step does it."""

    output: Path
    gate: Path
    experiment: str
    outcome: Any


@pytest.fixture(scope="session")
def released(
    finished: Any,
    mlflow_server: str,
    compressor: Callable[..., Any],
    tmp_path_factory: pytest.TempPathFactory,
) -> Released:
    folder = tmp_path_factory.mktemp("released")
    output = folder / "out"
    shutil.copytree(finished.output, output)
    gate = folder / "gate.json"
    judged = compressor("gate", output, "--output", gate)
    assert judged.code == 0, judged
    options = ("--uri", mlflow_server, "--experiment", "words", "--gate", gate)
    outcome = compressor("track", output, "--to", "mlflow", *options, "--register", "questions")
    return Released(output, gate, "words", outcome)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A report that passes with one of two targets, and the bundle of the one that does."""
    shutil.copyfile(REPORT, tmp_path / "report.json")
    bundle(tmp_path / "bundles" / "int8-onnxruntime")
    return tmp_path


def bundle(folder: Path) -> None:
    """A bundle of the right form; nothing here runs it."""
    folder.mkdir(parents=True)
    for name in ("model.onnx", "tokenizer.json"):
        (folder / name).write_text(name, encoding="utf-8")
    manifest = {
        "schema_version": 1,
        "name": "int8",
        "task": "text-classification",
        "target": "onnxruntime",
        "target_settings": {},
        "precision": "int8",
        "signature": {"inputs": [], "outputs": []},
        "model": "model.onnx",
        "labels": ["a", "b"],
        "preprocessing": {"kind": "text", "max_length": 8, "pad_token_id": 0},
        "files": {},
    }
    Bundle.create(folder, Manifest.model_validate(manifest))


def gate(compressor: Callable[..., Any], folder: Path, *options: str) -> Path:
    file = folder / "gate.json"
    compressor("gate", folder, "--output", file, *options)
    return file
