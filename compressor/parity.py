"""Does an ONNX file compute what the torch model computes? Measured on real inputs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from compressor.errors import PassError
from compressor.tasks import get_task
from targets.errors import MissingLibraryError
from targets.preprocessing.base import DECODER_IDS
from targets.preprocessing.text import IDS, MASK
from targets.signature import Arrays, Signature

if TYPE_CHECKING:
    from compressor.model import TorchModel

__all__ = ["Parity", "measure_parity", "open_session"]

LARGE_BATCH = 12


@dataclass(frozen=True)
class Parity:
    """How far two models are apart.

    Attributes:
        max_abs_difference: Largest difference of any output value.
        max_relative_difference: The same as a part of the largest output of its batch, or of 1
            where that is smaller.
        worst_case: The batch in which the relative difference was largest.
        num_batches: Number of batches compared.
    """

    max_abs_difference: float
    max_relative_difference: float
    worst_case: str
    num_batches: int


def measure_parity(
    model: TorchModel, path: Path, inputs: Sequence[Any], signature: Signature | None = None
) -> Parity:
    """Compare an ONNX file, run by ONNX Runtime on the CPU, with the torch model.

    The batches have sizes and lengths that the export's example did not have; see `Task.probes`.

    Args:
        model: The torch model.
        path: The ONNX file.
        inputs: Real ones, N >= 1.
        signature: Of the ONNX file, where that keeps a state; all batches but one begin anew.

    Raises:
        PassError: An output is not finite, or of another shape.
        MissingLibraryError: ONNX Runtime is not installed.
    """
    session = open_session(path)
    output = session.get_outputs()[0].name
    worst, largest, largest_relative, count = "no batch", 0.0, 0.0, 0
    is_continued = False
    task = get_task(model.task)
    step = max(1, len(inputs) // LARGE_BATCH)
    rows = task.encode(model, inputs[::step][:LARGE_BATCH])
    for case, batch in task.probes(model, rows).items():
        expected = _run_torch(model, batch, output)
        found = None
        if signature is not None and not is_continued:
            # One of the batches is read in two runs, the second of which goes on from the first.
            found = _in_two_runs(session, signature, batch, output)
        if found is not None:
            case, is_continued = f"{case}, in two runs", True
        else:
            size = len(next(iter(batch.values())))
            state = {} if signature is None else signature.initial_state(size)
            (found,) = session.run([output], {**batch, **state})
        if found.shape != expected.shape or not np.isfinite(found).all():
            raise PassError(
                "the ONNX model does not compute what the torch model computes",
                where=case,
                given=f"outputs of shape {found.shape}, wanted {expected.shape}"
                if found.shape != expected.shape
                else "outputs that are not finite",
                fix="report the model: its export is wrong",
            )
        # What a row without a single token means is nobody's promise: it must only stay finite.
        mask = batch.get(MASK)
        real = slice(None) if mask is None else mask.any(axis=1)
        fed = {name: torch.from_numpy(each[real]) for name, each in batch.items()}
        wanted, given = (
            task.answered(torch.from_numpy(each[real]), fed) for each in (expected, found)
        )
        difference = float((given - wanted).abs().max())
        relative = difference / max(1.0, float(wanted.abs().max()))
        largest, count = max(largest, difference), count + 1
        if relative >= largest_relative:
            worst, largest_relative = case, relative
    return Parity(largest, largest_relative, worst, count)


def _in_two_runs(
    session: Any, signature: Signature, batch: Arrays, output: str
) -> NDArray[np.float32] | None:
    """What a model that keeps a state gives where it reads its tokens in two parts, one by one.

    Returns:
        (N, tokens, ...), or None where the model keeps no state, or the batch has a single token or
        padding, which stands where the second part would go on.
    """
    name = DECODER_IDS if DECODER_IDS in batch else IDS
    if not signature.state or name not in batch or batch[name].shape[1] < 2:
        return None
    own_mask = name == IDS and MASK in batch
    if own_mask and not batch[MASK].all():
        return None
    size, total = batch[name].shape
    names = [output, *(spec.output for spec in signature.state)]
    parts, state = [], signature.initial_state(size)
    for begin, end in ((0, total // 2), (total // 2, total)):
        feeds = {**batch, name: batch[name][:, begin:end]}
        if own_mask:
            feeds[MASK] = batch[MASK][:, :end]
        found, *kept = session.run(names, {**feeds, **state})
        state = {spec.name: each for spec, each in zip(signature.state, kept, strict=True)}
        parts.append(found)
    return np.concatenate(parts, axis=1)


def open_session(path: Path) -> Any:
    """Open an ONNX file in ONNX Runtime on the CPU, without threads that spin when idle."""
    try:
        import onnxruntime
    except ImportError as error:
        raise MissingLibraryError.for_extra(
            "onnxruntime", "build", "the check of exports"
        ) from error
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


@torch.no_grad()
def _run_torch(model: TorchModel, batch: Arrays, output: str) -> NDArray[np.float32]:
    feeds = {name: torch.from_numpy(array) for name, array in batch.items()}
    result: NDArray[np.float32] = model.module(**feeds)[output].numpy()
    return result
