"""How much a model's outputs change with what is rounded in it, and how."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

import numpy as np
import onnx
from numpy.typing import NDArray

from compressor.onnx_io import save_model
from targets.runtimes.onnxruntime import create_session
from targets.signature import Arrays

__all__ = ["output_errors"]

_MOST_BYTES = 2**28
"""Of outputs that are kept."""

Choice = TypeVar("Choice", bound=Hashable)


def output_errors(
    model: onnx.ModelProto,
    choices: Iterable[Choice],
    rounded: Callable[[Choice], onnx.ModelProto],
    batches: Sequence[Arrays],
    *,
    threads: int = 1,
) -> dict[Choice, float]:
    """The error that each of several roundings brings into the outputs.

    Args:
        model: A float model.
        choices: Such as the names of nodes, of which one alone is rounded.
        rounded: Gives the model that is rounded in the chosen way.
        batches: Inputs, by name.
        threads: CPU threads to run with.

    Returns:
        Choice -> squared difference of the first output over its squares; infinite where it is not
        finite any more. (Others are keys and values, which a language model keeps.)
    """
    kept: dict[int, NDArray[np.float32]] = {}

    def error(choice: Choice) -> float:
        difference = size = 0.0
        with _session(rounded(choice), threads) as run:
            for number, batch in enumerate(batches):
                before = kept[number] if number in kept else plain(batch)
                # The logits of a language model are gigabytes a batch.
                if sum(each.nbytes for each in kept.values()) + before.nbytes <= _MOST_BYTES:
                    kept[number] = before
                difference += _square_sum(before - run(batch))
                size += _square_sum(before)
        found = difference / (size or 1.0)
        return found if np.isfinite(found) else float("inf")

    with _session(model, threads) as plain:
        return {choice: error(choice) for choice in choices}


def _square_sum(values: NDArray[np.float32]) -> float:
    return float(np.square(values, dtype=np.float64).sum())


@contextmanager
def _session(
    model: onnx.ModelProto, threads: int
) -> Iterator[Callable[[Arrays], NDArray[np.float32]]]:
    """What gives the first output of a model."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        save_model(model, path)
        # Without fusion the rounding is exact: no kernel saturates, whatever the processor.
        session = create_session(path, threads=threads, optimization="none")
        names = {each.name for each in session.get_inputs()}
        output = session.get_outputs()[0].name

        def run(batch: Arrays) -> NDArray[np.float32]:
            feeds = {name: each for name, each in batch.items() if name in names}
            return np.asarray(session.run([output], feeds)[0], np.float32)

        yield run
