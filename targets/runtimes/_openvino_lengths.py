"""Models of fixed shapes beside one of free shape: a text runs in the shortest that holds it.

OpenVINO plans memory and kernels when it compiles. Where the length of a text is free it does part
of that anew whenever the length changes, and some of it at every run: a small model takes twice as
long for texts of mixed lengths as one that was compiled for their length, padding included.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from targets.errors import TargetError
from targets.preprocessing.text import IDS, MASK
from targets.signature import Arrays, Signature

if TYPE_CHECKING:
    import openvino

__all__ = [
    "LARGEST_BYTES",
    "LEAST_PADDING",
    "LENGTHS",
    "FixedLengths",
    "agree",
    "fixed_lengths",
]

LENGTHS = "LENGTHS"
"""The option of a bundle that names them."""
_LADDER = (8, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512)
LARGEST_BYTES = 32_000_000
"""Of the weights: each model that is compiled has its own."""
_WIDEST = 4096
"""Of an output for each token: that of a language model would take as much as its weights."""
LEAST_PADDING = 3
"""Tokens of padding of a text that is tried."""
_TOLERANCE = 0.05


def fixed_lengths(
    signature: Signature, ranges: Mapping[str, tuple[int, int, int]], num_bytes: int
) -> tuple[int, ...]:
    """The lengths to compile a model for, in tokens; none where that cannot be, or does not pay.

    Args:
        signature: Of the model.
        ranges: Free dimension -> (smallest, usual, largest) size.
        num_bytes: Of its weights.
    """
    shapes = {spec.shape for spec in signature.inputs}
    names = {spec.name for spec in signature.inputs}
    reads_tokens = {IDS, MASK} <= names and all(spec.dtype == "int64" for spec in signature.inputs)
    if signature.state or signature.context or len(shapes) != 1 or not reads_tokens:
        return ()
    (shape,) = shapes
    if len(shape) != 2 or not all(isinstance(dim, str) for dim in shape):
        return ()
    length = str(shape[1])
    writes = any(
        length in spec.shape and isinstance(spec.shape[-1], int) and spec.shape[-1] > _WIDEST
        for spec in signature.outputs
    )
    if writes or num_bytes > LARGEST_BYTES:
        return ()
    shortest, _, longest = ranges.get(length, (0, 0, 0))
    shorter = [each for each in _LADDER if shortest + LEAST_PADDING <= each < longest]
    return (*shorter, longest) if 0 < longest <= _LADDER[-1] else tuple(shorter)


class FixedLengths:
    """Runs single texts; a model is compiled when the first text of its length comes.

    A length for which none can be compiled, as where memory runs out, is left out from then on.

    Args:
        signature: Of the model: inputs of tokens, with a mask.
        lengths: In ascending order.
        compile_: Makes a model for inputs of a shape; raises RuntimeError or TargetError.
    """

    def __init__(
        self,
        signature: Signature,
        lengths: Sequence[int],
        compile_: Callable[[tuple[int, int]], openvino.CompiledModel],
    ) -> None:
        self._lengths = tuple(lengths)
        self._compile = compile_
        self._dim = signature.inputs[0].shape[1] if lengths else None
        self._signature = signature
        self._models: dict[int, _Model] = {}

    def length_for(self, feeds: Mapping[str, NDArray[np.generic]]) -> int | None:
        """The length to run a text in; None for several, and for one that is longer than all."""
        if not self._lengths:
            return None
        count, length = next(iter(feeds.values())).shape
        if count != 1:
            return None
        found = next((each for each in self._lengths if each >= length), None)
        if found is None or found in self._models:
            return found
        try:
            self._models[found] = self._made(found)
        except (RuntimeError, TargetError):
            self._lengths = tuple(each for each in self._lengths if each != found)
            return None
        return found

    def run(self, feeds: Mapping[str, NDArray[np.generic]], length: int) -> Arrays:
        """Run one text, padded with what the mask leaves out."""
        model = self._models[length]
        given = next(iter(feeds.values())).shape[1]
        for name, array in feeds.items():
            held = model.inputs[name]
            held[:, :given] = array
            held[:, given:] = 0
        model.request.infer(share_outputs=True)
        found: Arrays = {}
        for spec in self._signature.outputs:
            kept = tuple(slice(given if dim == self._dim else None) for dim in spec.shape)
            found[spec.name] = model.outputs[spec.name][kept].copy()
        return found

    def request(self, length: int) -> openvino.InferRequest:
        """That of the runtime, for texts of a length that was run."""
        return self._models[length].request

    def _made(self, length: int) -> _Model:
        request = self._compile((1, length)).create_infer_request()
        inputs, outputs = (
            {spec.name: request.get_tensor(spec.name).data for spec in specs}
            for specs in (self._signature.inputs, self._signature.outputs)
        )
        return _Model(request, inputs, outputs)


@dataclass(frozen=True)
class _Model:
    request: openvino.InferRequest
    inputs: Mapping[str, NDArray[Any]]
    """Its own memory, as that of the outputs."""
    outputs: Mapping[str, NDArray[Any]]


def agree(
    signature: Signature,
    free: Callable[[Arrays], Arrays],
    fixed: FixedLengths,
    length: int,
    padding: int,
) -> bool:
    """Whether a padded text has the answer that it has alone.

    Not so where a layer looks across the mask, such as a convolution over tokens.

    Args:
        signature: Of the model.
        free: Runs it with inputs of any length.
        fixed: Runs it with inputs of some lengths.
        length: One of those, in tokens.
        padding: So many tokens of it.
    """
    given = max(1, length - padding)
    feeds: Arrays = {spec.name: np.zeros((1, given), spec.dtype) for spec in signature.inputs}
    feeds[MASK] = np.ones_like(feeds[MASK])
    feeds[IDS] = (np.arange(given) % 4)[None].astype(feeds[IDS].dtype)
    if fixed.length_for(feeds) != length:
        return False
    wanted, found = free(feeds), fixed.run(feeds, length)
    return all(
        np.allclose(found[name], each, rtol=0, atol=_TOLERANCE * float(np.abs(each).max()))
        for name, each in wanted.items()
    )
