"""What a quantization did, node by node."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field

import onnx

from compressor.quantization.ranges import ClippingRange

__all__ = ["QUANTIZABLE", "QuantizationSummary"]

QUANTIZABLE = frozenset({"Conv", "Gemm", "MatMul"})
"""Operators that do the multiplications of a model."""


@dataclass(frozen=True)
class QuantizationSummary:
    """What a quantization did.

    Attributes:
        quantized_nodes: Nodes that multiply int8 now (or 16-bit floats), in the order of the graph.
        float_nodes: Nodes of the same kinds that still multiply float32.
        tables: Embedding tables that are stored as integers.
        ranges: Tensor name -> the values that its eight bits hold.
        percentile: Of the values, in per cent, that these hold, where it was searched for.
        wider: Of the quantized nodes those that keep 8 bits where 4 were asked for, as their inputs
            do not fall into even groups.
    """

    quantized_nodes: tuple[str, ...]
    float_nodes: tuple[str, ...]
    tables: tuple[str, ...] = ()
    ranges: Mapping[str, ClippingRange] = field(default_factory=dict)
    percentile: float | None = None
    wider: tuple[str, ...] = ()

    @classmethod
    def of(
        cls,
        model: onnx.ModelProto,
        quantized: Collection[str],
        tables: Sequence[str] = (),
        ranges: Mapping[str, ClippingRange] | None = None,
        percentile: float | None = None,
    ) -> QuantizationSummary:
        """Sort the nodes of ``model`` into quantized and float ones."""
        names = [node.name for node in model.graph.node if node.op_type in QUANTIZABLE]
        return cls(
            quantized_nodes=tuple(name for name in names if name in quantized),
            float_nodes=tuple(name for name in names if name not in quantized),
            tables=tuple(tables),
            ranges=dict(ranges or {}),
            percentile=percentile,
        )

    @property
    def is_empty(self) -> bool:
        """Whether the model multiplies as before."""
        return not self.quantized_nodes and not self.tables

    @property
    def note(self) -> str:
        """One line for the report."""
        total = len(self.quantized_nodes) + len(self.float_nodes)
        if self.is_empty:
            return f"none of {total} matrix products and convolutions can be quantized this way"
        line = f"{len(self.quantized_nodes)} of {total} matrix products quantized"
        if self.wider:
            line += (
                f"; NOTE: {len(self.wider)} of them to 8 bits, as the number of their inputs is no "
                "multiple of group_size"
            )
        if self.tables:
            line += f", {len(self.tables)} embedding tables as integers"
        if self.percentile is not None:
            line += f"; ranges hold {self.percentile:g}% of the values"
        return line
