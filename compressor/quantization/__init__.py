"""Quantize ONNX models: int8 by calibration, int8 on the fly, int8 weights, and narrower floats."""

from compressor.quantization.cache import quantize_cache
from compressor.quantization.channels import WeightBits
from compressor.quantization.dynamic import quantize_dynamic
from compressor.quantization.floats import convert_fp16, request_bf16
from compressor.quantization.ranges import Activations, Calibration, ClippingRange
from compressor.quantization.static import quantize_static
from compressor.quantization.summary import QuantizationSummary
from compressor.quantization.tables import TableBits
from compressor.quantization.weights import quantize_weights

__all__ = [
    "Activations",
    "Calibration",
    "ClippingRange",
    "QuantizationSummary",
    "TableBits",
    "WeightBits",
    "convert_fp16",
    "quantize_cache",
    "quantize_dynamic",
    "quantize_static",
    "quantize_weights",
    "request_bf16",
]
