"""What a quantization did, node by node."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field

import onnx

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
        thresholds: Tensor name -> largest magnitude that its int8 form holds.
        wider: Of the quantized nodes those that keep 8 bits where 4 were asked for, as their inputs
            do not fall into even groups.
    """

    quantized_nodes: tuple[str, ...]
    float_nodes: tuple[str, ...]
    tables: tuple[str, ...] = ()
    thresholds: Mapping[str, float] = field(default_factory=dict)
    wider: tuple[str, ...] = ()

    @classmethod
    def of(
        cls,
        model: onnx.ModelProto,
        quantized: Collection[str],
        tables: Sequence[str] = (),
        thresholds: Mapping[str, float] | None = None,
    ) -> QuantizationSummary:
        """Sort the nodes of ``model`` into quantized and float ones."""
        names = [node.name for node in model.graph.node if node.op_type in QUANTIZABLE]
        return cls(
            quantized_nodes=tuple(name for name in names if name in quantized),
            float_nodes=tuple(name for name in names if name not in quantized),
            tables=tuple(tables),
            thresholds=dict(thresholds or {}),
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
        return f"{line}, {len(self.tables)} embedding tables as integers" if self.tables else line
