"""Narrower floats: fp16 in the model itself, and bf16 as a request that each target grants."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import onnx

from compressor.onnx_io import infer_shapes, load_model, open_model, save_model, sort_nodes
from compressor.quantization.gemm import check_names, name_nodes
from compressor.quantization.summary import QUANTIZABLE, QuantizationSummary

__all__ = ["FP16_BLOCKED_OPS", "PRECISION_KEY", "convert_fp16", "request_bf16"]

PRECISION_KEY = "compressor.precision"
"""Key of the metadata property with the precision that a model asks for."""

FP16_BLOCKED_OPS = (
    "Exp",
    "LayerNormalization",
    "Pow",
    "RMSNormalization",
    "ReduceL2",
    "ReduceMean",
    "ReduceSum",
    "ReduceSumSquare",
    "Softmax",
)
"""Operators that add up or raise values, and pass the largest fp16 (65504) where others do not."""


def convert_fp16(
    source: Path, destination: Path, *, exclude: Sequence[str] = ()
) -> QuantizationSummary:
    """Turn weights and arithmetic into fp16; inputs and outputs keep their types.

    Normalisation, softmax and sums stay float32, and so do the operators whose fp16 form ONNX does
    not define. Constants outside of the range of fp16, such as attention masks, become its limits.

    Args:
        source: A float32 model; stays as it is.
        destination: Where to write the fp16 one.
        exclude: Names of nodes to leave in float32.

    Raises:
        PassError: A name in ``exclude`` is no node's.
    """
    from onnxruntime.transformers.float16 import DEFAULT_OP_BLOCK_LIST, convert_float_to_float16

    model = name_nodes(load_model(source))
    check_names(model, exclude)
    names = {node.name for node in model.graph.node if node.op_type in QUANTIZABLE}
    converted = convert_float_to_float16(
        infer_shapes(model),
        keep_io_types=True,
        disable_shape_infer=True,
        op_block_list=[*DEFAULT_OP_BLOCK_LIST, *FP16_BLOCKED_OPS],
        node_block_list=list(exclude),
    )
    del converted.graph.value_info[:]
    sort_nodes(converted)  # the converter puts its casts at the end
    _set_metadata(converted, "fp16")
    save_model(converted, destination)
    return QuantizationSummary.of(model, names - set(exclude))


def request_bf16(source: Path, destination: Path) -> QuantizationSummary:
    """Copy a float32 model and note in it that its products may run in bf16.

    bf16 has the range of float32, so that a target can narrow on its own without overflow;
    OpenVINO does so by a hint, and ONNX Runtime has no CPU kernels for a model written in bf16.

    Args:
        source: A float32 model; stays as it is.
        destination: Where to write the copy.
    """
    model = open_model(source)
    _set_metadata(model, "bf16")
    save_model(model, destination)
    names = {node.name for node in model.graph.node if node.op_type in QUANTIZABLE}
    return QuantizationSummary.of(model, names)


def _set_metadata(model: onnx.ModelProto, precision: str) -> None:
    kept = {each.key: each.value for each in model.metadata_props} | {PRECISION_KEY: precision}
    onnx.helper.set_model_props(model, kept)
