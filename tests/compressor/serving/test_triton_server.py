"""A real Triton server loads what is written for it, and answers as the bundle does.

The server is the one that PyTriton brings. It has the Python backend only: a small one of ours
stands for those of ONNX Runtime and OpenVINO (``python_backend.py``), with the same runtimes.
"""

from __future__ import annotations

import importlib.util
import json
import os
import platform
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import targets
from compressor.serving import Packaged
from targets import Bundle
from targets.signature import Arrays

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        sys.platform != "linux" or platform.machine() != "x86_64",
        reason="the server is published for Linux on x86-64 only",
    ),
]

MakeBundle = Callable[..., Bundle]
Package = Callable[..., tuple[Path, Packaged]]

SERVER = ("nvidia-pytriton==0.7.0", "numpy==1.26.4")
"""Its Python backend is of a time before numpy 2."""

NEEDED = ("onnxruntime", "openvino", "tokenizers", "flatbuffers", "google", "packaging")
START_S = 60.0
DATA_TYPES = {"INT64": np.int64, "FP32": np.float32}


class Triton:
    """A running server."""

    def __init__(self, url: str, log: Path) -> None:
        self.url = url
        self.log = log

    def said(self) -> str:
        """The end of what it wrote."""
        return self.log.read_text(errors="replace")[-6000:]

    def get(self, path: str, body: dict[str, Any] | None = None) -> Any:
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(f"{self.url}/v2/{path}", data)  # noqa: S310  (loopback)
        try:
            with urllib.request.urlopen(request, timeout=30) as response:  # noqa: S310
                return json.loads(response.read() or b"{}")
        except urllib.error.HTTPError as error:
            raise AssertionError(f"{error.read().decode()}\n{self.said()}") from error

    def infer(self, model: str, inputs: list[dict[str, Any]], **outputs: Any) -> dict[str, Any]:
        body: dict[str, Any] = {"inputs": inputs}
        if outputs:
            body["outputs"] = [
                {"name": name, "parameters": given} for name, given in outputs.items()
            ]
        answer = self.get(f"models/{model}/infer", body)
        return {each["name"]: each for each in answer["outputs"]}

    def logits(self, model: str, inputs: list[dict[str, Any]]) -> np.ndarray[Any, Any]:
        found = self.infer(model, inputs)["logits"]
        assert found["datatype"] == "FP32"
        return np.array(found["data"], np.float32).reshape(found["shape"])


def arrays(feeds: Arrays) -> list[dict[str, Any]]:
    return [
        {
            "name": name,
            "datatype": "INT64",
            "shape": list(each.shape),
            "data": each.reshape(-1).tolist(),
        }
        for name, each in feeds.items()
    ]


def strings(texts: tuple[str, ...], *, batched: bool = True) -> list[dict[str, Any]]:
    shape = [len(texts), 1] if batched else [len(texts)]
    return [{"name": "text", "datatype": "BYTES", "shape": shape, "data": list(texts)}]


@pytest.fixture
def serve(published: Callable[..., Path], tmp_path: Path) -> Callable[[Path], Any]:
    """Start a server on a model repository: with serve(folder) as triton."""
    installed = published(*SERVER)
    root = installed / "pytriton" / "tritonserver"
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    stub = root / "python_backend_stubs" / version / "triton_python_backend_stub"
    if not stub.is_file():
        pytest.skip(f"the server has no Python backend for Python {version}")
    # An interpreter takes its libraries from the environment whose python is first on the path,
    # and this one has a numpy that the backend cannot read.
    paths = os.environ["PATH"].split(os.pathsep)
    own = Path(sys.executable).parent
    env = os.environ | {
        "LD_LIBRARY_PATH": str(installed / "nvidia_pytriton.libs"),
        "PATH": os.pathsep.join(each for each in paths if Path(each) != own),
    }
    linked = subprocess.run(
        ["ldd", str(stub)], capture_output=True, text=True, env=env, check=False
    )
    if "not found" in linked.stdout:
        pytest.skip(f"the server lacks a library: {linked.stdout.strip()}")
    backends = tmp_path / "backends"
    shutil.copytree(root / "backends" / "python", backends / "python")
    shutil.copy(stub, backends / "python")
    # The backend's interpreter ignores PYTHONPATH, but looks beside its own files.
    for path in (*installed.glob("numpy*"), *map(location, NEEDED)):
        if path is not None:
            (backends / "python" / path.name).symlink_to(path)
    for name in ("onnxruntime", "openvino"):
        (backends / name).mkdir()
        shutil.copy(Path(__file__).with_name("python_backend.py"), backends / name / "model.py")

    @contextmanager
    def run(repository: Path) -> Iterator[Triton]:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        log = tmp_path / "server.log"
        options = {
            "model-repository": repository,
            "backend-directory": backends,
            "http-address": "127.0.0.1",
            "http-port": port,
            "allow-grpc": "false",
            "allow-metrics": "false",
        }
        command = [str(root / "bin" / "tritonserver"), "--disable-auto-complete-config"]
        command += [f"--{key}={value}" for key, value in options.items()]
        with log.open("w") as stream:
            process = subprocess.Popen(
                command, stdout=stream, stderr=subprocess.STDOUT, env=env, cwd=tmp_path
            )
        try:
            yield wait_for(Triton(f"http://127.0.0.1:{port}", log), process)
        finally:
            process.terminate()
            try:
                process.wait(timeout=40)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()

    return run


def location(name: str) -> Path | None:
    found = importlib.util.find_spec(name)
    places = None if found is None else found.submodule_search_locations
    return Path(next(iter(places))) if places else None


def wait_for(triton: Triton, process: subprocess.Popen[bytes]) -> Triton:
    end = time.monotonic() + START_S
    while time.monotonic() < end:
        assert process.poll() is None, triton.said()
        try:
            triton.get("health/ready")
        except (AssertionError, OSError):
            time.sleep(0.2)
        else:
            return triton
    raise AssertionError(triton.said())


@pytest.mark.parametrize(
    ("target", "options"),
    [
        ("onnxruntime", {"threads": 1}),
        ("onnxruntime", {"max_batch_size": 0, "threads": 1}),
        ("openvino", {"threads": 1}),
    ],
)
def test_the_server_answers_as_the_bundle_does(
    target: str,
    options: dict[str, Any],
    make_bundle: MakeBundle,
    package: Package,
    serve: Callable[[Path], Any],
    texts: tuple[str, ...],
) -> None:
    bundle = make_bundle(target)
    folder, packaged = package(bundle, "triton", text=True, **options)
    with targets.load(bundle.folder) as predictor:
        samples, expected = predictor.encode(texts), predictor.logits(texts)
        labels = [each.label for each in predictor.predict(texts)]
    signature = bundle.manifest.signature
    # The server's OpenVINO cannot be told to stay in float32 where the processor has bfloat16.
    is_rounded = target == "openvino" and "bf16" in targets.get("openvino").native_precisions()
    tolerance = 0.1 if is_rounded else 1e-4
    with serve(folder) as triton:
        # Token ids, in batches of any size and length.
        answers = [
            (batch, {"logits": triton.logits(packaged.name, arrays(batch.feeds))})
            for size in (4,)
            for batch in samples.batches(size, signature)
        ]
        found = samples.restore(answers, signature)["logits"]
        np.testing.assert_allclose(found, expected, rtol=tolerance, atol=tolerance)
        # Text, all at once and one by one.
        batched = "dynamic_batching" in (folder / "small" / "config.pbtxt").read_text()
        ensemble = f"{packaged.name}-text"
        found = triton.logits(ensemble, strings(texts, batched=batched))
        np.testing.assert_allclose(found, expected, rtol=tolerance, atol=tolerance)
        for text, row in zip(texts, expected, strict=True):
            found = triton.logits(ensemble, strings((text,), batched=batched))
            np.testing.assert_allclose(found[0], row, rtol=tolerance, atol=tolerance)
        # Labels by name, from the file beside the configuration.
        if batched:
            inputs = strings(texts)
            answer = triton.infer(ensemble, inputs, logits={"classification": 1})["logits"]
            assert [each.split(":")[2] for each in answer["data"]] == labels


def settled(triton: Triton, model: str, count: int) -> dict[str, Any]:
    """The statistics of a model, which the server updates after it has answered."""
    end = time.monotonic() + START_S
    while True:
        [found] = triton.get(f"models/{model}/stats")["model_stats"]
        if found["inference_count"] >= count or time.monotonic() > end:
            return dict(found)
        time.sleep(0.05)


def test_requests_meet_in_one_batch(
    make_bundle: MakeBundle, package: Package, serve: Callable[[Path], Any]
) -> None:
    """Four texts of other lengths: padded to one multiple, they run once."""
    bundle = make_bundle()
    options = {"max_batch_size": 4, "preferred_batch_sizes": (4,), "queue_delay_us": 10_000_000}
    folder, packaged = package(bundle, "triton", text=True, threads=1, **options)
    texts = ("w1", "w2 w3", "w4 w5 w6", "w7 w8 w9 w10")
    with targets.load(bundle.folder) as predictor:
        expected = predictor.logits(texts)
    with serve(folder) as triton, ThreadPoolExecutor(4) as pool:
        asked = [pool.submit(triton.logits, "small-text", strings((text,))) for text in texts]
        found = np.concatenate([each.result() for each in asked])
        statistics = settled(triton, packaged.name, 4)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)
    assert statistics["inference_count"] == 4
    assert statistics["execution_count"] == 1


def test_the_server_refuses_what_does_not_fit(
    make_bundle: MakeBundle, package: Package, serve: Callable[[Path], Any]
) -> None:
    """The server reads the configuration that is checked here, and not one that it guessed."""
    folder, _ = package(make_bundle(), "triton", threads=1)
    ids = np.ones((1, 4), np.int64)
    with serve(folder) as triton:
        with pytest.raises(AssertionError, match="expected 2 inputs but got 1"):
            triton.logits("small", arrays({"input_ids": ids}))
        rows = np.ones((33, 4), np.int64)
        with pytest.raises(AssertionError, match="<= 32"):
            triton.logits("small", arrays({"input_ids": rows, "attention_mask": rows}))
    config = folder / "small" / "config.pbtxt"
    config.write_text(config.read_text().replace("TYPE_INT64", "TYPE_INT46"))
    with pytest.raises(AssertionError, match="TYPE_INT46"), serve(folder):
        pass
