"""How many int8 operations a second the runtimes reach here, by the size of a matrix product.

Each model is one product with weights, quantized and lowered as any other. The largest says what
the machine can do; the others are those of small encoders at 128 tokens.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from compressor.quantization import quantize_static
from targets.base import Source
from targets.registry import get
from targets.runtimes.onnxruntime import create_session
from targets.signature import Signature, TensorSpec

SIZES = ((2048, 2048, 2048), (128, 384, 1536), (128, 1536, 384), (128, 384, 384), (128, 384, 96))
"""Rows of activations, rows and columns of the weights."""
SECONDS = 1.0
ROUNDS = 5

Run = Callable[[], Any]


def main(arguments: Sequence[str] | None = None) -> int:
    """Time every size on both runtimes, and print a table in Markdown."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gemm_peak", description=__doc__)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args(arguments)
    print("| rows x inner x columns | ONNX Runtime, GOPS | OpenVINO, GOPS |")
    print("|---|---|---|")
    for size in SIZES:
        rows, inner, columns = size
        found = list(gops(size, options.threads).values())
        print(f"| {rows} x {inner} x {columns} | {found[0]:.0f} | {found[1]:.0f} |", flush=True)
    return 0


def gops(size: tuple[int, int, int], threads: int) -> dict[str, float]:
    """Runtime -> billions of operations a second in a product of a size."""
    rows, inner, columns = size
    with tempfile.TemporaryDirectory() as folder:
        runs = [make(Path(folder), size, threads) for make in MAKERS.values()]
        found = _seconds(runs)
    operations = 2e-9 * rows * inner * columns
    return {name: operations / each for name, each in zip(MAKERS, found, strict=True)}


def _seconds(runs: Sequence[Run]) -> list[float]:
    """Of one call of each: the median of rounds in turn, each the median of its calls."""
    rounds: list[list[float]] = [[] for _ in runs]
    for _ in range(ROUNDS):
        for run, found in zip(runs, rounds, strict=True):
            times = []
            end = time.perf_counter() + SECONDS
            while (start := time.perf_counter()) < end:
                run()
                times.append(time.perf_counter() - start)
            found.append(statistics.median(times))
    return [statistics.median(each) for each in rounds]


def _onnxruntime(folder: Path, size: tuple[int, int, int], threads: int) -> Run:
    model, options = _lowered("onnxruntime", folder, size)
    # Spinning threads would take the processor from the other runtime.
    session = create_session(
        model,
        threads=threads,
        options={**options["session"], "session.intra_op.allow_spinning": "0"},
    )
    feeds = _feeds(size)
    return lambda: session.run(None, feeds)


def _openvino(folder: Path, size: tuple[int, int, int], threads: int) -> Run:
    import openvino

    model, options = _lowered("openvino", folder, size)
    settings = {"INFERENCE_NUM_THREADS": threads, "NUM_STREAMS": 1, **options}
    request = openvino.Core().compile_model(str(model), "CPU", settings).create_infer_request()
    feeds = _feeds(size)
    return lambda: request.infer(feeds, share_inputs=True)


def _feeds(size: tuple[int, int, int]) -> dict[str, Any]:
    return {"x": np.random.default_rng(0).standard_normal(size[:2], dtype=np.float32)}


def _lowered(target: str, folder: Path, size: tuple[int, int, int]) -> tuple[Path, dict[str, Any]]:
    """One product in int8 in the form of a target, and the options that it asks for."""
    rows, inner, columns = size
    weight = np.random.default_rng(1).standard_normal((inner, columns), dtype=np.float32)
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"], name="product")],
        "product",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [rows, inner])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [rows, columns])],
        [numpy_helper.from_array(weight, "w")],
    )
    own = folder / target
    own.mkdir()
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    onnx.save(model, own / "float.onnx")
    quantize_static(own / "float.onnx", own / "int8.onnx", [_feeds(size)], weight_bits=7)
    signature = Signature(
        inputs=(TensorSpec(name="x", dtype="float32", shape=(rows, inner)),),
        outputs=(TensorSpec(name="y", dtype="float32", shape=(rows, columns)),),
    )
    source = Source(own / "int8.onnx", signature, precision="int8")
    made = get(target).lower(source, own)
    return own / made.model, dict(made.options)


MAKERS: Mapping[str, Callable[[Path, tuple[int, int, int], int], Run]] = {
    "onnxruntime": _onnxruntime,
    "openvino": _openvino,
}
"""Runtime -> makes a call of a product: from a folder, its size and the threads."""


if __name__ == "__main__":
    raise SystemExit(main())
