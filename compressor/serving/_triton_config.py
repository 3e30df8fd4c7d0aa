"""The parts of Triton's ``ModelConfig`` that are written, with the names that Triton gives them."""

from __future__ import annotations

from enum import StrEnum

from pydantic import Field

from compressor.errors import PackageError
from compressor.serving._pbtxt import Message
from targets.signature import Signature, TensorSpec

__all__ = [
    "LABELS",
    "DataType",
    "DynamicBatching",
    "EnsembleScheduling",
    "EnsembleStep",
    "InstanceGroup",
    "Kind",
    "ModelConfig",
    "Parameter",
    "Tensor",
    "parameters",
    "tensors",
]

LABELS = "labels.txt"
"""Lies beside ``config.pbtxt`` and has one class name a line."""


class DataType(StrEnum):
    """Type of the elements of a tensor."""

    TYPE_BOOL = "TYPE_BOOL"
    TYPE_UINT8 = "TYPE_UINT8"
    TYPE_INT8 = "TYPE_INT8"
    TYPE_INT16 = "TYPE_INT16"
    TYPE_INT32 = "TYPE_INT32"
    TYPE_INT64 = "TYPE_INT64"
    TYPE_FP16 = "TYPE_FP16"
    TYPE_FP32 = "TYPE_FP32"
    TYPE_FP64 = "TYPE_FP64"
    TYPE_BF16 = "TYPE_BF16"
    TYPE_STRING = "TYPE_STRING"


_DATA_TYPES = {
    "bool": DataType.TYPE_BOOL,
    "uint8": DataType.TYPE_UINT8,
    "int8": DataType.TYPE_INT8,
    "int16": DataType.TYPE_INT16,
    "int32": DataType.TYPE_INT32,
    "int64": DataType.TYPE_INT64,
    "float16": DataType.TYPE_FP16,
    "float32": DataType.TYPE_FP32,
    "float64": DataType.TYPE_FP64,
    "bfloat16": DataType.TYPE_BF16,
}


class Kind(StrEnum):
    """Where the instances of a model run."""

    KIND_CPU = "KIND_CPU"
    KIND_GPU = "KIND_GPU"


class Tensor(Message):
    """An input or output; ``dims`` are without the batch where the server batches."""

    name: str
    data_type: DataType
    dims: tuple[int, ...]
    label_filename: str | None = None


class DynamicBatching(Message):
    """How requests are gathered into batches."""

    preferred_batch_size: tuple[int, ...] = ()
    max_queue_delay_microseconds: int


class InstanceGroup(Message):
    """How many copies of the model run at a time."""

    count: int
    kind: Kind


class Parameter(Message):
    """An option of the backend."""

    string_value: str


class EnsembleStep(Message):
    """One model of an ensemble: its tensors by the names that they have in the ensemble."""

    model_name: str
    model_version: int
    input_map: dict[str, str]
    output_map: dict[str, str]


class EnsembleScheduling(Message):
    """Models that run one after another."""

    step: tuple[EnsembleStep, ...]


class ModelConfig(Message):
    """All that ``config.pbtxt`` says."""

    name: str
    backend: str | None = None
    platform: str | None = None
    default_model_filename: str | None = None
    max_batch_size: int
    input: tuple[Tensor, ...]
    output: tuple[Tensor, ...]
    instance_group: tuple[InstanceGroup, ...] = ()
    dynamic_batching: DynamicBatching | None = None
    parameters: dict[str, Parameter] = Field(default_factory=dict)
    ensemble_scheduling: EnsembleScheduling | None = None


def parameters(values: dict[str, str]) -> dict[str, Parameter]:
    """Options of a backend as the message has them."""
    return {key: Parameter(string_value=value) for key, value in values.items()}


def tensors(
    signature: Signature, *, batched: bool
) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
    """The inputs and outputs of a model; free dimensions are -1.

    Args:
        signature: Of the model.
        batched: The server batches: the first dimension, one and the same everywhere, is left out.

    Raises:
        PackageError: A type has no counterpart, or there is no such dimension.
    """
    every = (*signature.inputs, *signature.outputs)
    if batched:
        firsts = {spec.shape[0] if spec.shape else None for spec in every}
        if len(firsts) != 1 or not isinstance(next(iter(firsts)), str):
            raise PackageError(
                "the model has no free batch dimension that all inputs and outputs share",
                where="signature",
                given="; ".join(f"{spec.name} {spec.shape}" for spec in every),
                fix="set max_batch_size=0: clients then send whole batches of that shape",
            )
    inputs = tuple(_tensor(spec, batched) for spec in signature.inputs)
    return inputs, tuple(_tensor(spec, batched) for spec in signature.outputs)


def _tensor(spec: TensorSpec, batched: bool) -> Tensor:
    if spec.dtype not in _DATA_TYPES:
        raise PackageError(
            "Triton has no such data type",
            where=f"signature, {spec.name}",
            given=spec.dtype,
            fix=f"export the model with one of {', '.join(_DATA_TYPES)}",
        )
    shape = spec.shape[1:] if batched else spec.shape
    dims = tuple(dim if isinstance(dim, int) else -1 for dim in shape)
    return Tensor(name=spec.name, data_type=_DATA_TYPES[spec.dtype], dims=dims)
