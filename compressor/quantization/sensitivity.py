"""Which matrix products a model's outputs depend on most when they are rounded to int8."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray

from compressor.onnx_io import save_model
from targets.runtimes.onnxruntime import create_session
from targets.signature import Arrays

__all__ = ["sensitivities"]


def sensitivities(
    model: onnx.ModelProto,
    nodes: Iterable[str],
    rounded: Callable[[str], onnx.ModelProto],
    batches: Sequence[Arrays],
    *,
    threads: int = 1,
) -> dict[str, float]:
    """The error that each node alone brings into the outputs.

    Args:
        model: A float model.
        nodes: Names of nodes.
        rounded: Gives the model in which the named node alone is quantized.
        batches: Inputs, by name.
        threads: CPU threads to run with.

    Returns:
        Node -> squared difference of all outputs over their squares.
    """
    before = _outputs(model, batches, threads)
    size = sum(_square_sum(each) for each in before) or 1.0

    def error(node: str) -> float:
        after = _outputs(rounded(node), batches, threads)
        differences = zip(before, after, strict=True)
        return sum(_square_sum(one - other) for one, other in differences) / size

    return {node: error(node) for node in nodes}


def _square_sum(values: NDArray[np.float32]) -> float:
    return float(np.square(values, dtype=np.float64).sum())


def _outputs(
    model: onnx.ModelProto, batches: Sequence[Arrays], threads: int
) -> list[NDArray[np.float32]]:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        save_model(model, path)
        # Without fusion the rounding is exact: no kernel saturates, whatever the processor.
        session = create_session(path, threads=threads, optimization="none")
        names = {each.name for each in session.get_inputs()}
        found: list[NDArray[np.float32]] = []
        for batch in batches:
            feeds = {name: each for name, each in batch.items() if name in names}
            found += [np.asarray(each, np.float32) for each in session.run(None, feeds)]
        return found
