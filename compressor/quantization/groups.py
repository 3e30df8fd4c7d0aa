"""Round weights to 4 bits with a scale and a centre for each group of inputs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import ml_dtypes
import numpy as np
import onnx
from numpy.typing import NDArray

from compressor.onnx_io import Graph

__all__ = ["GROUP_OPSET", "GroupedProducts", "quantize_groups", "restore_groups"]

GROUP_OPSET = 21
"""The first opset with integers of 4 bits and scales of groups."""
_LOWEST, _HIGHEST = -8, 7
_ROUNDS = 4

Array = NDArray[np.float32]


def quantize_groups(
    weight: Array, *, size: int, importance: Array | None = None, rounds: int | None = None
) -> tuple[NDArray[np.int8], Array, Array]:
    """Round a matrix to integers times a scale plus a centre, in groups along its first axis.

    The range of a group begins as that of its values; then its scale and centre are fitted to the
    integers by least squares and the integers are rounded anew, as often as that lowers the error
    (the alternation of Lloyd, "Least squares quantization in PCM", 1982, on an even grid).

    Args:
        weight: (K, N), finite.
        size: Values of a group; divides K.
        importance: What the squared error of each row counts, (K,) at least 0; by default the same.
        rounds: How often to fit at most; 0 leaves it at the range.

    Returns:
        The integers, -8 to 7, (K, N); the scales, (K / size, N); the centres, (K / size, N).
    """
    groups = weight.reshape(-1, size, weight.shape[1])
    counts = _counts(importance, groups)
    low, high = groups.min(axis=1), groups.max(axis=1)
    scales = (high - low) / (_HIGHEST - _LOWEST)
    scales = np.where(scales > 0, np.maximum(scales, np.finfo(np.float32).tiny), 1).astype(
        np.float32
    )
    # Where all values are one, the integers are 0: runtimes may round what is multiplied by them.
    centres = np.where(high > low, low - _LOWEST * scales, low)
    best = _rounded(groups, scales, centres, counts)
    for _ in range(_ROUNDS if rounds is None else rounds):
        integers, error = best[0], best[3]
        tried = _rounded(groups, *_fitted(groups, integers, scales, counts), counts)
        better = tried[3] < error
        best = tuple(
            np.where(better if each.ndim == 2 else better[:, None], new, each)
            for new, each in zip(tried, best, strict=True)
        )
        scales = best[1]
    integers, scales, centres, _ = best
    return integers.reshape(weight.shape).astype(np.int8), scales, centres


def restore_groups(integers: NDArray[np.int8], scales: Array, centres: Array) -> Array:
    """The matrix that integers, scales and centres stand for; see :func:`quantize_groups`."""
    groups = integers.reshape(len(scales), -1, integers.shape[1])
    return np.asarray(groups * scales[:, None] + centres[:, None]).reshape(integers.shape)


def _counts(importance: Array | None, groups: Array) -> Array:
    """What each value of a group counts, 1 in all, (G, size, 1)."""
    counts = np.ones((*groups.shape[:2], 1), dtype=np.float32)
    if importance is not None:
        given = importance.reshape(counts.shape)
        counts = np.where(given.sum(axis=1, keepdims=True) > 0, given, counts)
    return np.asarray(counts / counts.sum(axis=1, keepdims=True), dtype=np.float32)


def _rounded(groups: Array, scales: Array, centres: Array, counts: Array) -> tuple[Array, ...]:
    """Integers (G, size, N), scales (G, N), centres (G, N), and squared errors (G, N)."""
    steps = np.rint((groups - centres[:, None]) / scales[:, None])
    integers = np.clip(steps, _LOWEST, _HIGHEST)
    change = integers * scales[:, None] + centres[:, None] - groups
    error = (counts * change**2).sum(axis=1)
    return integers, scales, centres, error


def _fitted(groups: Array, integers: Array, scales: Array, counts: Array) -> tuple[Array, Array]:
    """The scales and centres that bring integers nearest to the values."""
    means, mean_integers = (counts * groups).sum(axis=1), (counts * integers).sum(axis=1)
    centred = integers - mean_integers[:, None]
    spread = (counts * centred**2).sum(axis=1)
    fitted = (counts * centred * (groups - means[:, None])).sum(axis=1)
    found = np.divide(fitted, spread, out=scales.copy(), where=spread > 0)
    found = np.where(found > 0, found, scales)
    return found, means - found * mean_integers


@dataclass
class GroupedProducts:
    """Writes matrix products with weights of 4 bits into a graph.

    A product is that with the integers times their scales, which runtimes have kernels for, plus
    that of the sums of the inputs of each group with the centres. An integer for the centre, as
    formats with zero points have it, would be half a step off.

    Attributes:
        graph: Is changed.
        size: Values of a group.
        importance: Tensor -> what the errors of the weights of each of its channels count; see
            :func:`quantize_groups`.
    """

    graph: Graph
    size: int
    importance: Mapping[str, Array] = field(default_factory=dict)
    _weights: dict[tuple[str, str], tuple[str, str, str, int]] = field(default_factory=dict)
    _sums: dict[str, str] = field(default_factory=dict)
    _adders: dict[int, str] = field(default_factory=dict)

    def product(self, node: onnx.NodeProto) -> list[onnx.NodeProto]:
        """The nodes in the place of a ``MatMul`` of (..., K) with a weight (K, N)."""
        graph, make = self.graph, onnx.helper.make_node
        name, tensor = node.input[1], node.input[0]
        stored, scale, centre, num_rows = self._stored(name, tensor)
        restored, scaled, shift = (
            graph.new_name(f"{name}_{part}") for part in ("restored", "scaled", "shift")
        )
        nodes = self._group_sums(tensor, num_rows)
        nodes += [
            make(
                "DequantizeLinear",
                [stored, scale],
                [restored],
                name=graph.new_name(f"{name}_DequantizeLinear"),
                axis=0,
                block_size=self.size,
            ),
            make("MatMul", [tensor, restored], [scaled], name=node.name),
            make(
                "MatMul",
                [self._sums[tensor], centre],
                [shift],
                name=graph.new_name(f"{node.name}_centres"),
            ),
            make("Add", [scaled, shift], [node.output[0]], name=graph.new_name(f"{node.name}_sum")),
        ]
        return nodes

    def _stored(self, name: str, tensor: str) -> tuple[str, str, str, int]:
        """The integers, scales and centres of a weight, and its rows; layers may share them."""
        importance = self.importance.get(tensor)
        key = name, "" if importance is None else tensor
        if key not in self._weights:
            integers, scales, centres = quantize_groups(
                self.graph.weight(name), size=self.size, importance=importance
            )
            self._weights[key] = (
                self.graph.add_initializer(f"{name}_int4", integers.astype(ml_dtypes.int4)),
                self.graph.add_initializer(f"{name}_scale", scales),
                self.graph.add_initializer(f"{name}_centre", centres),
                len(integers),
            )
        return self._weights[key]

    def _group_sums(self, tensor: str, width: int) -> list[onnx.NodeProto]:
        """The node that adds up the inputs of each group, where no product before had it."""
        if tensor in self._sums:
            return []
        if width not in self._adders:
            # A product with ones: it takes tensors of any number of dimensions.
            ones = np.repeat(np.eye(width // self.size, dtype=np.float32), self.size, axis=0)
            self._adders[width] = self.graph.add_initializer(f"groups_of_{width}", ones)
        sums = self._sums[tensor] = self.graph.new_name(f"{tensor}_group_sums")
        name = self.graph.new_name(f"{tensor}_add_up")
        return [onnx.helper.make_node("MatMul", [tensor, self._adders[width]], [sums], name=name)]
