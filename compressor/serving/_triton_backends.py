"""What Triton's backends need to be told, one class a target whose bundles they run."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import ClassVar

from compressor.serving._triton_config import Kind
from compressor.serving.base import length_notes, tuning_notes
from targets.bundle import Manifest
from targets.runtimes.onnxruntime import OnnxRuntime
from targets.runtimes.openvino import OpenVINO
from targets.runtimes.tensorrt import TensorRT

__all__ = ["BACKENDS", "Backend"]


class Backend(ABC):
    """One of Triton's backends."""

    name: ClassVar[str]

    max_batch_size: ClassVar[int]
    """The largest batch that Triton gathers where the user does not say."""

    @abstractmethod
    def kind(self, manifest: Manifest) -> Kind:
        """Where the instances run."""

    @abstractmethod
    def parameters(
        self, manifest: Manifest, *, threads: int, instances: int, batched: bool
    ) -> dict[str, str]:
        """Options of the backend.

        Args:
            manifest: Of the bundle.
            threads: CPU threads of the model; 0 for what the runtime chooses.
            instances: Copies of the model that run at a time.
            batched: Whether Triton gathers requests into batches.
        """

    @abstractmethod
    def notes(self, manifest: Manifest) -> Sequence[str]:
        """What the backend cannot be told, one line each."""


class _OnnxRuntime(Backend):
    name = "onnxruntime"
    max_batch_size = 32

    def kind(self, manifest: Manifest) -> Kind:
        gpu = manifest.target_settings.get("device") == "cuda"
        return Kind.KIND_GPU if gpu else Kind.KIND_CPU

    def parameters(
        self, manifest: Manifest, *, threads: int, instances: int, batched: bool
    ) -> dict[str, str]:
        # As the target opens it: operators one after another, threads inside of each.
        return {
            "intra_op_thread_count": str(threads),
            "inter_op_thread_count": "1",
            "execution_mode": "0",
        }

    def notes(self, manifest: Manifest) -> Sequence[str]:
        entries: dict[str, str] = manifest.options.get("session") or {}
        lost = (
            f"Triton's onnxruntime backend has no parameter for the session option {key}={value}, "
            "with which the bundle was measured: measure latency and accuracy on the server"
            for key, value in entries.items()
        )
        return (*lost, *tuning_notes(manifest))


class _OpenVINO(Backend):
    name = "openvino"
    max_batch_size = 0
    """The backend fixes the batch at its maximum, so that every smaller one has to be padded."""

    def kind(self, manifest: Manifest) -> Kind:
        return Kind.KIND_CPU  # for every device: which one is a parameter

    def parameters(
        self, manifest: Manifest, *, threads: int, instances: int, batched: bool
    ) -> dict[str, str]:
        device = str(manifest.target_settings.get("device", "CPU"))
        precision = manifest.options.get("INFERENCE_PRECISION_HINT")
        return {
            "TARGET_DEVICE": device,
            "PERFORMANCE_HINT": "LATENCY",
            "NUM_STREAMS": str(instances),
            **({"INFERENCE_NUM_THREADS": str(threads)} if threads else {}),
            **({"HINT_BF16": "YES"} if precision == "bf16" else {}),
            **({"ENABLE_BATCH_PADDING": "YES"} if batched else {}),
        }

    def notes(self, manifest: Manifest) -> Sequence[str]:
        precision = manifest.options.get("INFERENCE_PRECISION_HINT")
        measured = (*length_notes(manifest), *tuning_notes(manifest))
        if precision in (None, "bf16"):
            return measured
        return (
            *measured,
            f"Triton's openvino backend has no parameter for INFERENCE_PRECISION_HINT={precision}: "
            "CPUs with bf16 or fp16 may compute the float parts in it; OpenVINO Model Server "
            "(--for ovms) can be told",
        )


class _TensorRT(Backend):
    name = "tensorrt"
    max_batch_size = 0
    """The manifest does not hold the shapes that the engine was built for."""

    def kind(self, manifest: Manifest) -> Kind:
        return Kind.KIND_GPU

    def parameters(
        self, manifest: Manifest, *, threads: int, instances: int, batched: bool
    ) -> dict[str, str]:
        return {}

    def notes(self, manifest: Manifest) -> Sequence[str]:
        return ("an engine runs only on the GPU type and TensorRT version it was built for",)


BACKENDS: Mapping[str, Backend] = {
    OnnxRuntime.name: _OnnxRuntime(),
    OpenVINO.name: _OpenVINO(),
    TensorRT.name: _TensorRT(),
}
"""Target -> the backend that runs its bundles."""
