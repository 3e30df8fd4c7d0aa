"""What goes into a model and what comes out: names, types and shapes with free dimensions."""

from __future__ import annotations

import functools
from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

from targets.errors import InputError

__all__ = ["PAST", "TOTAL", "Arrays", "Signature", "StateSpec", "TensorSpec"]

PAST = "past"
"""The dimension of a state that grows from run to run, from 0."""
TOTAL = "total"
"""The dimension of all that was read so far, what is read now included."""

Arrays = dict[str, NDArray[np.generic]]
"""Named arrays, the one form in which data enters and leaves a session."""


class TensorSpec(BaseModel):
    """One named tensor.

    ``shape`` holds an int for a fixed dimension and a name for a free one; dimensions with one
    name have one size.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    dtype: str
    shape: tuple[int | str, ...]


class StateSpec(TensorSpec):
    """What a model gives at one run and takes at the next, such as the keys of tokens it has read.

    Its name is that of the input. The first dimension is that of the batch; one is `PAST`.
    """

    output: str
    """Name of the output that the next run takes."""


class Signature(BaseModel):
    """The inputs and outputs of a model, and what its sessions keep between two runs."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    state: tuple[StateSpec, ...] = Field(default=(), exclude_if=lambda state: not state)
    """Beside the inputs and outputs; empty where a run depends on its inputs alone."""
    context: tuple[str, ...] = Field(default=(), exclude_if=lambda context: not context)
    """Names of the inputs that are read once, when a run begins anew: those of the encoder, where a
    decoder goes on from what it gave."""

    @property
    def going_on(self) -> Signature:
        """What a run takes that goes on from the last one: all but the context."""
        left = tuple(spec for spec in self.inputs if spec.name not in self.context)
        return self.model_copy(update={"inputs": left, "context": ()})

    def initial_state(self, batch_size: int) -> Arrays:
        """The state before the first run, by the names of its inputs."""
        return {
            spec.name: np.zeros(
                [
                    0 if dim == PAST else batch_size if isinstance(dim, str) else dim
                    for dim in spec.shape
                ],
                dtype=spec.dtype,
            )
            for spec in self.state
        }

    @property
    def free_dimensions(self) -> tuple[str, ...]:
        """Names of the free dimensions of the inputs, in order of appearance."""
        names = (dim for spec in self.inputs for dim in spec.shape if isinstance(dim, str))
        return tuple(dict.fromkeys(names))

    def check(self, feeds: Mapping[str, NDArray[np.generic]]) -> None:
        """Compare arrays with the inputs.

        Raises:
            InputError: Names the first input that is absent, unknown, or of another type or shape.
        """
        sizes: dict[str, int] = {}
        for spec in self.inputs:
            array = feeds.get(spec.name)
            if array is not None and not isinstance(array, np.ndarray):
                raise InputError(
                    f"input {spec.name!r} is not an array",
                    given=type(array).__name__,
                    fix=f"pass a numpy array of {spec.dtype}",
                )
            if array is None:
                raise InputError(
                    f"input {spec.name!r} is missing",
                    given=", ".join(feeds) or "no inputs",
                    fix=f"pass {', '.join(each.name for each in self.inputs)}",
                )
            if _name(array.dtype) != spec.dtype:
                raise InputError(
                    f"input {spec.name!r} has the wrong type",
                    given=array.dtype.name,
                    fix=f"pass {spec.dtype}",
                )
            if not _fits(array.shape, spec.shape, sizes):
                raise InputError(
                    f"input {spec.name!r} has the wrong shape",
                    given=tuple(array.shape),
                    fix=f"pass ({', '.join(str(dim) for dim in spec.shape)})"
                    + (f" with {sizes}" if sizes else ""),
                )
        if len(feeds) != len(self.inputs):
            known = {spec.name for spec in self.inputs}
            unknown = ", ".join(repr(name) for name in feeds if name not in known)
            raise InputError(
                f"unknown input {unknown}",
                given=", ".join(feeds),
                fix=f"pass only {', '.join(sorted(known))}",
            )


@functools.cache
def _name(dtype: np.dtype[np.generic]) -> str:
    """Name of a type; numpy builds it anew each time, which costs more than all other checks."""
    return dtype.name


def _fits(shape: tuple[int, ...], wanted: tuple[int | str, ...], sizes: dict[str, int]) -> bool:
    """Compare a shape with the wanted one; adds the free sizes that it fixes where it fits."""
    if len(shape) != len(wanted):
        return False
    fixed = dict(sizes)
    for size, dim in zip(shape, wanted, strict=True):
        expected = fixed.setdefault(dim, size) if isinstance(dim, str) else dim
        if size != expected or size == 0:
            return False
    sizes.update(fixed)
    return True
