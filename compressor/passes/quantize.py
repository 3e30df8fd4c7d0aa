"""Quantize: matrix products in int8 or 16-bit floats, written into the ONNX model itself."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

from pydantic import Field, model_validator

from compressor.errors import PassError
from compressor.passes.base import Advice, Goal, Pass, PassContext, PassResult
from targets.base import Form, Precision
from targets.signature import Arrays

if TYPE_CHECKING:
    from compressor.model import Model, OnnxModel
    from compressor.quantization.summary import QuantizationSummary

__all__ = ["Quantize", "TableBits"]

TableBits = Literal[4, 8]

_PRECISIONS: dict[str, Precision] = {
    "static": "int8",
    "dynamic": "int8-dynamic",
    "weights": "int8-weights",
    "fp16": "fp16",
    "bf16": "bf16",
}
_METHODS_WITH: dict[str, tuple[str, ...]] = {
    "activations": ("static",),
    "calibration": ("static",),
    "percentile": ("static",),
    "num_samples": ("static", "dynamic", "weights"),
    "smooth_quant": ("static",),
    "activation_matmuls": ("static",),
    "weight_bits": ("static", "dynamic", "weights"),
    "group_size": ("weights",),
    "awq": ("weights",),
    "scale_estimation": ("weights",),
    "table_bits": ("static", "dynamic", "weights"),
    "kv_cache": ("static", "dynamic", "weights"),
    "exclude": ("static", "dynamic", "weights", "fp16"),
    "keep_float": ("static",),
}

_FORMER_DEFAULTS: dict[str, str] = {"calibration": "percentile"}
"""What earlier reports write out of settings that have no effect with their method."""


class Quantize(Pass):
    """Bring the matrix products to int8 or to 16-bit floats, without training.

    ``static`` fixes the ranges of activations by calibration on training data and writes Q/DQ nodes
    that every target takes; ``dynamic`` computes the ranges at run time; ``weights``
    stores 8-bit weights and multiplies in float; ``fp16`` and ``bf16`` change the float format.
    """

    name: ClassVar[str] = "quantize"
    consumes: ClassVar[Form] = "onnx"
    produces: ClassVar[Form] = "onnx"
    paper: ClassVar[str] = (
        "Jacob et al., Quantization and Training of Neural Networks for Efficient "
        "Integer-Arithmetic-Only Inference, 2018; Xiao et al., SmoothQuant, 2022; "
        "Lin et al., AWQ, 2024"
    )
    version: ClassVar[int] = 5
    libraries: ClassVar[tuple[str, ...]] = ("onnx", "onnxruntime")
    advice: ClassVar[Mapping[Goal, Advice]] = {
        "accuracy": Advice(used="another calibration for quantize, or smooth_quant"),
        "speed": Advice(absent="a variant with quantize"),
        "size": Advice(absent="a variant with quantize"),
    }

    method: Literal["static", "dynamic", "weights", "fp16", "bf16"] = "static"
    """How; see above."""
    activations: Literal["uint8", "int8"] = Field(
        default="uint8", exclude_if=lambda value: value == "uint8"
    )
    """Levels of activations with static ranges: uint8 spends them all on the values that there are;
    int8 is symmetric around 0, as TensorRT computes (it widens the ranges of uint8)."""
    calibration: Literal["search", "minmax", "entropy", "percentile"] = "search"
    """How static ranges come from observed values. search: of four percentiles up to 100, the one
    that changes the outputs least on training data."""
    percentile: float = Field(default=99.99, gt=50, le=100)
    """Share of values that the range covers, in percent; for the calibration ``percentile``."""
    num_samples: int = Field(default=256, ge=1)
    """Training inputs to calibrate on."""
    smooth_quant: float | None = Field(default=None, ge=0, le=1)
    """SmoothQuant's migration strength alpha; none leaves activations as they are."""
    activation_matmuls: bool = False
    """Whether static int8 also covers products of two activations, as in attention."""
    weight_bits: Literal[4, 7, 8] = 8
    """7 keeps products from saturating on x86 CPUs without VNNI; 4 is for the method ``weights``,
    with a scale and a centre for each group of inputs."""
    group_size: Literal[16, 32, 64, 128] = Field(default=32, exclude_if=lambda value: value == 32)
    """Inputs that share a scale and a centre, with weights of 4 bits: less loses less, and takes
    more bytes."""
    awq: bool = Field(default=False, exclude_if=lambda value: not value)
    """With weights of 4 bits: give the inputs that matter more of the grid, by calibration
    (activation-aware weight quantization)."""
    scale_estimation: bool = Field(default=False, exclude_if=lambda value: not value)
    """With weights of 4 bits: fit the scales to what the inputs make of the errors, by
    calibration."""
    table_bits: TableBits = Field(default=8, exclude_if=lambda value: value == 8)
    """Of large embedding tables: half of the bytes of a small language model. 4 halves them."""
    kv_cache: Literal["int8"] | None = Field(default=None, exclude_if=lambda value: value is None)
    """How a language model that was exported with `cache` keeps keys and values: in a quarter of
    the memory of floats, with a scale for each channel by calibration."""
    exclude: tuple[str, ...] = ()
    """Names of ONNX nodes that stay float."""
    keep_float: int = Field(default=0, ge=0, exclude_if=lambda value: value == 0)
    """So many more matrix products stay float: those that change the outputs most when they alone
    are quantized, on calibration data."""

    @property
    def parts(self) -> Mapping[str, int]:
        """See the base class."""
        return {"keep_float": 2} if self.keep_float else {}

    @model_validator(mode="after")
    def _settings_have_effect(self) -> Self:
        # Defaults are let through: a report writes every setting out, and has to load again.
        changed = {
            name
            for name, field in type(self).model_fields.items()
            if getattr(self, name) not in (field.default, _FORMER_DEFAULTS.get(name, field.default))
        }
        for setting, methods in _METHODS_WITH.items():
            if setting in changed and self.method not in methods:
                raise ValueError(
                    f"{setting} has no effect with method {self.method}; "
                    f"it belongs to {', '.join(methods)}"
                )
        if self.weight_bits == (7 if self.method == "weights" else 4):
            raise ValueError(f"method {self.method} has no {self.weight_bits}-bit weights")
        for setting in ("group_size", "awq", "scale_estimation"):
            if setting in changed and self.weight_bits != 4:
                raise ValueError(f"{setting} has no effect with weight_bits {self.weight_bits}")
        calibrates = self.method == "static" or self.awq or self.scale_estimation or self.kv_cache
        if "num_samples" in changed and not calibrates:
            raise ValueError(
                "num_samples has no effect where nothing is calibrated; "
                "it belongs to method static, awq, scale_estimation and kv_cache"
            )
        if "percentile" in changed and self.calibration != "percentile":
            raise ValueError(
                f"percentile has no effect with calibration {self.calibration}; "
                "set calibration: percentile"
            )
        return self

    @property
    def precision(self) -> Precision:
        """See the base class."""
        return "int4-weights" if self.weight_bits == 4 else _PRECISIONS[self.method]

    @property
    def static_rounding(self) -> Mapping[str, Any] | None:
        """See the base class."""
        if self.method != "static":
            return None
        by_percentile = self.calibration == "percentile"
        return {
            "method": self.method,
            "weight_bits": self.weight_bits,
            "activations": self.activations,
            "percentile": self.percentile if by_percentile else self.calibration,
        }

    @property
    def width_multiple(self) -> int:
        """See the base class: weights of 4 bits fall into groups."""
        return self.group_size if self.weight_bits == 4 else 1

    def requires(self, model: Model, context: PassContext) -> None:
        """Check that the model is still float and that excluded nodes exist."""
        from compressor.model import OnnxModel
        from compressor.onnx_io import load_model

        assert isinstance(model, OnnxModel)
        if model.precision != "fp32":
            raise PassError(
                "the model is quantized already",
                where=self.name,
                given=model.precision,
                fix="keep one quantize in the chain; put alternatives under variants",
            )
        if self.kv_cache and not model.signature.state:
            raise PassError(
                "the model keeps no keys and values",
                where=f"{self.name}.kv_cache",
                given="a signature without state",
                fix="set cache: true in the pass export, or leave kv_cache out",
            )
        if self.kv_cache and model.signature.context:
            raise PassError(
                "keys and values in 8 bits are for language models",
                where=f"{self.name}.kv_cache",
                given=f"task {model.task}",
                fix="leave kv_cache out",
            )
        if self.exclude:
            names = {node.name for node in load_model(model.path).graph.node}
            unknown = [name for name in self.exclude if name not in names]
            if unknown:
                raise PassError(
                    "exclude names nodes that the model does not have",
                    where=f"{self.name}.exclude",
                    given=", ".join(unknown),
                    fix="use node names of the exported model, such as "
                    + ", ".join(sorted(names)[:3]),
                )

    def run(self, model: Any, context: PassContext) -> PassResult:
        """Write the quantized model, calibrated on a seeded choice of training inputs."""
        from dataclasses import replace

        destination = context.folder / "quantized"
        destination.mkdir(exist_ok=True)
        result: OnnxModel = replace(model, precision=self.precision)
        result.save(destination)
        result = replace(result, folder=destination)
        summary = self._quantize(model, result.path, context)
        if summary.is_empty and not self.kv_cache:
            result = model  # so that a report takes it for what it is
        if self.kv_cache:
            result = self._with_small_cache(model, result, context)
        return PassResult(
            model=result,
            metrics={
                "quantized_nodes": float(len(summary.quantized_nodes)),
                "float_nodes": float(len(summary.float_nodes)),
            },
            notes=(summary.note,),
        )

    def _quantize(
        self, model: OnnxModel, destination: Path, context: PassContext
    ) -> QuantizationSummary:
        from compressor import quantization

        if self.method == "weights":
            assert self.weight_bits != 7
            return quantization.quantize_weights(
                model.path,
                destination,
                self._batches(model, context) if self.awq or self.scale_estimation else (),
                exclude=self.exclude,
                bits=self.weight_bits,
                group_size=self.group_size,
                awq=self.awq,
                scale_estimation=self.scale_estimation,
                table_bits=self.table_bits,
            )
        assert self.weight_bits != 4
        if self.method == "static":
            return quantization.quantize_static(
                model.path,
                destination,
                self._batches(model, context),
                calibration=self.calibration,
                percentile=self.percentile,
                activations=self.activations,
                smooth_quant=self.smooth_quant,
                weight_bits=self.weight_bits,
                exclude=self.exclude,
                keep_float=self.keep_float,
                activation_matmuls=self.activation_matmuls,
                table_bits=self.table_bits,
            )
        if self.method == "dynamic":
            return quantization.quantize_dynamic(
                model.path,
                destination,
                weight_bits=self.weight_bits,
                exclude=self.exclude,
                table_bits=self.table_bits,
            )
        if self.method == "fp16":
            return quantization.convert_fp16(model.path, destination, exclude=self.exclude)
        return quantization.request_bf16(model.path, destination)

    def _with_small_cache(
        self, model: OnnxModel, result: OnnxModel, context: PassContext
    ) -> OnnxModel:
        from dataclasses import replace

        from compressor.quantization import quantize_cache

        batches = self._batches(model, context)
        state = quantize_cache(model.path, result.path, model.signature.state, batches)
        signature = model.signature.model_copy(update={"state": state})
        result = replace(result, signature=signature)
        result.save(result.folder)
        return result

    def _batches(self, model: OnnxModel, context: PassContext) -> Iterator[Arrays]:
        """Calibration batches of similar lengths, so that padding does not shape the ranges."""
        from compressor.tasks import get_task

        task = get_task(model.task)
        order = list(range(len(context.splits.train)))
        random.Random(context.seed).shuffle(order)
        chosen_rows = context.splits.train.take(order[: self.num_samples])
        rows = sorted(task.encode_labelled(model, chosen_rows), key=task.length)
        size = min(16, task.answers.rows_at_once)  # of models that write, logits are large
        for start in range(0, len(rows), size):
            chosen = rows[start : start + size]
            yield {**task.collate(model, chosen), **model.signature.initial_state(len(chosen))}
            context.progress(min(1.0, (start + size) / len(rows)), "calibrating")
