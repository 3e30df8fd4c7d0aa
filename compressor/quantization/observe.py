"""Run a model over calibration data and watch the values inside it."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import onnx
from numpy.typing import NDArray

from compressor.errors import PassError
from compressor.onnx_io import copy_model, save_model
from compressor.quantization.histogram import Histogram
from targets.runtimes.onnxruntime import create_session
from targets.signature import Arrays

if TYPE_CHECKING:
    import onnxruntime

__all__ = ["Observations", "observe"]

_ROWS = 32  # of a batch, of what samples are kept


@dataclass
class Observations:
    """What was seen.

    Attributes:
        histograms: Tensor name -> histogram of its magnitudes.
        channel_maxima: Tensor name -> largest magnitude in each channel of its last dimension.
        samples: Tensor name -> some of its values, evenly out of every batch, (S, channels).
        num_batches: How many batches were run.
    """

    histograms: dict[str, Histogram] = field(default_factory=dict)
    channel_maxima: dict[str, NDArray[np.float32]] = field(default_factory=dict)
    samples: dict[str, NDArray[np.float32]] = field(default_factory=dict)
    num_batches: int = 0


def observe(
    model: onnx.ModelProto,
    batches: Iterable[Arrays],
    *,
    histograms: Sequence[str] = (),
    channel_maxima: Sequence[str] = (),
    samples: Sequence[str] = (),
    threads: int = 1,
) -> Observations:
    """Run ``model`` once for each batch and collect statistics of the named tensors.

    Only one batch's values are held at a time.

    Args:
        model: A float model; stays as it is.
        batches: Inputs, by name.
        histograms: Tensors of which to collect a histogram of magnitudes.
        channel_maxima: Tensors of which to collect the largest magnitude of each channel.
        samples: Tensors of which to keep some rows of each batch.
        threads: CPU threads to run with.

    Raises:
        PassError: There were no batches, or a tensor took a value that is not finite.
    """
    names = list(dict.fromkeys([*histograms, *channel_maxima, *samples]))
    kept: dict[str, list[NDArray[np.float32]]] = {name: [] for name in samples}
    result = Observations(histograms={name: Histogram.empty() for name in histograms})
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "observed.onnx"
        save_model(_with_outputs(model, names), path)
        session = create_session(path, threads=threads)
        for batch in batches:
            for name, values in _run(session, names, batch).items():
                _check_finite(name, values)
                if name in result.histograms:
                    result.histograms[name] = result.histograms[name].add(values)
                if name in channel_maxima:
                    maxima = np.abs(values).reshape(-1, values.shape[-1]).max(0)
                    seen = result.channel_maxima.get(name, maxima)
                    result.channel_maxima[name] = np.maximum(seen, maxima)
                if name in kept:
                    rows = values.reshape(-1, values.shape[-1])
                    chosen = np.linspace(0, len(rows) - 1, min(_ROWS, len(rows)), dtype=np.int64)
                    kept[name].append(rows[chosen])
            result.num_batches += 1
    if result.num_batches == 0:
        raise PassError(
            "calibration got no data", fix="pass at least one batch of representative inputs"
        )
    result.samples = {name: np.concatenate(parts) for name, parts in kept.items()}
    return result


def _run(
    session: onnxruntime.InferenceSession, names: Sequence[str], batch: Arrays
) -> dict[str, NDArray[np.float32]]:
    """Values of the named tensors, inputs of the model among them."""
    inputs = {value.name for value in session.get_inputs()}
    feeds = {name: array for name, array in batch.items() if name in inputs}
    inner = [name for name in names if name not in inputs]
    made = dict(zip(inner, session.run(inner, feeds), strict=True)) if inner else {}
    return {name: np.asarray(made.get(name, feeds.get(name)), np.float32) for name in names}


def _with_outputs(model: onnx.ModelProto, names: Sequence[str]) -> onnx.ModelProto:
    """The model with these tensors as outputs, and none else that would be computed for nothing.

    The logits of a language model alone are some gigabytes a batch.
    """
    observed = copy_model(model)
    inputs = {value.name for value in model.graph.input}
    inner = [name for name in names if name not in inputs]
    if not inner:
        return observed
    for index in range(len(observed.graph.output) - 1, -1, -1):
        if observed.graph.output[index].name not in inner:
            del observed.graph.output[index]
    known = {value.name for value in observed.graph.output}
    for name in inner:
        if name not in known:
            value = onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None)
            observed.graph.output.append(value)
    return observed


def _check_finite(name: str, values: NDArray[np.float32]) -> None:
    if not np.isfinite(values).all():
        raise PassError(
            "the model gives values that are not finite on the calibration data",
            where=f"tensor {name}",
            fix="check the checkpoint and the calibration data; this model cannot be quantized",
        )
